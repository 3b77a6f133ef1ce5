"""The notebooks run from top to bottom, in an empty folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="notebooks are run with sparsepo[docs]")
nbclient = pytest.importorskip("nbclient", reason="notebooks are run with sparsepo[docs]")

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(path, as_version=4)
    assert all(cell.outputs or "print" not in cell.source for cell in notebook.cells if cell.cell_type == "code"), (
        "the stored outputs are what the site shows: run the notebook and save it"
    )
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    last = notebook.cells[-1] if notebook.cells[-1].cell_type == "code" else notebook.cells[-2]
    assert last.outputs


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_are_results_only(path):
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            assert output.get("name") != "stderr", f"a warning is stored: {output.get('text')}"
            assert str(output.get("text", "text")).strip(), "an empty line is stored as output"
