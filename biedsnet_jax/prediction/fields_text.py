"""Names and values in aligned lines, as the `repr` of models and predictions has them."""

from collections.abc import Mapping


def fields_text(title: str, fields: Mapping[str, object]) -> str:
    """Writes a title, and below it one line a field.

    Arrays do not belong here: a notebook prints this text whenever a cell ends in a
    model or a prediction.
    """
    width = max(map(len, fields))
    lines = [f"  {name:{width}}  {value}" for name, value in fields.items()]
    return "\n".join([title, *lines])


def counted(number: int, noun: str) -> str:
    """Writes a number with its noun, such as "1 slice" and "2 slices"."""
    if number == 1:
        return f"1 {noun}"
    plural = "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{plural}"


def labelled(labels: tuple[tuple[int, ...], ...], names: tuple[str, ...] = ()) -> str:
    """Writes the classes with their labels, such as "2 classes, labels 1, 2+4".

    Each has its name, where there are `names`: "labels 1 lung, 2+4 lesion".
    """
    values = ["+".join(map(str, of_class)) for of_class in labels]
    if names:
        values = [f"{value} {name}" for value, name in zip(values, names)]
    word = "label" if len(values) == 1 else "labels"
    return f"{counted(len(values), 'class')}, {word} {', '.join(values)}"
