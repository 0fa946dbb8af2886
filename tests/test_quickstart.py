import json
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient


@pytest.mark.system
def test_quickstart_notebook_runs_on_the_sample(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "docs" / "quickstart.ipynb", as_version=4)
    resources = {"metadata": {"path": str(ROOT / "docs")}}
    NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output["text"] for output in outputs if output["output_type"] == "stream")
    assert "error:" not in text and "Traceback" not in text, text
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    (metrics,) = Path(tmp_path).glob("quickstart-*/reports/sample/*/*/metrics.json")
    assert f"'accuracy': {json.loads(metrics.read_text())['accuracy']}" in text
