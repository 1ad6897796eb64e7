"""The rows of RESULTS.md that a GPU day gives, from its record."""

import statistics

from biedsnet_jax.reporting.table import Table, markdown_tables

_GB = 1e9
NOT_MEASURED = "not measured"


def text(record: dict) -> str:
    """All tables as Markdown, those without rows left out."""
    tables = (agreement(record), speed(record), torch(record), training(record))
    return markdown_tables([table for table in tables if table.rows])


def agreement(record: dict) -> Table:
    """How far the device is from the CPU, and whether it repeats its bits."""
    caption = (
        f"{_where(record)} against a CPU in float32, on random weights. Beside each "
        "difference stands the largest allowed."
    )
    names = ("logits", "loss", "gradient", "probability")
    header = ["precision", *names, "agrees", "same bits twice", "bits"]
    rows = []
    for name, entry in _of_kind(record, "agreement"):
        cells = ["-"] * 7
        if "result" in entry:
            found = entry["result"]
            cells = [_difference(found, each) for each in names]
            cells += [_yes(found["agrees"]), _yes(found["repeats"]), found["digest"]]
        rows.append([name, *cells])
    return Table("A GPU against a CPU", caption, header, rows)


def speed(record: dict) -> Table:
    """Time, memory and compiling of the training step and the prediction."""
    caption = f"{_where(record)}, median of the repeats. {_command(record, 'speed')}"
    header = [
        "precision, images a call",
        "program",
        "ms",
        "images/s",
        "compile, s",
        "memory, GB",
        "of the roofline",
    ]
    rows = []
    for name, entry in _of_kind(record, "speed"):
        if "result" not in entry:
            rows.append([name, entry["status"], *["-"] * 5])
            continue
        for program, fields in entry["result"]["programs"].items():
            rows.append([name, program, *_speed_cells(fields)])
    return Table("Speed", caption, header, rows)


def torch(record: dict) -> Table:
    """The same beside PyTorch."""
    caption = (
        f"{_where(record)}, in turns with PyTorch through torch.compile; medians in "
        f"milliseconds. {_command(record, 'torch')}"
    )
    header = ["precision, images a call", "what", "ours", "PyTorch", "PyTorch / ours"]
    rows = []
    for name, entry in _of_kind(record, "torch"):
        if "result" not in entry:
            rows.append([name, entry["status"], "-", "-", "-"])
            continue
        for row in entry["result"]["rows"]:
            ours, theirs = (
                f"{1e3 * statistics.median(row[which]):.4g}"
                for which in ("ours_s", "torch_s")
            )
            rows.append([name, row["name"], ours, theirs, f"{row['ratio']:.2f}"])
    return Table("Beside PyTorch", caption, header, rows)


def training(record: dict) -> Table:
    """How far the training came on each day."""
    caption = (
        f"{_where(record)}. Its scores stand in run/results.json once it is done. Where "
        "it takes fewer steps a second than the speed above gives, reading data is what "
        "it waits for."
    )
    header = ["day", "steps", "seconds, start included", "steps/s, last", "ended"]
    rows = [
        [
            str(day),
            f"{entry['from_step']} to {entry['to_step']}",
            f"{entry['seconds']:.0f}",
            _rate(entry["steps_per_second"]),
            entry["status"],
        ]
        for day, entry in enumerate(record["training"], start=1)
    ]
    return Table("Training", caption, header, rows)


def _of_kind(record, kind):
    """(name without the kind, entry) of the steps of a kind."""
    return [
        (name.removeprefix(f"{kind}, "), entry)
        for name, entry in record["steps"].items()
        if entry["kind"] == kind
    ]


def _speed_cells(fields):
    if "out_of_memory" in fields:
        return ["out of memory", "-", "-", "-", "-"]
    memory = fields["program_bytes"]
    fraction = fields["fraction"]
    return [
        f"{fields['milliseconds']['median']:.4g}",
        f"{fields['images_per_second']['median']:.4g}",
        f"{fields['compile_seconds']:.1f}",
        NOT_MEASURED if memory is None else f"{memory / _GB:.2f}",
        NOT_MEASURED if fraction is None else f"{fraction:.0%}",
    ]


def _difference(found, name):
    value = found["differences"][name]
    shown = "not finite" if value is None else f"{value:.1e}"
    return f"{shown} ({found['limits'][name]:.0e})"


def _rate(value):
    return NOT_MEASURED if value is None else f"{value:.3g}"


def _yes(value):
    return "yes" if value else "NO"


def _where(record):
    """Device and versions of the last day."""
    if not record["days"]:
        return "No day"
    day = record["days"][-1]
    versions = day["versions"]
    return (
        f"{day['device']['kind']}, jax {versions['jax']}, Python {versions['python']}"
    )


def _command(record, kind):
    """A sentence with the first command of a kind."""
    entries = _of_kind(record, kind)
    return f"The first row is of: {entries[0][1]['command']}" if entries else ""
