"""examples/: each runs, at toy size, and what it shows is so."""

import importlib.util
from pathlib import Path

import pytest
from PIL import Image

import hlb
from hlb import synthetic

FOLDER = Path(__file__).parents[1] / "examples"
TINY = {"base_depth": 4, "train_examples": 120, "batch_size": 40, "eval_batch_size": 60, "epochs": 1.0,
        "whiten_images": 50, "dtype": "float32", "groups": "short", "group_widths": "1"}  # fmt: skip
EXAMPLES = {path.stem: path for path in sorted(FOLDER.glob("*.py"))}


@pytest.fixture(scope="module")
def tensors():
    return synthetic.make(120, 60)


@pytest.fixture(autouse=True)
def small(tensors, tmp_path, monkeypatch):
    """The built-in set is a small one; files go elsewhere."""
    monkeypatch.setattr(synthetic, "make", lambda *_: tensors)
    monkeypatch.chdir(tmp_path)


def example(name: str):
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES[name])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_run_here_and_says_how_to_start_it():
    assert len(EXAMPLES) >= 4
    for name, path in EXAMPLES.items():
        assert any(test.startswith(f"test_the_example_of_{name}") for test in globals())
        assert f"    python examples/{name}.py" in path.read_text(encoding="utf-8")


def test_the_example_of_own_data_in_arrays_and_in_a_folder(tmp_path, monkeypatch, capsys):
    own_data = example("own_data")
    sizes = TINY | {"train_examples": 0}
    accuracy, words = own_data.main(**sizes)
    assert accuracy > 0.9 and len(words) == 5 and set(words) <= {"dark", "bright"}
    for name, shade in (("black", 20), ("white", 230)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(30):
            Image.new("RGB", (40, 36), (shade, shade + i % 5, shade)).save(
                tmp_path / "images" / name / f"{i}.png"
            )
    monkeypatch.setenv("HLB_CACHE", str(tmp_path / "cache"))
    _, words = own_data.main(str(tmp_path / "images"), tmp_path / "model.pt", **sizes | {"batch_size": 12})
    assert set(words) <= {"black", "white"} and hlb.load(tmp_path / "model.pt").classes == ("black", "white")


def test_the_example_of_own_optimizer():
    accuracies = example("own_optimizer").main(data="synthetic", **TINY | {"epochs": 2.0})
    assert accuracies.keys() == {"muon", "Lion"} and accuracies["muon"] != accuracies["Lion"]


def test_the_example_of_own_callback(capsys):
    reached = example("own_callback").main(data="synthetic", goal=0.0, **TINY)
    assert [(seed, epoch) for seed, epoch, _ in reached] == [(0, 1), (1, 1)]


def test_the_example_of_sweep(tmp_path, capsys):
    sweep = example("sweep").main
    accuracies = sweep(data="synthetic", **TINY)
    lines = (tmp_path / "results" / "sweep-example.jsonl").read_text().splitlines()
    assert (len(accuracies), len(lines)) == (3, 9)
    assert sweep(data="synthetic", **TINY) == accuracies  # nothing is trained again
