"""docs/hlb.ipynb from top to bottom, on a small synthetic set."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
PATH = ROOT / "docs" / "hlb.ipynb"
# What stands behind the cell of parameters.
SMALL = """\
from hlb import synthetic

DATA = hlb.Dataset("synthetic", synthetic.make(120, 60))
RECIPE, RUNS = "smoke", 2
SETTINGS = {"base_depth": 4, "train_examples": 120, "batch_size": 40, "eval_batch_size": 60, "epochs": 2.0,
            "whiten_images": 50, "dtype": "float32"}
"""


def committed() -> nbformat.NotebookNode:
    return nbformat.read(PATH, as_version=4)


@pytest.fixture(scope="module")
def printed() -> dict[str, str]:
    """id of a cell -> what it printed; a picture is its type. A cell that fails raises."""
    book = committed()
    place = next(i for i, cell in enumerate(book.cells) if "parameters" in cell.metadata.get("tags", ()))
    book.cells.insert(place + 1, nbformat.v4.new_code_cell(SMALL))
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
    return {cell.id: "".join(map(as_text, cell.outputs)) for cell in cells}


def as_text(output: nbformat.NotebookNode) -> str:
    """What was printed; of anything shown, its types and its text."""
    return output.get("text") or "\n".join((*output.data, output.data["text/plain"]))


def test_the_notebook_is_committed_as_it_ran_from_top_to_bottom():
    """`jupyter execute --inplace docs/hlb.ipynb` runs it anew."""
    cells = [cell for cell in committed().cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = {cell.id: cell.outputs for cell in cells}
    assert not any(output.output_type == "error" for of in outputs.values() for output in of)
    shown = {name: "".join(map(as_text, of)) for name, of in outputs.items()}
    assert "default device" in shown["env"] and "n = 3" in shown["accuracy"]
    assert "image/png" in shown["plot"] and "image/png" in shown["predict"]
    assert {line.split()[0] for line in shown["check"].splitlines()} == {"right"}
    assert re.search(r"told apart|B is ", shown["compare"])


def test_what_the_notebook_shows_names_no_place_of_the_machine_that_it_ran_on():
    text = PATH.read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|Users|work|var)/", text) and "site-packages" not in text


def test_every_cell_runs_and_the_accuracy_is_of_synthetic_data(printed):
    assert "Cloning" not in printed["install"] and "default device" in printed["env"]
    accuracy = re.search(r"accuracy (0\.\d{4}), mean of n = 2", printed["accuracy"])
    assert "data: synthetic   recipe: smoke" in printed["accuracy"] and accuracy
    assert "image/png" in printed["plot"] and "image/png" in printed["predict"]


def test_the_kernel_is_shown_and_right(printed):
    assert "def reference(" in printed["kernel"] and "tl.program_id(0)" in printed["kernel"]
    verdicts = [line.split()[0] for line in printed["check"].splitlines()]
    assert len(verdicts) > 5 and set(verdicts) == {"right"}


def test_an_idea_is_compared_with_the_recipe_as_it_is(printed):
    assert "{'activation': 'relu'}: accuracy 0." in printed["idea"]
    assert "accuracy A" in printed["compare"] and "train + eval s B" in printed["compare"]
    assert re.search(r"told apart|B is ", printed["compare"])
