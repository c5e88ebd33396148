"""Optimizers of torch.optim for the 3x3 filters, in the place of Muon and SGD."""

import functools
import json

import pytest
import torch

import hlb
import kernels
from hlb import audit, schedule, settings, synthetic
from hlb.averaging import Averaging
from hlb.cli import main
from hlb.cost.profiling import floors
from hlb.execution import resolve
from hlb.networks import Network
from hlb.optimizer import Optimizer
from hlb.runs import checkpoint, ledger
from hlb.step import build, plan
from hlb.study.grid import all_runs, grid, key
from hlb.train import Trainer
from kernels.base import chips

SMALL = {"base_depth": 4, "train_examples": 120, "batch_size": 40, "eval_batch_size": 60, "epochs": 2.0,
         "whiten_images": 50, "dtype": "float32", "lr": 1e-3}  # fmt: skip
EMA = {"averaging": "ema", "averaging_epochs": 2.0, "averaging_every": 1, "averaging_decay": 0.9}


def lion(values, lr, weight_decay):
    """An optimizer of a caller's own."""
    return torch.optim.RMSprop(values, lr=lr, weight_decay=weight_decay)


@pytest.fixture(scope="module")
def data() -> hlb.Dataset:
    return hlb.Dataset("synthetic", synthetic.make(120, 60))


def built(optimizer, dtype="float32", channels_last=True, **changes) -> Optimizer:
    """Of a tiny network in training, with weights of its own."""
    recipe = hlb.recipe("smoke", SMALL | {"optimizer": optimizer, "dtype": dtype} | changes)
    network = Network(recipe, kernels.backend(), channels_last).cast(getattr(torch, dtype))
    optimizer = Optimizer(network, 6, (3, 3), channels_last=channels_last)
    for arena in optimizer.arenas:
        arena.load(torch.randn_like(arena.value))
    optimizer.reset()
    return optimizer


def gradients(optimizer: Optimizer) -> None:
    for p in (p for arena in optimizer.arenas for p in arena.params):
        p.grad.copy_(torch.randn_like(p.grad))


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype, master", [("float32", "off"), ("float16", "on"), ("bfloat16", "on")])
@pytest.mark.parametrize("optimizer, theirs", [
    ("torch.optim.AdamW", torch.optim.AdamW), (torch.optim.NAdam, torch.optim.NAdam),
    (functools.partial(torch.optim.SGD, momentum=0.9), functools.partial(torch.optim.SGD, momentum=0.9)),
    (lion, torch.optim.RMSprop),
], ids=["name", "class", "partial", "function"])  # fmt: skip
def test_filters_are_updated_as_torch_does_by_hand(optimizer, theirs, dtype, master, channels_last):
    ours = built(optimizer, dtype, channels_last, master_weights=master)
    recipe, multipliers = ours.recipe, schedule.multipliers(ours.recipe, 6, (3, 3))
    arena = ours.plugged.arena
    by_hand = [value.detach().clone().requires_grad_() for value in ours.plugged.values]
    expected = theirs(by_hand, lr=1.0, weight_decay=recipe.weight_decay / recipe.lr)
    for multiplier in multipliers:
        gradients(ours)
        for value, p in zip(by_hand, ours.plugged.filters):
            value.grad = p.grad.to(value.dtype, copy=True)
        expected.param_groups[0]["lr"] = float(torch.tensor(recipe.lr * multiplier, dtype=torch.float32))
        expected.step()
        ours.step()
        for value, p, hand in zip(ours.plugged.values, ours.plugged.filters, by_hand):
            assert torch.equal(value, hand) and torch.equal(p, hand.to(p.dtype))
        assert not any(arena.grad.any() for arena in ours.arenas)
    assert arena.value.isfinite().all() and int(ours.step_index) == 6


def test_everything_else_is_updated_by_sgd_as_ever():
    ends = []
    for optimizer in ("sgd", "torch.optim.AdamW"):
        torch.manual_seed(3)
        ours = built(optimizer)
        for _ in range(3):
            gradients(ours)
            ours.step()
        arena = ours.arenas[0]
        ends.append({kind: arena.value[slice(*span)].clone() for kind, span in arena.spans.items()})
    filters = [end.pop("filters") for end in ends]
    assert ends[0].keys() == {"linear", "biases", "stem"}
    assert all(torch.equal(ends[0][kind], ends[1][kind]) for kind in ends[0])
    assert not torch.equal(*filters)


def test_filters_are_averaged_after_the_update():
    ours = built("torch.optim.AdamW", **EMA)
    arena = ours.plugged.arena
    filters = slice(*arena.spans["filters"])
    averaging = Averaging(FakeNetwork(ours), ours, 6, (3, 3))
    slow = None
    for _ in range(6):
        gradients(ours)
        averaging.average_running()
        ours.step(averaging.averages)
        value = arena.value[filters].double()
        slow = value if slow is None else 0.9 * slow + 0.1 * value
    torch.testing.assert_close(averaging.slow[0][filters].double(), slow, rtol=1e-5, atol=1e-6)


class FakeNetwork:
    """What averaging asks of a network."""

    def __init__(self, optimizer: Optimizer):
        self.recipe, self.running = optimizer.recipe, torch.zeros(2, 3)


def test_a_run_is_the_same_whatever_ran_before_it(data):
    recipe, execution = resolve(hlb.recipe("smoke", SMALL | {"optimizer": "torch.optim.AdamW"}),
                                hlb.Execution(device="cpu"))  # fmt: skip
    trainer = Trainer(recipe, execution, data)
    ends = [[row["train_loss"] for row in trainer.run(seed, 0).epochs] for seed in (3, 4, 3)]
    assert ends[0] == ends[2] != ends[1]


def test_the_clock_is_honest_with_it(data):
    recipe, execution = resolve(hlb.recipe("smoke", SMALL | {"optimizer": "torch.optim.AdamW"}),
                                hlb.Execution(device="cpu"))  # fmt: skip
    rows, wrong = audit.run(Trainer(recipe, execution, data, audit.Audit()))
    assert not wrong and {name: on for name, _, on, _ in rows}["updates of filters"] == 6


def test_adamw_trains_an_epoch_of_smoke():
    changes = {"optimizer": "torch.optim.AdamW", "lr": 2e-3, "epochs": 1.0, "train_examples": 4000,
               "base_depth": 8, "dtype": "float32"}  # fmt: skip
    dataset = hlb.Dataset("synthetic", synthetic.make(4000, 500))
    result = hlb.train("smoke", settings=changes, data=dataset, quiet=True, ledger=None)
    frozen = hlb.train("smoke", settings=changes | {"lr": 1e-12}, data=dataset, quiet=True, ledger=None)
    assert result.runs[0].status == "ok"
    assert result.runs[0].accuracy > max(0.2, frozen.runs[0].accuracy)


def test_only_the_forward_pass_is_compiled(data, monkeypatch):
    compiled = []
    monkeypatch.setattr("hlb.step.compiled", lambda work: (compiled.append(work.__name__), work)[1])
    recipe, execution = resolve(hlb.recipe("smoke", SMALL | {"optimizer": "torch.optim.AdamW"}),
                                hlb.Execution(device="cpu", compile="on"))  # fmt: skip
    build(recipe, kernels.backend(), execution, data)
    assert compiled == ["_forward"]


@pytest.mark.parametrize("setting, says", [
    ("adamw", "accepted are sgd, muon, or a torch.optim.Optimizer such as torch.optim.AdamW"),
    ("torch.optim.Adm", "cannot be imported"), ("no.such.Optimizer", "cannot be imported"),
    (".AdamW", "cannot be imported"), ("..AdamW", "cannot be imported"),
    ("torch.nn.Linear", "not a torch.optim.Optimizer"),
    ("torch.pi", "not a torch.optim.Optimizer"), ("", "accepted are sgd, muon"),
])  # fmt: skip
def test_what_is_no_optimizer_is_a_mistake_in_one_line(setting, says, capsys):
    assert main(["--recipe", "smoke", "--data", "synthetic", "--set", f"optimizer={setting}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("hlb: optimizer: got ") and says in error and error.count("\n") == 1


@pytest.mark.parametrize("optimizer, says", [
    ("torch.optim.LBFGS", "needs a closure"), ("torch.optim.Muon", "cannot be made for the 3x3 filters"),
    (lambda values: values[0], "made a Tensor"), ("torch.optim.Optimizer", "cannot be made"),
    (3, "accepted are sgd, muon"), ("torch.optim.SparseAdam", "cannot update the 3x3 filters: .* dense"),
])  # fmt: skip
def test_an_optimizer_that_cannot_take_the_filters_is_a_mistake_in_one_line(optimizer, says):
    with pytest.raises(hlb.UserError, match=says) as error:
        built(optimizer)
    assert str(error.value).startswith("optimizer: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("graph", ["step", "run"])
def test_it_is_not_captured(graph, monkeypatch):
    monkeypatch.setattr("hlb.execution.device_of", lambda execution: "cuda")
    recipe = hlb.recipe("smoke", {"optimizer": torch.optim.AdamW, "dtype": "float32"})
    assert resolve(recipe, hlb.Execution())[1].graph == "off"
    with pytest.raises(hlb.UserError, match=f"--graph {graph}: optimizer=torch.optim.AdamW cannot be capt"):
        resolve(recipe, hlb.Execution(graph=graph))
    assert resolve(hlb.recipe("smoke"), hlb.Execution(graph=graph))[1].graph == graph


@pytest.mark.parametrize("optimizer, name", [
    ("torch.optim.AdamW", "torch.optim.AdamW"), (torch.optim.AdamW, "torch.optim.AdamW"), ("muon", "muon"),
    (lion, f"{__name__}.lion"),
    (functools.partial(torch.optim.SGD, momentum=0.9), "functools.partial(<class 'torch.optim.sgd.SGD'>"),
])  # fmt: skip
def test_ledgers_and_checkpoints_hold_its_name(optimizer, name, data, tmp_path):
    changes = SMALL | {"optimizer": optimizer, "epochs": 1.0}
    hlb.train("smoke", settings=changes, data=data, quiet=True, ledger=tmp_path / "l.jsonl",
              save=tmp_path / "m.pt")  # fmt: skip
    (record,) = ledger.load(tmp_path / "l.jsonl")
    assert record["recipe_fields"]["optimizer"].startswith(name)
    assert settings.from_fields(record["recipe_fields"]).optimizer.startswith(name)
    _, recipe, _ = checkpoint.load(tmp_path / "m.pt")
    assert recipe.optimizer.startswith(name)


def test_a_sweep_tries_it_beside_others():
    points = grid("smoke", ["optimizer=muon,torch.optim.AdamW"], hlb.Execution(device="cpu"))
    assert [point.name for point in points] == ["optimizer=muon", "optimizer=torch.optim.AdamW"]
    assert json.dumps([*all_runs(points, "synthetic", range(2))])


def test_a_run_recorded_before_a_field_came_is_the_same_run():
    (point,) = grid("smoke", [], hlb.Execution(device="cpu"))
    fields = settings.fields(point.recipe)
    assert fields.pop("stem_activation") == "gelu"
    record = {"recipe_fields": json.loads(json.dumps(fields)), "dataset": "synthetic", "seed": 0}
    assert key(record) in all_runs([point], "synthetic", range(1))
    assert settings.from_fields(fields) == point.recipe


def test_a_profile_counts_it_as_sgd(data):
    recipe, _ = resolve(hlb.recipe("smoke", SMALL | {"optimizer": "sgd"}), hlb.Execution(device="cpu"))
    other = hlb.recipe(recipe, {"optimizer": "torch.optim.AdamW"})
    variant = plan(recipe, 120)[0]
    at = [floors(one, "reference", variant, "none", chips.AIMED_AT, 120) for one in (recipe, other)]
    assert at[0] == at[1]
