"""The training program: seeds, clocks, precisions, executions, and what a person sees of it."""

import io
import time

import pytest
import torch
from rich.console import Console

import hlb
from hlb import synthetic
from hlb.cli import main
from hlb.execution import resolve
from hlb.runs.display import Display
from hlb.step import plan
from hlb.train import Callback, Trainer

TINY = {"base_depth": 4, "train_examples": 220, "batch_size": 50, "eval_batch_size": 40, "epochs": 2.0,
        "whiten_images": 50, "sizes": "20", "dtype": "float32"}  # fmt: skip


@pytest.fixture(scope="module")
def data() -> hlb.Dataset:
    return hlb.Dataset("synthetic", synthetic.make(220, 100))


def trainer(data, name="smoke", execution=hlb.Execution(), **settings) -> Trainer:
    return Trainer(*resolve(hlb.recipe(name, {**TINY, **settings}), execution), data)


def weights(trained: Trainer) -> torch.Tensor:
    return torch.cat([tensor.double().flatten() for tensor in trained.network.state_dict().values()])


def losses(run) -> list[float]:
    return [row["train_loss"] for row in run.epochs]


@pytest.mark.parametrize("name", ["smoke", "seed"])
def test_same_seed_gives_the_same_bits_whatever_ran_before(data, name):
    first = trainer(data, name)
    torch.manual_seed(1)
    run, end = first.run(7), weights(first)
    first.run(8)
    torch.manual_seed(2)
    again = first.run(7)
    assert losses(again) == losses(run) and again.accuracy == run.accuracy
    assert torch.equal(weights(first), end)


FOUR = {"groups": "short,short,short,short", "group_widths": "1,1,1,1", "sizes": "32", "drop_last": False}


@pytest.mark.parametrize(
    "settings",
    [
        {**FOUR, "train_examples": 201},  # the last of each epoch
        {**FOUR, "batch_size": 1, "train_examples": 3, "drop_last": True},
        {"sizes": "9", "drop_last": False, "train_examples": 201},  # 8 -> 4 -> 2 -> 1
        {"sizes": "32,9", "drop_last": False, "train_examples": 201},  # in the second epoch
    ],
    ids=["four groups", "batches of one", "small images", "small images later"],
)
def test_batch_of_one_value_per_channel_is_known_before_anything_is_built(data, monkeypatch, settings):
    monkeypatch.setitem(Trainer.__init__.__globals__, "build", None)
    with pytest.raises(hlb.UserError, match="one value per channel") as raised:
        trainer(data, **settings)
    assert "\n" not in str(raised.value)


def test_batch_of_one_value_per_channel_is_known_before_a_sweeps_first_run(
    data, monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(synthetic, "make", lambda *_: data.tensors)
    fields = {**TINY, **FOUR, "train_examples": "202,201"}  # of two configurations, one cannot be trained
    settings = ["--runs", "1", "--set", *(f"{field}={value}" for field, value in fields.items())]
    assert main(["sweep", "--recipe", "smoke", "--data", "synthetic", *settings]) == 2
    err = capsys.readouterr().err
    assert "one value per channel" in err and err.count("\n") == 1
    assert not list(tmp_path.rglob("*.jsonl"))


@pytest.mark.parametrize(
    "settings",
    [
        {**FOUR, "train_examples": 202},  # two images
        {**FOUR, "train_examples": 201, "drop_last": True},
        {"sizes": "32", "drop_last": False, "train_examples": 201},  # 3 x 3 values
        {**FOUR, "train_examples": 201, "epochs": 0.5},  # the last batch is never reached
    ],
    ids=["two images", "dropped", "larger map", "not reached"],
)
def test_short_last_batch_with_values_enough_is_accepted(settings):
    recipe = hlb.recipe("smoke", {**TINY, **settings})
    assert min(variant.count for variant in plan(recipe, 220)) in (1, 2, 50)


def test_different_seeds_differ_in_initial_weights_order_and_augmentation(data):
    ours = trainer(data)
    orders, batches, starts = [], [], []
    for seed in (1, 2):
        ours._prepare(seed, ours.train_images)
        starts.append(weights(ours))
        orders.append(ours.ops.permutation(ours.step.seed, torch.tensor(0), 220))
        batches.append(
            ours.step.augment(ours.train_images, torch.arange(220), ours.step.seed, torch.tensor(0))
        )
    for one, other in (starts, orders, batches):
        assert not torch.equal(one, other)


def test_every_image_is_seen_once_an_epoch_when_the_remainder_is_kept(data):
    kept, dropped = trainer(data, drop_last=False), trainer(data)
    for ours, count in ((kept, 220), (dropped, 200)):
        seen = []
        augment = ours.step.augment
        ours.step.augment = lambda images, ids, *rest, augment=augment, seen=seen, **options: (
            seen.append(ids),
            augment(images, ids, *rest, **options),
        )[1]
        ours.run(0)
        epochs = torch.cat(seen).view(2, count)
        assert all(len(set(epoch.tolist())) == count for epoch in epochs)
        assert not torch.equal(*epochs)


@pytest.mark.parametrize("name", ["smoke", "seed"])
@pytest.mark.parametrize("execution", [hlb.Execution(channels_last=False), hlb.Execution(threads=1)])
def test_execution_changes_the_losses_by_rounding_only(data, name, execution):
    settings = {"dtype": "float64", "epochs": 1.0}
    threads = torch.get_num_threads()
    ours, theirs = (trainer(data, name, how, **settings).run(3) for how in (hlb.Execution(), execution))
    torch.set_num_threads(threads)
    assert losses(theirs) == pytest.approx(losses(ours), rel=1e-6)  # metrics are float32


def test_compiled_step_gives_the_losses_of_the_eager_one(data):
    # One group, few shapes: the C++ compiler takes seconds for each of a graph's kernels.
    one = {"groups": "short", "group_widths": "1", "sizes": "32"}
    settings = {**one, "epochs": 1.0, "whiten_bias_epochs": 0.0, "eval_batch_size": 50}
    eager, compiled = (trainer(data, execution=hlb.Execution(compile=c), **settings) for c in ("off", "on"))
    assert compiled.compile_seconds > 0 and eager.compile_seconds == 0
    assert losses(compiled.run(3)) == pytest.approx(losses(eager.run(3)), rel=1e-3)


@pytest.mark.parametrize("name", ["smoke", "seed"])
@pytest.mark.parametrize("dtype, master, weight, value", [
    ("float64", "off", torch.float64, torch.float64),
    ("float32", "auto", torch.float32, torch.float32),
    ("bfloat16", "auto", torch.bfloat16, torch.float32),
    ("bfloat16", "off", torch.bfloat16, torch.bfloat16),
    ("float16", "on", torch.float16, torch.float32),
    ("float16", "auto", torch.float16, torch.float16),
])  # fmt: skip
def test_every_precision_trains_with_statistics_in_float32(data, name, dtype, master, weight, value):
    ours = trainer(data, name, dtype=dtype, master_weights=master, epochs=1.0)
    run = ours.run(0)
    assert run.status == "ok" and 0 < run.epochs[0]["train_loss"] < 3
    filters = next(arena for arena in ours.optimizer.arenas if "filters" in arena.spans)
    assert (filters.compute.dtype, filters.value.dtype) == (weight, value)
    assert ours.network.running.dtype == torch.float32
    biases = next(arena for arena in ours.optimizer.arenas if "biases" in arena.spans)
    assert biases.value.dtype == (torch.float64 if dtype == "float64" else torch.float32)


def test_sixteen_bit_weights_are_the_rounded_master_weights(data):
    ours = trainer(data, dtype="bfloat16")
    ours.run(0)
    for arena in ours.optimizer.arenas:
        assert torch.equal(arena.compute, arena.value.to(arena.compute.dtype))


def test_training_learns_the_shapes(data):
    run = trainer(data, base_depth=8, epochs=12.0, train_examples=200).run(0)
    assert run.epochs[-1]["train_acc"] > 0.5


def test_validation_is_not_on_the_clock(data):
    ours = trainer(data, epochs=3.0)
    validate = ours._validate

    def slow(*arguments):
        time.sleep(0.5)
        return validate(*arguments)

    ours._validate = slow
    run = ours.run(0, eval_every=1)
    assert run.wall_seconds > run.train_seconds + run.eval_seconds + 1.4
    assert run.eval_seconds > 0.5


def test_train_seconds_hold_preparation_and_every_step(data):
    ours = trainer(data)
    update, prepare = ours.step.update, ours._prepare
    ours.step.update = lambda *a: (time.sleep(0.02), update(*a))[1]
    ours._prepare = lambda *a: (time.sleep(0.3), prepare(*a))[1]
    run = ours.run(0)
    assert run.steps == ours.steps == 8
    assert run.train_seconds > 0.3 + 8 * 0.02 and run.prepare_seconds > 0.3


@pytest.mark.parametrize("every, validated", [(0, []), (1, [1, 2, 3]), (2, [2, 3])])
def test_validation_runs_every_so_many_epochs_and_after_the_last(data, every, validated):
    run = trainer(data, epochs=3.0).run(0, eval_every=every)
    assert [row["epoch"] for row in run.epochs] == [1, 2, 3]
    assert [row["epoch"] for row in run.epochs if row["val_acc"] is not None] == validated


def test_part_of_an_epoch_can_be_trained(data):
    run = trainer(data, epochs=1.6).run(0)
    assert run.steps == 7 and len(run.epochs) == 2


def test_frozen_stem_bias_stays_where_its_schedule_left_it(data):
    ours = trainer(data, whiten_bias_epochs=1.0)
    biases = []

    class Watch(Callback):
        def step(self, run, step):
            biases.append(ours.network.stem.bias.detach().clone())

    ours.run(0, callback=Watch())
    assert not torch.equal(biases[0], biases[3])
    assert all(torch.equal(bias, biases[3]) for bias in biases[4:])


def test_final_accuracy_of_the_seed_is_that_of_the_average(data):
    ours = trainer(data, "seed", epochs=4.0, batch_size=20)
    run = ours.run(0)
    own, _ = ours._validate("flip")
    ours.averaging.adopt()
    averaged, _ = ours._validate("flip")
    assert run.accuracy == float(averaged) == run.epochs[-1]["average_val_acc"]
    assert run.epochs[-1]["val_acc"] == float(own)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(data, runs: int, **console) -> str:
    file = console.pop("file", io.StringIO())
    ours = trainer(data)
    with Display(Console(file=file, width=100, **console)) as display:
        display.started(ours, runs, 1)
        for seed in range(runs):
            display.finished(ours.run(seed, 1, display))
    return file.getvalue()


def test_rows_append_in_a_pipe(data):
    lines = shown(data, 1).splitlines()
    assert "\x1b" not in "".join(lines)
    header = next(i for i, line in enumerate(lines) if "train_loss" in line)
    assert [line.split()[0] for line in lines[header + 1 :]] == ["1", "2"]


def test_several_runs_show_a_row_each(data):
    lines = shown(data, 3).splitlines()
    header = next(i for i, line in enumerate(lines) if "accuracy" in line)
    assert [line.split()[0] for line in lines[header + 1 :]] == ["1", "2", "3"]


def test_rows_append_in_a_notebook(data):
    assert "\x1b[" not in shown(data, 1, force_jupyter=False, force_terminal=False)


def test_table_updates_in_place_on_a_terminal(data):
    text = shown(data, 1, file=Terminal(), force_terminal=True)
    assert "\x1b[1A" in text or "\x1b[2K" in text
