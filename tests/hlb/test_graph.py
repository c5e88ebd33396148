"""Graphs of a step and of a whole run: what they replay is what the uncaptured run does. On a GPU they are
CUDA graphs, elsewhere recorded operators with the same rules (tape.py).
"""

import dataclasses

import pytest
import tape
import torch

import hlb
import kernels
from hlb import execution, schedule, synthetic
from hlb.averaging import Averaging, table
from hlb.execution import resolve
from hlb.networks import Network
from hlb.optimizer import Optimizer
from hlb.step import Variant, plan
from hlb.train import Trainer

CUDA = torch.cuda.is_available()
SETTINGS = {"base_depth": 4, "train_examples": 120, "batch_size": 40, "eval_batch_size": 40, "epochs": 3.0,
            "whiten_images": 50, "whiten_bias_epochs": 0.5, "sizes": "20,24,32",
            "dtype": "float32"}  # fmt: skip
AVERAGES = {
    "none": {},
    "tail": {"averaging": "tail", "averaging_epochs": 1, "averaging_every": 2, "averaging_decay": 0.8},
}


@pytest.fixture(scope="module")
def data() -> hlb.Dataset:
    return hlb.Dataset("synthetic", synthetic.make(120, 60))


@pytest.fixture(autouse=True)
def captured(monkeypatch):
    if not CUDA:
        monkeypatch.setattr(execution, "capture", tape.capture)


def trainer(data, mode: str, name: str = "smoke", **settings) -> Trainer:
    recipe, execution = resolve(
        hlb.recipe(name, SETTINGS | settings), hlb.Execution(compile="off", deterministic=True)
    )
    return Trainer(recipe, dataclasses.replace(execution, graph=mode), data)


def outcome(ours: Trainer, seed: int) -> tuple[torch.Tensor, list[float], float]:
    run = ours.run(seed, eval_every=0)
    state = torch.cat([tensor.double().flatten().cpu() for tensor in ours.network.state_dict().values()])
    return state, [row["train_loss"] for row in run.epochs], run.accuracy


@pytest.mark.parametrize(
    "mode, averages, hard", [("step", "none", 0.4), ("run", "tail", 1), ("run", "none", 0.4)]
)
def test_captured_runs_equal_uncaptured_ones_bit_for_bit_whatever_the_seed(data, mode, averages, hard):
    settings = AVERAGES[averages] | {"hard_fraction": hard, "hard_from": 1}
    plain, ours = (trainer(data, how, **settings) for how in ("off", mode))
    ends = []
    for seed in (3, 4, 3):
        (state, *numbers), (expected, *theirs) = outcome(ours, seed), outcome(plain, seed)
        assert torch.equal(state, expected) and numbers == theirs
        ends.append(state)
    assert torch.equal(ends[0], ends[2]) and not torch.equal(ends[0], ends[1])


@pytest.mark.parametrize("mode", ["step", "run"])
def test_captured_runs_of_the_seed_recipe_with_its_average_and_last_short_batch(data, mode):
    settings = {"averaging_epochs": 1, "batch_size": 50, "drop_last": False, "sizes": "32", "epochs": 2.0}
    plain, ours = (trainer(data, how, "seed", **settings) for how in ("off", mode))
    (state, *numbers), (expected, *theirs) = outcome(ours, 5), outcome(plain, 5)
    assert torch.equal(state, expected) and numbers == theirs


LEVERS = {
    "falling hard fraction": {"hard_fraction": "0.8,0.4", "hard_from": 1},
    "hard images from the first epoch on": {"hard_fraction": 0.5, "hard_from": 0, "sizes": "16,20"},
    "batch sizes": {"batch_size": "20,40", "lr_scaling": 0.5, "hard_fraction": 0.7, "hard_from": 1},
    "label smoothing of hard images": {"hard_fraction": 0.5, "hard_from": 1, "hard_label_smoothing": 0.0},
    "curve of the rates": {"lr_curve": 0.5, "final_lr": 0.1},
    "warmed momentum": {"muon_momentum_start": 0.1, "muon_momentum_warmup": 1.5},
    "part of an epoch": {"epochs": 1.35},
    "few views": {"views": "flip+shift", "views_fraction": 0.02},
    "no views": {"views": "flip+shift", "views_fraction": 0.0},
}
LEVERS["all"] = {field: value for lever in LEVERS.values() for field, value in lever.items()}
SMALL = {"base_depth": 2, "sizes": "20", "epochs": 2.0, "whiten_bias_epochs": 0.5}


@pytest.mark.parametrize("lever", LEVERS if CUDA else ["all", "warmed momentum"])
def test_a_run_with_a_lever_as_one_graph_equals_the_uncaptured_one_and_differs_from_one_without(data, lever):
    base, plain, ours = (
        trainer(data, mode, **SMALL | settings)
        for mode, settings in (("off", {}), ("off", LEVERS[lever]), ("run", LEVERS[lever]))
    )
    for seed in (3, 4):
        (state, *numbers), (expected, *theirs) = outcome(ours, seed), outcome(plain, seed)
        assert torch.equal(state, expected) and numbers == theirs
    if "views" not in LEVERS[lever] or lever == "all":  # which only the accuracy is of
        assert not torch.equal(expected, outcome(base, 4)[0])


@pytest.mark.skipif(not CUDA, reason="compiled steps in a CUDA graph need a GPU")
@pytest.mark.parametrize("kernels", ["reference", "tuned"])
def test_a_compiled_run_with_all_levers_as_one_graph_learns_as_the_plain_one(data, kernels):
    settings, runs = SMALL | LEVERS["all"] | {"dtype": "float16", "epochs": 3.35, "base_depth": 16}, []
    for compile, mode in (("off", "off"), ("on", "run")):
        execution = hlb.Execution(compile=compile, graph=mode, kernels=kernels)
        runs.append(Trainer(*resolve(hlb.recipe("smoke", SETTINGS | settings), execution), data).run(3))
    first = [run.epochs[0]["train_loss"] for run in runs]
    assert runs[1].status == "ok" and first[1] == pytest.approx(first[0], rel=0.1)


def test_step_that_takes_its_seed_from_the_host_is_noticed(data):
    ours, plain, host = trainer(data, "off"), trainer(data, "off"), {"seed": 0}
    for one in (ours, plain):
        augment = one.step.augment
        one.step.augment = lambda images, ids, seed, *rest, augment=augment, **options: augment(
            images, ids, seed * 0 + host["seed"], *rest, **options
        )
    ours.execution = dataclasses.replace(ours.execution, graph="run")
    ours._capture()
    host["seed"] = 3
    assert torch.equal(outcome(plain, 3)[0], outcome(trainer(data, "off"), 3)[0])
    assert not torch.equal(outcome(ours, 3)[0], outcome(plain, 3)[0])


@pytest.mark.skipif(CUDA, reason="of the tape, which stands in where there is no GPU")
def test_reading_a_value_back_in_a_step_is_an_error(data):
    ours = trainer(data, "off")
    with pytest.raises(RuntimeError, match="the host waits"):
        tape.capture(lambda: ours.step.metrics.sum().item())


@pytest.mark.parametrize("mode, calls", [("off", 1), ("step", 0)])
def test_timed_step_is_the_replay_where_steps_are_captured(data, mode, calls):
    ours, seen = trainer(data, mode), []
    forward, before = ours.step.forward, ours.optimizer.arenas[0].value.clone()
    ours.step.forward = lambda variant: seen.append(variant) or forward(variant)
    assert ours.timed_step() > 0
    assert len(seen) == calls and not torch.equal(ours.optimizer.arenas[0].value, before)


@pytest.mark.parametrize("mode", ["step", "run"])
def test_captured_evaluation_is_the_uncaptured_one_of_the_weights_at_that_time(data, mode):
    ours = trainer(data, mode, views="flip+shift", views_fraction=0.3, epochs=1.0, sizes="20")
    forward, plain, found = ours.network.forward, ours._evaluate, []
    for seed in (3, 4):
        ours.network.forward = None  # a replay calls nothing
        run = ours.run(seed, eval_every=0)
        found.append(ours.scores.tolist())
        ours.network.forward = forward
        plain(*ours.final)
        assert ours.scores.tolist() == found[-1] and run.accuracy == found[-1][0] / 60
    assert found[0] != found[1]


@pytest.mark.parametrize("mode", ["off", "step"])
def test_an_evaluation_waits_for_the_device_once(data, mode, monkeypatch):
    ours, waits = trainer(data, mode, views="flip+shift", views_fraction=0.3), []
    for name in ("tolist", "item"):
        read = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, read=read: waits.append(read) or read(self))
    ours._validate(*ours.final)
    assert len(waits) == 1


def test_validation_under_the_views_of_the_final_evaluation_is_its_replay(data):
    ours = trainer(data, "step", "seed", averaging="none", epochs=2.0)
    ours.score = None
    run = ours.run(0, eval_every=1)
    assert run.accuracy == run.epochs[-1]["val_acc"]


def test_run_as_one_graph_knows_only_the_whole_runs_times_and_validates_nothing(data):
    run = trainer(data, "run").run(0, eval_every=1)
    assert run.status == "ok" and run.accuracy is not None
    assert [row["train_seconds"] for row in run.epochs] == [None, None, run.train_seconds]
    unknown = ("val_loss", "val_acc", "average_val_acc", "val_seconds")
    assert all(row[field] is None for row in run.epochs for field in unknown)
    assert all(0 < row["train_loss"] < 4 and 0 <= row["train_acc"] <= 1 for row in run.epochs)


@pytest.mark.skipif(CUDA, reason="with a GPU there are graphs")
@pytest.mark.parametrize("mode", ["step", "run"])
def test_graphs_without_a_gpu_are_a_mistake_in_one_line(mode):
    with pytest.raises(hlb.UserError, match=f"--graph {mode}: CUDA graphs need a CUDA device"):
        resolve(hlb.recipe("smoke"), hlb.Execution(graph=mode))


@pytest.mark.parametrize("name", sorted(hlb.RECIPES))
def test_tables_on_the_device_are_the_recipes_schedules(name):
    recipe = hlb.recipe(name, {"dtype": "float32", "base_depth": 4})
    steps, per_epoch = recipe.steps(50000), recipe.steps_by_epoch(50000)
    network = Network(recipe, kernels.backend())
    optimizer = Optimizer(network, steps, per_epoch, channels_last=True)
    multipliers = schedule.multipliers(recipe, steps, per_epoch)
    for kind, peak in {"filters": recipe.lr, "linear": recipe.linear_lr, "biases": recipe.bias_lr}.items():
        rates = optimizer.rates[:, optimizer.names.index(kind)].double().numpy()
        assert rates == pytest.approx(peak * multipliers, rel=1e-6, abs=1e-12)
    if recipe.averaging != "none":
        averages = Averaging(network, optimizer, steps, per_epoch).table
        assert averages.numpy() == pytest.approx(table(recipe, steps, per_epoch), rel=1e-6)


def test_plan_changes_size_where_an_epoch_begins_and_keeps_the_last_size():
    recipe = hlb.recipe("record94", {"sizes": "24,28", "epochs": 3.5, "batch_size": 20000, "drop_last": False,
                                     "whiten_bias_epochs": 0.5, "averaging_epochs": 1.0,
                                     "averaging_every": 2})  # fmt: skip
    assert plan(recipe, 50000) == [Variant(*of, hard=False) for of in (
        (24, 20000, True, False), (24, 20000, True, False), (24, 10000, False, False),
        (28, 20000, False, False), (28, 20000, False, False), (28, 10000, False, False),
        (28, 20000, False, False), (28, 20000, False, False), (28, 10000, False, True),
        (28, 20000, False, False), (28, 20000, False, True),
    )]  # fmt: skip


def test_images_of_an_epoch_have_the_size_that_the_recipe_says(data):
    ours, seen = trainer(data, "off"), []
    network = ours.network.forward
    ours.network.forward = lambda x, *rest: (seen.append(tuple(x.shape)), network(x, *rest))[1]
    ours.run(0, eval_every=0)
    training = [shape[2] for shape in seen if ours.recipe.batch_size == shape[0]][: ours.steps]
    assert training == [20] * 3 + [24] * 3 + [32] * 3
