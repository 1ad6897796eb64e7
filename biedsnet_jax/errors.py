"""What `main` turns into one line and an exit code; by itself, so that modes without
jax can raise it too.
"""

import sys
from collections.abc import Callable, Sequence


class BadInput(ValueError):
    """A mistake in the user's input: one line that names the file or field, the value
    and the fix.

    `main` prints it as `biedsnet: <message>` and exits with code 2.
    """


def reason(error: Exception, *, most: int = 200) -> str:
    """What another library says went wrong, fit for one line: the first line, or the
    type where nothing is said.
    """
    text = (getattr(error, "strerror", None) or str(error)).strip() or type(
        error
    ).__name__
    return shown(text.splitlines()[0], most=most)


def shown(value: object, *, most: int = 60) -> str:
    """A value of a broken file fit for one line."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    return text if len(text) <= most else f"{text[:most]}..."


def listed(names: Sequence[str]) -> str:
    """The first few names in a line, such as "a, b, c and 5 more"."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


class Diverged(RuntimeError):
    """Too many non-finite steps in a row."""


class Preempted(BaseException):
    """A signal ended the run; the message says how to go on, `code` is the exit code.

    As KeyboardInterrupt, no `except Exception` takes it for a fault.
    """

    def __init__(self, text: str, code: int = 0):
        super().__init__(text)
        self.code = code


def exit_code(main: Callable[[], int | None]) -> int:
    """What `main` of a script returns, 0 for nothing; after one line 2 for a mistake, 1
    for a diverged training.
    """
    try:
        return main() or 0
    except (BadInput, Diverged) as error:
        print(f"biedsnet: {error}", file=sys.stderr)
        return 2 if isinstance(error, BadInput) else 1
