"""Tests that the notebook runs from its first cell to its last, and is kept without
outputs.
"""

import json
import re

import pytest
from places import ROOT

NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"


def code_cells(cells):
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_the_notebook_is_kept_without_outputs():
    cells = code_cells(json.loads(NOTEBOOK.read_text())["cells"])
    assert cells
    assert all(cell["outputs"] == [] for cell in cells)
    assert all(cell["execution_count"] is None for cell in cells)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    # A reader's kernel knows neither the flags of the tests nor a cache.
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    cells = code_cells(notebook.cells)
    shown = [
        output
        for cell in cells
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    # Two of prediction.plot and one of the notebook's own, each once.
    assert len(shown) == 3
    texts = [
        output.text for cell in cells for output in cell.outputs if "text" in output
    ]
    (dice,) = re.findall(r"^Dice (\S+) on", "".join(texts), re.MULTILINE)
    # It has learnt something; an untrained network is below 0.1.
    assert float(dice) > 0.4
    (wrong, right) = re.findall(
        r"(\S+) bits where wrong, (\S+) where right", "".join(texts)
    )[0]
    assert float(wrong) > 2 * float(right)
    assert (tmp_path / "scan_mask.nii.gz").exists()
