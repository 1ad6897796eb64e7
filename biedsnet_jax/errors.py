"""What `main` turns into one line and an exit code; by itself, so that modes without jax can raise it too."""


class BadInput(ValueError):
    """A mistake in the user's input: one line that names the file or field, the value and the fix.

    `main` prints it as `biedsnet: <message>` and exits with code 2.
    """


class Diverged(RuntimeError):
    """Too many non-finite steps in a row."""
