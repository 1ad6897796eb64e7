"""Fuzz tests: a few inputs each by default, the same every time; 3,200 new ones in all
with the profile `thorough`.

python -m pytest tests/fuzz --hypothesis-profile=thorough
"""

import pytest


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder that the examples of one test share."""
    return tmp_path_factory.mktemp("place")
