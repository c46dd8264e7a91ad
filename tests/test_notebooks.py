"""The notebooks run from top to bottom, and are stored as they ran: with their outputs, small, and
without paths of a machine."""

import re
from copy import deepcopy
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


FORGET = """\
%reset -f
import os, sys, tempfile
os.chdir(tempfile.mkdtemp(dir=os.getcwd()))
_ = [sys.modules.pop(name) for name in [*sys.modules] if name.split(".")[0] == "clip2sam"]
del os, sys, tempfile, _"""
"""Between two notebooks: an empty folder, no names, and nothing of clip2sam imported."""

SMALLER = {
    ', 50, dim), draw_set("others", 600_000, 50, dim)':
        ', 12, dim), draw_set("others", 600_000, 12, dim)',
    ', 24, clear), draw_set("clear_others", 600_000, 24, clear)':
        ', 12, clear), draw_set("clear_others", 600_000, 12, clear)',
    '("validation", 4, labels=12)': '("validation", 2, labels=6)',
    '("test", 3, labels=12, kind="several")': '("test", 2, labels=6, kind="several")',
}  # fmt: skip
"""Fewer images show the same kinds of output."""


@pytest.mark.timeout(600)
def test_they_run_and_show_what_is_stored():
    """One kernel for all, because importing PyTorch takes longer than most of them."""
    stored = [nbformat.read(path, as_version=4) for path in NOTEBOOKS]
    together = nbformat.v4.new_notebook()
    for notebook in stored:
        together.cells += [nbformat.v4.new_code_cell(FORGET), *deepcopy(code_cells(notebook))]
    for many, few in SMALLER.items():
        (cell,) = (cell for cell in together.cells if many in cell.source)
        cell.source = cell.source.replace(many, few)
    execute(together)
    shown = kinds(together)
    for path, notebook in zip(NOTEBOOKS, stored, strict=True):
        expected = [set(), *kinds(notebook)]
        assert shown[: len(expected)] == expected, path.name
        del shown[: len(expected)]
    assert shown == []


def printed(number: str) -> str:
    """All that a notebook prints, and its tables, as stored."""
    (path,) = (path for path in NOTEBOOKS if path.name.startswith(number))
    cells = code_cells(nbformat.read(path, as_version=4))
    outputs = [output for cell in cells for output in cell.outputs]
    return "\n".join(
        [
            output.get("text") or output.get("data", {}).get("text/markdown", "")
            for output in outputs
        ]
    )


def test_the_first_begins_with_a_model_and_a_file():
    (path,) = (path for path in NOTEBOOKS if path.name.startswith("01"))
    first, second = code_cells(nbformat.read(path, as_version=4))[:2]
    assert 'clip2sam.load("tiny")' in first.source
    assert 'segmenter("scene.png", ' in second.source


def test_the_second_finds_why_a_label_is_missed():
    """One thing changed at a time: only without its stripes the circle is a circle."""
    rows = re.findall(r"^(.+?)  +red thing .*red circle (\S+)  red moon", printed("02"), re.M)
    scores = {what: float(score) for what, score in rows}
    changes = ["as it is", "without the cross", "away from the corner", "without its stripes"]
    assert list(scores) == changes
    assert [scores[what] >= 0.32 for what in changes] == [False, False, False, True]


def test_the_thirds_sheet_has_masks_in_every_image():
    counts = re.search(r"masks in each: \[(.*)\]", printed("03"))
    assert counts
    masks = [int(count) for count in counts[1].split(", ")]
    assert len(masks) == 8
    assert min(masks) > 0


def test_the_fourth_shows_where_tuning_helps_and_where_not():
    rows = re.findall(r"\| mean \| .*?\*\*(\S+)\*\* .*?\*\*(\S+)\*\*", printed("04"))
    (dim, dim_preset), (clear, clear_preset) = [(float(a), float(b)) for a, b in rows]
    assert dim > dim_preset + 0.02
    assert clear <= clear_preset
