"""Checkpoints that are damaged, by whatever: one line, and the file is left as it was."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hlb
from hlb import synthetic

TINY = {"base_depth": 2, "train_examples": 40, "batch_size": 20, "eval_batch_size": 40, "epochs": 1.0,
        "whiten_images": 20, "dtype": "float32", "groups": "short", "group_widths": "1"}  # fmt: skip
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3),
    st.lists(st.floats(), max_size=3), st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.builds(torch.zeros, st.lists(st.integers(0, 3), max_size=4).map(tuple),
              dtype=st.sampled_from((torch.float32, torch.int64, torch.complex64, torch.bool))),
)  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model.pt"
    data = hlb.Dataset("synthetic", synthetic.make(40, 20), classes=synthetic.CLASSES)
    hlb.train("smoke", settings=TINY, data=data, save=path, ledger=None, quiet=True)
    return path


def loaded(path) -> None:
    """It predicts, or is refused in one line that names it; it is there, byte for byte."""
    before = path.read_bytes()
    try:
        logits = hlb.load(path).predict(torch.zeros(1, 32, 32, 3, dtype=torch.uint8), logits=True)
    except hlb.UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert logits.shape[0] == 1
    assert path.read_bytes() == before


MANY = settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)


@MANY
@given(st.data())
def test_bytes_that_changed_are_one_line_or_a_model(saved, tmp_path, data):
    content = bytearray(saved.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content)))) :]
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    loaded(path)


@MANY
@given(st.data())
def test_entries_that_changed_are_one_line_or_a_model(saved, tmp_path, data):
    content = copy.deepcopy(torch.load(saved, weights_only=True))
    place = content
    while isinstance(place, dict) and data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict):
            break
        place = place[key]
    key = data.draw(st.sampled_from(sorted(place)))
    if data.draw(st.booleans()):
        place[key] = data.draw(VALUES)
    else:
        del place[key]
    path = tmp_path / "model.pt"
    torch.save(content, path)
    loaded(path)
