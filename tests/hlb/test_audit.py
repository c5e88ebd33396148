"""The audit of the clock: passes for the engine as it is, fails for one that works off the clock."""

import dataclasses
import json

import pytest
import tape
import torch

import hlb
import kernels
from hlb import audit, execution, synthetic
from hlb.cli import main
from hlb.execution import resolve
from hlb.train import Trainer

SETTINGS = {"base_depth": 4, "train_examples": 120, "batch_size": 40, "eval_batch_size": 60, "epochs": 2.0,
            "whiten_images": 50, "sizes": "20,32", "dtype": "float32"}  # fmt: skip
SHORT = {"views": "none", "sizes": "20", "train_examples": 24, "batch_size": 8, "eval_batch_size": 24}


@pytest.fixture(scope="module")
def data() -> hlb.Dataset:
    return hlb.Dataset("synthetic", synthetic.make(120, 60))


def audited(data, kind=Trainer, name="smoke", mode="off", **settings) -> Trainer:
    recipe, execution = resolve(hlb.recipe(name, SETTINGS | settings), hlb.Execution(compile="off"))
    return kind(recipe, dataclasses.replace(execution, graph=mode), data, audit.Audit())


@pytest.mark.parametrize("name", ["smoke", "seed"])
def test_run_does_everything_once_and_on_its_clock(data, name):
    average = {"averaging_epochs": 1.0} if name == "seed" else {}
    rows, wrong = audit.run(audited(data, name=name, **average))
    assert not wrong
    counts = {what: on for what, _, on, _ in rows}
    assert counts["augmentation"] == counts["statistics"] == 6 and counts["order"] == 2
    assert counts["whitening"] == 1 and counts["reset"] >= 1 and counts["test-time views"] >= 2
    updates = {what: on for what, on in counts.items() if what.startswith("updates")}
    kinds = {"smoke": (6, 6, 6, 3), "seed": (5, 5, 5)}[name]  # the stem freezes; the first rate of seed is 0
    assert [*updates.values()] == [*kinds]


@pytest.mark.parametrize("mode", ["step", "run"])
def test_replays_of_a_graph_count_for_what_was_captured(data, mode, monkeypatch):
    if not torch.cuda.is_available():
        monkeypatch.setattr(execution, "capture", tape.capture)
    rows, wrong = audit.run(audited(data, mode=mode))
    counts = {row[0]: row[2] for row in rows}
    assert not wrong and counts["augmentation"] == counts["updates of filters"] == 6


class Early(Trainer):
    """Augments the batches of a run before its clock starts."""

    def run(self, seed, *rest):
        self.make()
        return super().run(seed, *rest)

    def make(self):
        augment, ids, epoch = self.step.augment, torch.arange(40), torch.tensor(0)
        made = {size: augment(self.train_images, ids, self.step.seed, epoch, size=size) for size in (20, 0)}
        self.step.augment = lambda *_, size: made[size]


def test_augmentation_before_the_clock_fails_the_audit(data):
    _, wrong = audit.run(audited(data, Early))
    assert wrong == ["augmentation: 0 on the clock, 6 belong there", "augmentation: 2 off the clock"]


def test_augmentation_at_build_fails_the_audit(data):
    ours = audited(data, Early)
    ours.make()
    ours.make = lambda: None
    _, wrong = audit.run(ours)
    assert wrong == ["augmentation: 0 on the clock, 6 belong there"]


class Whitened(Trainer):
    """Keeps the filters of its build."""

    def _prepare(self, seed, images):
        if not hasattr(self, "build_seconds"):
            super()._prepare(seed, images)
        else:
            self.step.reset(seed)


def test_whitening_at_build_fails_the_audit(data):
    _, wrong = audit.run(audited(data, Whitened))
    assert wrong == ["whitening: 0 on the clock, 1 belong there"]


class Idle(torch.optim.SGD):
    """An optimizer that leaves every weight as it is."""

    def step(self, closure=None):
        pass


@pytest.mark.parametrize("optimizer, faults", [
    ("torch.optim.AdamW", []),
    (Idle, ["updates of filters: 0 on the clock, 1 belong there"]),
])  # fmt: skip
def test_updates_by_an_optimizer_of_torch_are_counted(data, optimizer, faults):
    rows, wrong = audit.run(audited(data, optimizer=optimizer, lr=1e-3, **SHORT), eval_every=0)
    updates = {what: on for what, _, on, _ in rows if what.startswith("updates")}
    assert wrong == faults
    assert [*updates.values()] == [0 if faults else 6, 6, 6, 3]  # filters, linear, biases, stem


def test_an_op_that_updates_nothing_fails_the_audit(data, monkeypatch):
    monkeypatch.setattr(execution, "capture", tape.capture)
    monkeypatch.setitem(kernels.BACKENDS["reference"], "muon", lambda *_, **__: None)
    _, wrong = audit.run(audited(data, mode="run", **SHORT), eval_every=0)
    assert wrong == ["updates of filters: 0 on the clock, 6 belong there"]


class Practised(Trainer):
    """Does the last step of each epoch once more, off the clock; and moves all weights between two."""

    def _row(self, epoch, *rest):
        self.optimizer.step_index -= 1
        self.steppers[self.plan[self.starts[epoch + 1] - 1]]()
        for arena in self.optimizer.arenas if epoch == 0 else ():
            arena.load(arena.value * 0.5)
        return super()._row(epoch, *rest)


def test_updates_off_the_clock_and_between_steps_fail_the_audit(data):
    _, wrong = audit.run(audited(data, Practised, **SHORT), eval_every=0)
    each = {"filters": 3, "linear": 3, "biases": 3, "stem": 2}
    assert {f"updates of {kind}: {off} off the clock" for kind, off in each.items()} <= {*wrong}


def test_command_prints_what_was_counted_and_says_that_the_clock_is_honest(
    data, capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr("hlb.runs.experiment.load", lambda what: data)
    settings = [f"{field}={value}" for field, value in SETTINGS.items()]
    assert main(["audit", "--recipe", "smoke", "--set", *settings, "--json", str(tmp_path / "a.json")]) == 0
    out = capsys.readouterr().out
    assert "augmentation" in out and "the clock is honest" in out
    content = json.loads((tmp_path / "a.json").read_text())
    assert (
        content["wrong"] == []
        and {"what": "order", "expected": 2, "on_clock": 2, "off_clock": 0} in content["calls"]
    )
