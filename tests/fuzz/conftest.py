"""Fuzz tests try a few inputs each, the same every time.

With the profile `thorough` they try 3,200 new ones in all:

python -m pytest tests/fuzz --hypothesis-profile=thorough
"""

import pytest


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder that the examples of one test share."""
    return tmp_path_factory.mktemp("place")
