"""Fuzz tests: a few inputs each by default, the same every time; 3,200 new ones in all with the profile `thorough`.

python -m pytest tests/fuzz --hypothesis-profile=thorough
"""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "data"))  # made_dicom


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder that the examples of one test share."""
    return tmp_path_factory.mktemp("place")
