"""Text from anywhere, shown by Markdown as it is."""

import re
import unicodedata

# What Markdown would take for markup. An underscore inside a word is none.
_MARKUP = re.compile(r"[\\`*\[\]|#~$]|(?<![^\W_])_|_(?![^\W_])")
_ENTITY = re.compile(r"&(?=#?\w+;)")


class Marked(str):
    """Text that is Markdown already, made by this project: `markdown` leaves its markup
    alone.
    """


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line: names of files and folders hold
    anything.
    """
    if isinstance(text, Marked):
        return text
    line = " ".join(shown(text).split())
    line = _ENTITY.sub("&amp;", line).replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(r"\\\g<0>", line)


def shown(text: str) -> str:
    """The text, a mark in place of what is no character: control codes, bytes of no
    encoding.
    """
    return "".join(_character(c) for c in text)


def _character(c):
    if c.isspace() or unicodedata.category(c) not in ("Cc", "Cs"):
        return c
    return "\ufffd"
