"""Every notebook runs from top to bottom in a fresh kernel without warnings and leaves no file behind; each
is stored with the outputs of such a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from places import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# Where a notebook trains, the fast tier shortens it: (as written, instead of it).
SHORTER = dict.fromkeys(("02-sparse-post-training", "08-train-your-own"), ("STEPS = 1500", "STEPS = 60"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_notebooks():
    names = ["01-first-run", "02-sparse-post-training", "03-which-heads", "04-circuits"]
    names += ["05-attribution-graph", "06-the-papers-figures", "07-fifty-prompts", "08-train-your-own"]
    assert [path.stem for path in NOTEBOOKS] == names


def run(path: Path, folder: Path, shorter: tuple[str, str] | None) -> None:
    """Execute a notebook; what draws must give a picture, and nothing may be said on stderr."""
    shutil.copy(path, folder)
    notebook = nbformat.read(folder / path.name, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if shorter is not None:
        assert sum(cell.source.count(shorter[0]) for cell in code) == 1
        for cell in code:
            cell.source = cell.source.replace(*shorter)
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}
    )
    client.execute()
    outputs = [output for cell in code for output in cell.outputs]
    said = [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    assert said == []
    drawing = [cell for cell in code if "asp.figures." in cell.source]
    assert drawing
    for cell in drawing:
        assert any("image/png" in output.get("data", {}) for output in cell.outputs), cell.source
    assert sum(len(str(output)) for output in outputs) < 2_000_000
    left = {each.name for each in folder.iterdir()} - {path.name}
    assert left == set(), "files go to a temporary folder"


@each_notebook
def test_notebook_runs(path, tmp_path):
    run(path, tmp_path, SHORTER.get(path.stem))


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORTER)
def test_shortened_notebook_runs_in_full(name, tmp_path):
    run(NOTEBOOKS[0].with_name(f"{name}.ipynb"), tmp_path, None)


@each_notebook
def test_notebook_is_stored_executed(path):
    """From top to bottom, without errors, with a picture below what draws, and without times or places."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        assert "execution" not in cell.metadata
        assert all(output.output_type != "error" for output in cell.outputs)
        if "asp.figures." in cell.source:
            assert any("image/png" in output.get("data", {}) for output in cell.outputs), cell.source
    assert path.stat().st_size < 2_000_000
    assert not any(place in path.read_text() for place in ("/tmp/", "/home/", "/root/"))
