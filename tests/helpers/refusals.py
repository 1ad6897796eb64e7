"""What every mistake of a user's must look like."""

import pytest

from biedsnet_jax.errors import BadInput


def refused(call, *says) -> None:
    """`call()` raises one line that holds every part of `says`: field or file, value
    and fix.
    """
    with pytest.raises(BadInput) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message, message
    for part in says:
        assert str(part) in message, message
