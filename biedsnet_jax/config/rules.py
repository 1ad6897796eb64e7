"""Rules of what one field may hold.

A rule checks a value, and says in words what it allows, for messages and the help.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

from biedsnet_jax.data.fit import read_spacing
from biedsnet_jax.errors import BadInput, shown

# Counters and seeds are int32 on the device.
_MOST = 2**31 - 1
# mm: from an atom to a city, so that no number of pixels overflows.
_SPACINGS = (1e-7, 1e7)


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a field may hold; `says` goes on after "Use"."""

    says: str
    allows: Callable[[Any], bool]

    def check(self, name: str, value: Any) -> None:
        """Raises BadInput where the field `name` may not hold `value`."""
        if not self.allows(value):
            raise BadInput(f"{shown(name)} is {_named(value)}. Use {self.says}.")


def one_of(names: Iterable[str]) -> Rule:
    """Allows one of some names."""
    names = tuple(names)
    return Rule(f"one of {', '.join(map(repr, names))}", lambda value: value in names)


def at_least(least: int, most: int = _MOST) -> Rule:
    """Allows whole numbers from `least`, up to `most`."""
    to = "" if most == _MOST else f" to {most}"
    return Rule(
        f"a whole number from {least}{to}",
        lambda value: is_a(int, value) and least <= value <= most,
    )


def numbers(example: tuple[float, ...], count: str = "") -> Rule:
    """Allows finite numbers; as many as `example` has, where `count` says how many."""
    return Rule(
        f"{count} finite numbers, such as {example}".strip(),
        lambda value: are_finite(value) and (not count or len(value) == len(example)),
    )


def like(usual: Any, *, empty: bool = False) -> Rule:
    """Allows values of the type of `usual`; tuples of whole numbers, () if `empty`."""
    if isinstance(usual, tuple):
        return Rule(
            "whole numbers, such as (2, 4)",
            lambda value: are(int, value) and (empty or value != ()),
        )
    if isinstance(usual, float):
        return Rule("a number", lambda value: isinstance(value, int | float))
    kinds = {bool: YES_OR_NO.says, int: "a whole number", str: TEXT.says}
    says = kinds.get(type(usual), f"a value like {usual!r}")
    return Rule(says, lambda value: type(value) is type(usual))


def is_a(kind: Any, value: Any) -> bool:
    """Whether a value is of a type, where True is no number."""
    # To Python True is the number 1.
    return isinstance(value, kind) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a number, finite or not."""
    return is_a(int | float, value)


def are(kind: Any, values: Any) -> bool:
    """Whether a value is a tuple or list of one type."""
    return isinstance(values, tuple | list) and all(
        is_a(kind, value) for value in values
    )


def are_finite(values: Any) -> bool:
    """Whether a value is a tuple or list of finite numbers."""
    return are(int | float, values) and all(abs(value) < math.inf for value in values)


def _is_spacing(value):
    if value == "auto" or not isinstance(value, str):
        return value == "auto"
    try:
        lengths = read_spacing(value)
    except ValueError:
        return False
    low, high = _SPACINGS
    return all(low <= length <= high for length in lengths or ())


def _is_range(value):
    return value in ((), []) or (
        are_finite(value) and len(value) == 2 and value[0] < value[1]
    )


def _are_labels(value):
    return are(tuple | list, value) and all(
        are(int, group) and group for group in value
    )


def _are_names(value):
    if not are(str, value) or len(set(value)) < len(value):
        return False
    return all(name.isprintable() and name.strip() for name in value)


def _are_unannotated(value):
    return are(tuple | list, value) and all(
        len(pair) == 2 and is_a(str, pair[0]) and are(int, pair[1]) and pair[1]
        for pair in value
    )


def _named(value):
    if isinstance(value, int) and value > _MOST:
        # Larger ones overflow a float.
        return f"{min(value, 10**99):.3g}, beyond 32 bits"
    return shown(repr(value))


COUNT = at_least(1)
COUNT_OR_0 = at_least(0)
YES_OR_NO = Rule("True or False", lambda value: isinstance(value, bool))
TEXT = Rule("a text", lambda value: isinstance(value, str))
FOLDER = Rule("a folder", lambda value: value is None or isinstance(value, str))
FROM_0 = Rule(
    "a finite number from 0", lambda value: is_number(value) and 0 <= value < math.inf
)
ABOVE_0 = Rule(
    "a finite number above 0", lambda value: is_number(value) and 0 < value < math.inf
)
SHARE = Rule("a number from 0 to 1", lambda value: is_number(value) and 0 <= value <= 1)
BELOW_1 = Rule(
    "a number from 0, below 1", lambda value: is_number(value) and 0 <= value < 1
)
ABOVE_0_OR_INF = Rule(
    "a number above 0, or inf", lambda value: is_number(value) and value > 0
)
CASES = Rule(
    "names of cases, such as ('a', 'b'), or ()", lambda value: are(str | int, value)
)
PATTERNS = Rule(
    "patterns of paths, such as ('condition', 'denoiser/encoder_*'), or ()",
    lambda value: are(str, value),
)
RANGE = Rule("a finite (low, high), such as (-1250, 250), or ()", _is_range)
SPACING = Rule(
    'a length from 1e-7 to 1e7 mm, such as "0.8" or "0.8,0.7", "" or "auto"',
    _is_spacing,
)
NAMES = Rule("different names, such as ('lung', 'lesion'), or ()", _are_names)
CLASS_NAMES = Rule(
    "different names other than 'background', such as ('lung', 'lesion'), or ()",
    # That one is 0 in labels.json.
    lambda value: _are_names(value) and "background" not in value,
)
UNANNOTATED = Rule(
    "cases and their classes, such as (('site_b_*', (2,)),), or ()", _are_unannotated
)
LABELS = Rule("a tuple for each class, such as ((1,), (2, 3)), or ()", _are_labels)
