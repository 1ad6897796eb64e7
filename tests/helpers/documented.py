"""What the pages of this project tell a reader to type, and where: commands, fields,
files, links, Python examples.

A fenced block without a language holds commands, a line each (`\\` goes on, `#` starts a comment, `&&` parts two);
```text is a drawing, ```python an example. In running text a `code span` is a command when it starts with a flag or one
of PROGRAMS.
"""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from places import ROOT

from biedsnet_jax.commands import as_flags

# and launch/...
PROGRAMS = (
    "python",
    "biedsnet",
    "pip",
    "sbatch",
    "kubectl",
    "apt-get",
    "git",
    "docker",
    "gcloud",
    "tensorboard",
)
LANGUAGES = ("", "text", "python")


class Said(NamedTuple):
    """Something a page says."""

    place: str  # "README.md:12"
    text: str


class Block(NamedTuple):
    place: str  # of its first line
    language: str
    lines: list[str]


def pages(root: Path = ROOT) -> list[Path]:
    return [
        root / "README.md",
        root / "RESULTS.md",
        root / "tests" / "README.md",
        *sorted((root / "docs").glob("*.md")),
    ]


def commands(page: Path, root: Path = ROOT) -> list[Said]:
    """Of blocks and spans, their words quoted as a shell needs them, placeholders and
    all.
    """
    found = []
    for block in blocks(page, root):
        if block.language == "":
            found += _block_commands(block)
    for place, text in spans(page, root):
        if _is_command(text):
            found += [Said(place, shlex.join(words)) for words in _split(text)]
    return found


def blocks(page: Path, root: Path = ROOT) -> list[Block]:
    """Fenced blocks. Raises ValueError at one that never ends, or of a language that is
    not in LANGUAGES.
    """
    found, inside = [], None
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        if line.startswith("```") and inside is None:
            inside = Block(_place(page, number + 1, root), line[3:].strip(), [])
            if inside.language not in LANGUAGES:
                raise ValueError(
                    f"{_place(page, number, root)}: a block of {inside.language}, not one of {LANGUAGES}"
                )
        elif line.startswith("```"):
            found.append(inside)
            inside = None
        elif inside is not None:
            inside.lines.append(line)
    if inside is not None:
        raise ValueError(f"{inside.place}: a block without an end")
    return found


def spans(page: Path, root: Path = ROOT) -> list[Said]:
    """Code spans, over line ends too, outside of blocks."""
    text = _prose(page)
    return [
        Said(
            _place(page, text.count("\n", 0, match.start()) + 1, root),
            " ".join(match.group(1).split()),
        )
        for match in re.finditer(r"`([^`\n]+(?:\n[^`\n]+)*)`", text)
    ]


def examples(page: Path, root: Path = ROOT) -> list[Said]:
    """Blocks of Python, in order."""
    return [
        Said(b.place, "\n".join(b.lines))
        for b in blocks(page, root)
        if b.language == "python"
    ]


def links(page: Path, root: Path = ROOT) -> list[Said]:
    """Targets of links and pictures, but for those of other sites."""
    text = re.sub(r"`[^`\n]*`", "", _prose(page))
    found = []
    for match in re.finditer(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"\w+:", match.group(1)):
            found.append(
                Said(
                    _place(page, text.count("\n", 0, match.start()) + 1, root),
                    match.group(1),
                )
            )
    return found


def anchors(page: Path) -> set[str]:
    """What `#...` may name on a page: its headings as GitHub writes them."""
    titles = re.findall(r"^#+ +(.*?) *$", _prose(page), flags=re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles
    }


def _prose(page):
    """The text with the lines of blocks empty."""
    lines, inside = [], False
    for line in page.read_text().splitlines():
        fence = line.startswith("```")
        lines.append("" if inside or fence else line)
        inside ^= fence
    return "\n".join(lines)


def _block_commands(block):
    page, _, first = block.place.rpartition(":")
    found, line, start = [], "", 0
    for number, part in enumerate(block.lines):
        start = start if line else number
        line += part
        if line.endswith("\\"):
            line = line[:-1]
            continue
        found += [
            Said(f"{page}:{int(first) + start}", shlex.join(words))
            for words in _split(line)
        ]
        line = ""
    return found


def _split(line):
    """Words of each command of a line."""
    parts = [[]]
    for word in shlex.split(line, comments=True):
        if word == "&&":
            parts.append([])
        else:
            parts[-1].append(word)
    return [_as_mode(words) for words in parts if words]


def _as_mode(words):
    """A command of the package as the mode that it is; train is the usual one."""
    if words[0] != "biedsnet":
        return words
    flags = [flag for flag in as_flags(words)[1:] if flag != "--mode=train"]
    return ["python", "-m", "biedsnet_jax.main", *flags]


def _is_command(text):
    first, _, rest = text.partition(" ")
    return text.startswith("--") or (
        bool(rest) and (first in PROGRAMS or first.startswith("launch/"))
    )


def _place(page, number, root):
    return f"{page.relative_to(root)}:{number}"
