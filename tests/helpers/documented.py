"""Reads this project's Markdown pages: fenced blocks, code spans, links and headings.

A fenced block without a language, or of bash, holds commands. In such a block `\\` joins
a line to the next, and `#` starts a comment.
"""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from places import ROOT

_SPAN = r"`([^`\n]+(?:\n[^`\n]+)*)`"


class Said(NamedTuple):
    """Something that a page says."""

    # As "README.md:12".
    place: str
    text: str


class Block(NamedTuple):
    """A fenced block; its place is that of its first line."""

    place: str
    language: str
    lines: list[str]


def pages() -> list[Path]:
    """Pages that people wrote; the others under results/ are generated."""
    top = [ROOT / "README.md", ROOT / "RESULTS.md", ROOT / "tests" / "README.md"]
    notes = sorted((ROOT / "results").glob("*/notes.md"))
    return [*top, *sorted((ROOT / "docs").glob("*.md")), *notes]


def blocks(page: Path) -> list[Block]:
    """Fenced blocks of a page. Raises ValueError where one never ends."""
    found, inside = [], None
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        if not line.startswith("```"):
            if inside is not None:
                inside.lines.append(line)
        elif inside is None:
            inside = Block(_place(page, number + 1), line[3:].strip(), [])
        else:
            found.append(inside)
            inside = None
    if inside is not None:
        raise ValueError(f"{inside.place} is a block that never ends.")
    return found


def commands(block: Block) -> list[str]:
    """Commands of a block, a line each; none where the block holds something else."""
    if block.language not in ("", "bash"):
        return []
    text = "\n".join(block.lines).replace("\\\n", " ")
    split = [shlex.split(line, comments=True) for line in text.splitlines()]
    # The shell joins commands by &&, which shlex reads as a word.
    joined = [shlex.join(words).replace(" '&&' ", "\n") for words in split if words]
    return "\n".join(joined).splitlines()


def spans(page: Path) -> list[Said]:
    """Code spans outside of blocks, also those that go over the end of a line."""
    return _matches(page, _SPAN, _prose(page))


def examples(page: Path) -> list[Said]:
    """Blocks of Python, in order."""
    return [
        Said(block.place, "\n".join(block.lines))
        for block in blocks(page)
        if block.language == "python"
    ]


def links(page: Path) -> list[Said]:
    """Targets of links and pictures inside this project."""
    prose = re.sub(r"`[^`\n]*`", "", _prose(page))
    return _matches(page, r"\]\((?!\w+:)([^)\s]+)\)", prose)


def anchors(page: Path) -> set[str]:
    """What `#...` may name on a page: its headings as GitHub writes them."""
    titles = re.findall(r"^#+ +(.*?) *$", _prose(page), flags=re.MULTILINE)
    kept = [re.sub(r"[^\w\- ]", "", title.lower()) for title in titles]
    return {title.replace(" ", "-") for title in kept}


def _prose(page):
    """The text of a page, with the lines of blocks left empty."""
    lines, inside = [], False
    for line in page.read_text().splitlines():
        fence = line.startswith("```")
        lines.append("" if inside or fence else line)
        inside ^= fence
    return "\n".join(lines)


def _matches(page, pattern, text):
    found = []
    for match in re.finditer(pattern, text):
        line = text.count("\n", 0, match.start()) + 1
        found.append(Said(_place(page, line), " ".join(match.group(1).split())))
    return found


def _place(page, line):
    return f"{page.relative_to(ROOT)}:{line}"
