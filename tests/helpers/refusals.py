"""Checks that a mistake of a user's is refused in one line."""

import pytest

from biedsnet_jax.errors import BadInput


def refused(call, *says) -> None:
    """Checks that `call()` raises one line that holds every part of `says`.

    The parts are field or file, value and fix.
    """
    with pytest.raises(BadInput) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message, message
    for part in says:
        assert str(part) in message, message
