"""What was done to masks after the network, in words."""

from collections.abc import Mapping
from typing import Any


def sentence(rules: Mapping[str, Any] | None) -> str:
    """Describes the rules of postprocess.json, or of "postprocess" in results.json.

    That is "above 0.3; Dice of the 3 validation cases 0.6120, before 0.5800", or that
    there are none, and why. None is for masks without any decision.
    """
    if rules is None:
        return "none; switched off, or not decided"
    each = _of_classes(rules)
    if not each:
        return f"none; {rules['reason']}" if rules["reason"] else "none"
    text = ", ".join(each)
    if rules["before"] is None:
        return text
    return (
        f"{text}; Dice of the {rules['cases']} validation cases {rules['after']:.4f}, "
        f"before {rules['before']:.4f}"
    )


def has_rules(rules: Mapping[str, Any] | None) -> bool:
    """Whether anything was done to masks."""
    return rules is not None and bool(_of_classes(rules))


def of_objects(rules: Mapping[str, Any] | None) -> str:
    """Describes what is done beside thresholds; empty where that is nothing."""
    return "" if rules is None else ", ".join(_of_classes({**rules, "thresholds": []}))


def _of_classes(rules) -> list[str]:
    """The rules of each class that has any."""
    fields = ("thresholds", "holes", "smallest", "largest")
    classes = max(len(rules[name]) for name in fields)
    found = []
    for k in range(classes):
        threshold, holes, smallest, largest = (
            rules[name][k] if rules[name] else None for name in fields
        )
        parts = [f"above {threshold:g}"] if threshold is not None else []
        parts += ["holes filled"] if holes else []
        unit = rules["unit"].replace("mm2", "mm²").replace("mm3", "mm³")
        parts += [f"objects under {smallest:g} {unit} removed"] if smallest else []
        parts += ["largest object only"] if largest else []
        if parts:
            name = f"class {k + 1} " if classes > 1 else ""
            found.append(name + ", ".join(parts))
    return found
