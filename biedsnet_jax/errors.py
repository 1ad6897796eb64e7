"""The one exception a user's mistake raises, by itself so that modes without jax can raise it too."""


class BadInput(ValueError):
    """A mistake in the user's input: one line that names the file or field, the value and the fix.

    `main` prints it as `biedsnet: <message>` and exits with code 2.
    """
