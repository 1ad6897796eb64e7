"""Text from anywhere, escaped so that Markdown shows it as it is."""

import re
import unicodedata

# Characters that Markdown takes for markup. An underscore inside a word is no markup.
_MARKUP = re.compile(r"[\\`*\[\]|#~$]|(?<![^\W_])_|_(?![^\W_])")
_ENTITY = re.compile(r"&(?=#?\w+;)")


class Marked(str):
    """Markdown made by this project, which `escaped` leaves as it is."""


def escaped(text: str) -> str:
    """Text on one line that Markdown shows as it is, such as the name of a file."""
    if isinstance(text, Marked):
        return text
    line = " ".join(shown(text).split())
    line = _ENTITY.sub("&amp;", line).replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(r"\\\g<0>", line)


def shown(text: str) -> str:
    """The text with a mark for each control code and each byte of no encoding."""
    return "".join(_character(c) for c in text)


def _character(c):
    if c.isspace() or unicodedata.category(c) not in ("Cc", "Cs"):
        return c
    return "\ufffd"
