"""Tests that the pages make a site without a broken link, and the API page from
docstrings.
"""

import html
import os
import re
import subprocess
import sys

import pytest
from places import ROOT

import biedsnet_jax as bj


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("material", reason="no extra docs")
    pytest.importorskip("mkdocstrings")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={tmp_path}"],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "index.html").exists()
    assert (tmp_path / "docs" / "quickstart.ipynb").exists()
    page = (tmp_path / "docs" / "api" / "index.html").read_text()
    text = html.unescape(re.sub(r"<[^>]+>", "", page))
    for name in ("load", "train", "evaluate", "get_config"):
        assert f"biedsnet_jax.{name}" in text
        assert getattr(bj, name).__doc__.splitlines()[0] in text
    assert bj.Predictor.file.__doc__.splitlines()[0] in text
