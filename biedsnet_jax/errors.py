"""Exceptions that `main` turns into one line and an exit code; imports no jax."""

import sys
from collections.abc import Callable, Sequence


class BadInput(ValueError):
    """A mistake in the user's input.

    The message is one line: a sentence that names the file or field and its value, and
    one with the fix. `main` prints it as `biedsnet: <message>` and exits with code 2.
    """


def reason(error: BaseException, *, most: int = 200) -> str:
    """First line of another library's error; the error's type where it has no text."""
    text = getattr(error, "strerror", None) or str(error)
    text = text.strip() or type(error).__name__
    return shown(text.splitlines()[0], most=most)


def shown(value: object, *, most: int = 60) -> str:
    """Any value as text that fits one line: printable, and shortened to `most`."""
    # A line break or an escape sequence would garble the line.
    printable = "".join(c if c.isprintable() else " " for c in str(value))
    text = " ".join(printable.split())
    return text if len(text) <= most else f"{text[:most]}..."


def listed(names: Sequence[str]) -> str:
    """The first few names on one line, such as "a, b, c and 5 more"."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


class Diverged(RuntimeError):
    """Training had too many non-finite steps in a row."""


class Preempted(BaseException):
    """A signal ended the run; the message says how to go on, `code` is the exit code.

    Like KeyboardInterrupt it is no Exception, so that no handler takes it for a fault.
    """

    def __init__(self, text: str, code: int = 0):
        super().__init__(text)
        self.code = code


def exit_code(main: Callable[[], int | None]) -> int:
    """Exit code of a script's `main`: what it returns, or 0.

    After one line on stderr it is 2 for a mistake and 1 for a diverged training.
    """
    try:
        return main() or 0
    except (BadInput, Diverged) as error:
        print(f"biedsnet: {error}", file=sys.stderr)
        return 2 if isinstance(error, BadInput) else 1
