"""Trainers of a sweep that share a network: what each trains is what it trains alone, to the bit."""

import dataclasses

import pytest
import tape
import torch

import hlb
from hlb import execution, synthetic
from hlb.execution import resolve
from hlb.study import trainers
from hlb.study.grid import Configuration
from hlb.study.trainers import IN_TABLES, Trainers, family
from hlb.train import Trainer

SIZES = {"base_depth": 2, "train_examples": 0, "batch_size": 10, "eval_batch_size": 20, "whiten_images": 20,
         "groups": ("short",), "group_widths": (1.0,),
         "dtype": "float32", "views": "none", "sizes": (12, 16), "hard_from": 1, "hard_fraction": 0.5,
         "averaging": "tail", "averaging_epochs": 1.0, "averaging_every": 2, "averaging_decay": 0.5,
         "epochs": 2.0, "whiten_bias_epochs": 1.0}  # fmt: skip
# Every field that acts by tables is changed in one of these.
CHANGES = {
    "longer": {"epochs": 3.2, "lr": 0.1, "lr_curve": 0.7},
    "other images": {"sizes": (16, 12), "hard_from": 0, "hard_fraction": 0.2},
    "cycle": {"schedule": "one_cycle", "warmup": 0.3, "final_lr": 0.3, "final_epochs": 0.5},
    "warm": {"initial_lr": 0.5, "warmup": 0.3, "whiten_bias_epochs": 0.4,
             "averaging_epochs": 0.5, "averaging_every": 1, "averaging_decay": 0.9},
}  # fmt: skip


@pytest.fixture(scope="module")
def dataset():
    tensors = synthetic.make(60, 20)
    return hlb.Dataset("small", tensors)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def configuration(name: str, graph: str = "off", **changes) -> Configuration:
    recipe = hlb.recipe("smoke", SIZES | changes)
    recipe, how = resolve(recipe, hlb.Execution("cpu", threads=1))
    return Configuration(name, {}, recipe, dataclasses.replace(how, graph=graph))


def trained(trainer: Trainer, seed: int = 3) -> list[torch.Tensor]:
    run = trainer.run(seed, eval_every=0)
    assert run.status == "ok"
    weights = [arena.value.clone() for arena in trainer.optimizer.arenas]
    losses = torch.tensor([row["train_loss"] for row in run.epochs])
    return [*weights, trainer.network.running.clone(), losses, torch.tensor(run.accuracy)]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_every_field_that_acts_by_tables_is_tried():
    assert set().union(*CHANGES.values()) - {"lr"} == IN_TABLES


def test_runs_of_trainers_that_share_a_network_are_those_of_trainers_alone(dataset):
    first = configuration("first")
    others = [configuration(name, **change) for name, change in CHANGES.items()]
    sharing = Trainers(dataset, [first, *others])
    head, _ = sharing.ready(first)
    alone = trained(Trainer(first.recipe, first.execution, dataset))
    assert same(trained(head), alone)
    for other in others:
        trainer, _ = sharing.ready(other)
        assert trainer.network is head.network, other.name
        expected = trained(Trainer(other.recipe, other.execution, dataset))
        assert same(trained(trainer), expected), other.name
        assert not same(alone, expected), other.name
        sharing.forget(other.name)
    assert same(trained(head), alone)  # whatever was trained between


@pytest.mark.parametrize("graph", ["step", "run"])
def test_captured_steps_that_share_a_network_replay_their_own_tables(dataset, monkeypatch, graph):
    monkeypatch.setattr(execution, "capture", tape.capture)
    short = {"epochs": 1.0, "hard_from": 0}
    one = configuration("one", graph, **short)
    other = configuration("other", graph, **short | {"epochs": 1.6, "lr": 0.1, "hard_fraction": 0.4})
    sharing = Trainers(dataset, [one, other])
    pair = [sharing.ready(each)[0] for each in (one, other)]
    assert pair[0].network is pair[1].network
    plain = [dataclasses.replace(each.execution, graph="off") for each in (one, other)]
    alone = [trained(Trainer(each.recipe, how, dataset)) for each, how in zip((one, other), plain)]
    for trainer, expected in zip(pair, alone):
        assert same(trained(trainer), expected)


@pytest.mark.parametrize(
    "change",
    [{"label_smoothing": 0.1}, {"base_depth": 8}, {"batch_size": 12}, {"bias_lr": 0.02},
     {"hard_fraction": 1.0}, {"muon_momentum": 0.5}, {"views": "flip"}, {"activation": "silu"}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_what_is_compiled_or_captured_needs_a_network_of_its_own(change):
    assert family(configuration("a"), 60) != family(configuration("b", **change), 60)


def test_a_build_that_fails_leaves_those_that_share_its_network_as_they_were(dataset, monkeypatch):
    one, other = configuration("one"), configuration("other", epochs=3.2)
    sharing = Trainers(dataset, [one, other])
    head, _ = sharing.ready(one)
    before = trained(head)

    def broken(self, variant=None, step=0):
        raise RuntimeError("no more memory")

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "timed_step", broken)
        with pytest.raises(RuntimeError, match="no more memory"):
            sharing.ready(other)
    assert same(trained(head), before) and not sharing.has(other)


def test_a_trainer_that_shares_a_network_says_what_it_is_itself(dataset):
    one, other = configuration("one"), configuration("other", epochs=3.2)
    sharing = Trainers(dataset, [one, other])
    first, second = (sharing.ready(each)[1] for each in (one, other))
    assert (first["recipe_fields"]["epochs"], second["recipe_fields"]["epochs"]) == (2.0, 3.2)
    assert first["build_seconds"] != second["build_seconds"] and first["commit"] == second["commit"]


def test_momenta_are_a_table_where_they_warm_up(dataset):
    warm = {"muon_momentum_warmup": 1.0, "epochs": 1.6}
    one = configuration("one", **warm)
    other = configuration("other", **warm | {"muon_momentum_start": 0.3, "muon_momentum": 0.5})
    sharing = Trainers(dataset, [one, other])
    pair = [sharing.ready(each)[0] for each in (one, other)]
    assert pair[0].network is pair[1].network
    assert family(one, 60) != family(configuration("a"), 60)
    for trainer in pair:
        assert same(trained(trainer), trained(Trainer(trainer.recipe, trainer.execution, dataset)))


def test_rate_of_filters_by_sgd_is_in_their_decay_and_not_shared():
    one, other = (configuration("", optimizer="sgd", lr=rate) for rate in (0.1, 0.2))
    assert family(one, 60) != family(other, 60)


def test_trainers_of_a_sweep_of_fixed_runs_share_nothing(dataset, monkeypatch):
    built = []
    monkeypatch.setattr(trainers, "Trainer", lambda *a, **k: built.append(k) or Trainer(*a, **k))
    Trainers(dataset).ready(configuration("a"))
    assert built == [{}]
