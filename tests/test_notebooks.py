"""The notebooks run from top to bottom, and are stored as they ran: with their outputs, small, and
without paths of a machine."""

import re
from pathlib import Path

import nbformat
import pytest

pytest.importorskip(
    "nbclient", reason="notebooks are run with nbclient: pip install nbclient ipykernel"
)

from scripts.run_notebooks import FOLDER, LARGEST, execute

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(notebook: nbformat.NotebookNode) -> list[set[str]]:
    """What each cell shows: which kinds of output, not their contents."""
    cells = [cell.outputs for cell in code_cells(notebook)]
    return [
        {kind for output in outputs for kind in output.get("data", [output.output_type])}
        for outputs in cells
    ]


def test_there_are_five_notebooks():
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_as_it_ran(path: Path):
    text = path.read_text()
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    assert len(text) <= LARGEST
    assert "**What you get:**" in notebook.cells[0].source
    numbers = [cell.execution_count for cell in code_cells(notebook)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert any("image/jpeg" in kind for kind in kinds(notebook))
    assert not [kind for kind in kinds(notebook) if "error" in kind]
    written = [
        o.text for cell in code_cells(notebook) for o in cell.outputs if o.output_type == "stream"
    ]
    assert not re.search(r"/(home|root|tmp|work|usr)/", "".join(written)), (
        "a path of the machine that it ran on"
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_shows_what_is_stored(path: Path):
    assert kinds(execute(path)) == kinds(nbformat.read(path, as_version=4))
