"""Recipes: their schedules, costs and settings."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import hlb
import kernels
from hlb import schedule, settings
from hlb.cli import main
from hlb.cost import complexity
from hlb.initial import InitialWeights
from hlb.networks import Network
from hlb.optimizer import Optimizer

EXAMPLES = 50000


def rates(recipe: hlb.Recipe) -> np.ndarray:
    return schedule.multipliers(recipe, recipe.steps(EXAMPLES), recipe.steps_by_epoch(EXAMPLES))


def test_seed_schedule_is_the_one_cycle_of_torch():
    recipe = hlb.RECIPES["seed"]
    ours = rates(recipe)
    assert len(ours) == 970
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=776, pct_start=0.2 * 970 / 776, div_factor=1e16,
        final_div_factor=1 / (1e16 * 0.135), anneal_strategy="linear", cycle_momentum=False)  # fmt: skip
    expected = []
    for _ in range(776):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(expected) < 776:
            theirs.step()
    np.testing.assert_allclose(ours[:776], expected, atol=1e-12)
    np.testing.assert_array_equal(ours[776:], 0.135)


@pytest.mark.parametrize("step, expected", [(0, 0.0), (193, 1.0), (484, 0.5675), (775, 0.135), (969, 0.135)])
def test_seed_multiplier_at_its_knots(step, expected):
    assert rates(hlb.RECIPES["seed"])[step] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name, steps", [("airbench94", 200), ("smoke", 80)])
def test_linear_schedule_falls_from_one_towards_zero_at_the_end(name, steps):
    ours = rates(hlb.RECIPES[name])
    np.testing.assert_allclose(ours, 1 - np.arange(steps) / steps, atol=1e-12)


def test_every_recipe_names_the_schedule_that_is_tested_here():
    known = {"seed": "one_cycle"} | dict.fromkeys(
        ("record94", "record95", "record96", "cpu94", "airbench94", "smoke"), "linear")  # fmt: skip
    assert {name: hlb.RECIPES[name].schedule for name in known} == known
    assert {r.schedule for r in hlb.RECIPES.values()} == set(known.values())


def test_stem_bias_trains_three_epochs_of_airbench94_and_then_freezes():
    ours = schedule.stem_multipliers(hlb.RECIPES["airbench94"], 200, (25,) * 8)
    np.testing.assert_allclose(ours[:75], 1 - np.arange(75) / 75, atol=1e-12)
    assert not ours[75:].any()


def test_last_epochs_stay_at_the_final_rate_that_the_straight_line_meets_where_they_begin():
    ours = rates(hlb.recipe("airbench94", {"final_lr": 0.1, "final_epochs": 2.0}))
    np.testing.assert_allclose(ours[:150], 1 - 0.9 * np.arange(150) / 150, atol=1e-12)
    np.testing.assert_allclose(ours[150:], 0.1, atol=1e-12)


def test_warm_up_of_the_linear_schedule_rises_from_zero_to_one():
    ours = rates(hlb.recipe("airbench94", {"warmup": 0.25}))
    assert (
        ours[0] == 0 and ours[50] == 1 and np.all(np.diff(ours[:51]) > 0) and np.all(np.diff(ours[50:]) < 0)
    )


def test_a_curve_bends_the_way_down_and_keeps_its_ends():
    straight, high, low = (
        rates(
            hlb.recipe("airbench94", {"final_lr": 0.1, "final_epochs": 2.0, "warmup": 0.1, "lr_curve": curve})
        )
        for curve in (1, 0.5, 2)
    )
    down = np.arange(130) / 130  # from step 20 to step 150
    np.testing.assert_allclose(high[20:150], 0.1 + 0.9 * (1 - down) ** 0.5, atol=1e-12)
    np.testing.assert_allclose(low[20:150], 0.1 + 0.9 * (1 - down) ** 2, atol=1e-12)
    for bent in (high, low):
        np.testing.assert_array_equal(bent[:21], straight[:21])
        np.testing.assert_array_equal(bent[150:], straight[150:])
    bent = rates(hlb.recipe("seed", {"lr_curve": 0.5}))
    assert bent[484] == pytest.approx(0.135 + 0.865 * 0.5**0.5) and bent[969] == pytest.approx(0.135)


def made(**settings) -> Optimizer:
    recipe = hlb.recipe(
        "airbench94", {"base_depth": 2, "dtype": "float32", "master_weights": "off"} | settings
    )
    network = Network(recipe, kernels.backend("reference"))
    steps, per_epoch = recipe.steps(EXAMPLES), recipe.steps_by_epoch(EXAMPLES)
    return Optimizer(network, steps, per_epoch, channels_last=True)


def test_rates_of_the_filters_go_with_the_batch_size_where_asked_those_of_sgd_do_not():
    staged = {"batch_size": "1000,2000,4000", "epochs": 3.0, "final_lr": 1.0}
    plain, scaled = made(**staged), made(**staged, lr_scaling=0.5)
    filters = plain.names.index("filters")
    ratio = (scaled.rates / plain.rates)[:, filters]
    expected = torch.tensor([1.0] * 50 + [2.0] * 25 + [4.0] * 12) ** 0.5
    torch.testing.assert_close(ratio, expected)
    others = [column for column, name in enumerate(plain.names) if name != "filters"]
    assert torch.equal(scaled.rates[:, others], plain.rates[:, others])


def test_first_epochs_are_as_long_as_the_first_and_last_ones_as_the_last():
    staged = hlb.recipe("airbench94", {"batch_size": "1000,2000", "epochs": 3, "final_lr": 0.5,
                                       "final_epochs": 1, "whiten_bias_epochs": 0.5})  # fmt: skip
    steps, per_epoch = staged.steps(EXAMPLES), staged.steps_by_epoch(EXAMPLES)
    assert (steps, per_epoch) == (100, (50, 25, 25))
    assert np.flatnonzero(schedule.multipliers(staged, steps, per_epoch) > 0.5).tolist() == [*range(75)]
    assert schedule.stem_steps(staged, steps, per_epoch) == 25


def test_momentum_of_muon_rises_over_the_first_epochs():
    assert made().momenta is None
    momenta = made(muon_momentum_start=0.2, muon_momentum_warmup=2.0).momenta  # to 0.6, in 50 steps
    torch.testing.assert_close(momenta[:51], torch.linspace(0.2, 0.6, 51))
    assert torch.equal(momenta[50:], momenta[50].expand(150)) and momenta.dtype == torch.float32


def test_steps_of_muon_have_their_momenta():
    """What a step does to the buffer, with a gradient of 0: momentum times what it was."""
    ours = made(muon_momentum_start=0.25, muon_momentum_warmup=0.08)  # two steps of 25
    (arena,) = (arena for arena, matrices in zip(ours.arenas, ours.matrices) if matrices)
    (offset, rows, columns), *_ = next(filter(None, ours.matrices))
    at = slice(offset, offset + rows * columns)
    arena.value.normal_()
    arena.buffer[at] = 1.0
    seen = []
    for _ in range(4):
        before = arena.buffer[at][0].item()
        ours.step()
        seen.append(arena.buffer[at][0].item() / before)
    assert seen == pytest.approx([0.25, 0.425, 0.6, 0.6])


@pytest.mark.parametrize("epochs, batch, steps", [
    (7.35, 1536, 236), (8.4, 1536, 269), (1.12, 2000, 28), (2.28, 2000, 57), (0.001, 1536, 1), (8, 1536, 256),
    (2.5, "1024,1536", 96), (2.51, "1024,1536", 97), (0.5, "1024,1536", 24),
])  # fmt: skip
def test_epochs_are_counted_to_the_step(epochs, batch, steps):
    recipe = hlb.recipe("record94", {"epochs": epochs, "batch_size": batch})
    starts = recipe.epoch_starts(EXAMPLES)
    assert recipe.steps(EXAMPLES) == starts[-1] == steps
    assert starts[:2] == [0, min(steps, 48 if batch == "1024,1536" else 50000 // batch)]


def test_a_list_has_a_value_for_each_epoch_the_last_one_from_then_on():
    recipe = hlb.recipe("record94", ["hard_fraction=0.8,0.6,0.5", "hard_from=2", "batch_size=512,1024"])
    assert [recipe.fraction(epoch) for epoch in range(7)] == [1, 1, 0.8, 0.6, 0.5, 0.5, 0.5]
    assert [recipe.batch(epoch) for epoch in range(3)] == [512, 1024, 1024]
    assert recipe.hard_fraction == (0.8, 0.6, 0.5) and recipe.batch_sizes == (512, 1024)
    alone = hlb.recipe("record94", {"hard_fraction": [0.7], "batch_size": (1024,)})
    assert (alone.hard_fraction, alone.batch_size) == (0.7, 1024)
    assert hlb.recipe("record94", ["hard_label_smoothing=none"]) == hlb.RECIPES["record94"]


@pytest.mark.parametrize("settings, message", [
    ({"hard_fraction": "0.5,2"}, "hard_fraction: got 2, accepted is 0.01 to 1"),
    ({"hard_fraction": ()}, "hard_fraction: got none, accepted is one value or more"),
    ({"batch_size": "512,x"}, "batch_size: got 'x', accepted is a whole number"),
    ({"batch_size": "512,1024", "drop_last": False}, "batch_size: got several with drop_last=false"),
    ({"hard_label_smoothing": "x"}, "hard_label_smoothing: got 'x', accepted is a number"),
    ({"hard_label_smoothing": 2}, "hard_label_smoothing: got 2, accepted is 0 to 1"),
    ({"muon_momentum_start": 0.3}, "muon_momentum_start: got 0.3, which needs .* set muon_momentum_warmup"),
])  # fmt: skip
def test_a_lever_that_cannot_be_is_refused_in_a_line(settings, message):
    with pytest.raises(hlb.UserError, match=f"^{message}"):
        hlb.recipe("record94", settings)


def test_optimizer_reads_the_schedule_step_by_step_from_its_table():
    recipe = hlb.recipe("airbench94", {"base_depth": 2, "dtype": "float32", "master_weights": "off"})
    network = Network(recipe, kernels.backend("reference"))
    optimizer = Optimizer(network, 200, (25,) * 8, channels_last=True)
    table = dict(zip(optimizer.names, optimizer.rates.T.double().numpy()))
    main = rates(recipe)
    np.testing.assert_allclose(table["filters"], recipe.lr * main, rtol=1e-6)
    np.testing.assert_allclose(table["linear"], recipe.linear_lr * main, rtol=1e-6)
    np.testing.assert_allclose(table["biases"], recipe.bias_lr * main, rtol=1e-6)
    np.testing.assert_allclose(
        table["stem"], recipe.bias_lr * schedule.stem_multipliers(recipe, 200, (25,) * 8), rtol=1e-6
    )


def test_seed_counts_are_those_of_hlb_cifar10():
    report = complexity.report(hlb.RECIPES["seed"])
    assert report["parameters"] == {"trainable": 6_568_136, "frozen": 2_352}
    assert report["gflop_per_image"]["forward"] == pytest.approx(0.538, rel=0.01)
    assert report["gflop_per_image"]["train"] == pytest.approx(1.612, rel=0.01)
    assert report["tflop_per_run"] == pytest.approx(800.7, rel=0.01)
    assert report["steps"] == 970


@pytest.mark.parametrize("name", ["seed", "record94"])
@pytest.mark.parametrize("train_stem", [False, True])
def test_counted_flops_are_those_that_torch_counts(name, train_stem):
    recipe = hlb.recipe(name, {"base_depth": 16})
    with torch.device("meta"), FlopCounterMode(display=False) as forward:
        network = Network(recipe, kernels.backend("reference"))
        logits, _ = network(torch.empty(2, 3, 32, 32), train_stem)
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    ours = complexity.flops_per_image(recipe, stem_bias=train_stem and not recipe.stem_width)
    merge = 2 * 2 * 12 * 12 * recipe.width(recipe.stem_width)  # the merged filters, made once for both images
    assert forward.get_total_flops() == pytest.approx(2 * ours[0] + merge / 2, rel=1e-3)
    assert forward.get_total_flops() + backward.get_total_flops() == pytest.approx(2 * ours[1], rel=2e-3)


def test_long_variant_of_the_seed_is_two_settings():
    recipe = hlb.recipe("seed", ["base_depth=128", "epochs=80"])
    assert [recipe.width(w) for w in (recipe.stem_width, *recipe.group_widths)] == [64, 256, 512, 1024]
    assert recipe.steps(EXAMPLES) == 80 * 97


@pytest.mark.parametrize("text, field, value", [
    ("epochs=7.65", "epochs", 7.65), ("batch_size=1e3", "batch_size", 1000),
    ("flip=random", "flip", "random"),
    ("group_widths=1,2,3.5", "group_widths", (1.0, 2.0, 3.5)), ("drop_last=false", "drop_last", False),
])  # fmt: skip
def test_settings_are_read_by_the_type_of_their_field(text, field, value):
    got = getattr(hlb.recipe("record94", [text]), field)
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize("arguments, both", [
    (["--set", "lr=0.1", "lr=0.2"], "lr=0.1 and lr=0.2"),
    (["--set", "lr=0.1", "--set", "lr=0.1"], "lr=0.1 and lr=0.1"),
    (["--set", "epochs=3", "--epochs", "0.05"], "epochs=3 and epochs=0.05"),
    (["--dtype", "float32", "--set", "dtype=float64"], "dtype=float64 and dtype=float32"),
])  # fmt: skip
def test_a_field_that_is_set_twice_is_refused(capsys, arguments, both):
    assert main(["--recipe", "smoke", "--data", "synthetic", *arguments]) == 2
    out, err = capsys.readouterr()
    assert f"--set: got {both}; give one of them" in err and err.count("\n") == 1 and not out


def test_recipe_survives_the_ledger():
    recipe = hlb.recipe("seed", ["epochs=2.5", "group_widths=1,2,4"])
    assert settings.from_fields(dataclasses.asdict(recipe)) == recipe


@pytest.mark.parametrize("drop_last, per_epoch, steps", [(True, 97, 970), (False, 98, 980)])
def test_remainder_of_an_epoch_is_dropped_or_a_batch_of_its_own(drop_last, per_epoch, steps):
    recipe = hlb.recipe("seed", {"drop_last": drop_last})
    assert (recipe.steps_per_epoch(EXAMPLES), recipe.steps(EXAMPLES)) == (per_epoch, steps)


def called(ops, op: str, seen: list):
    """The ops, one of which notes its options."""
    call = getattr(ops, op)
    setattr(ops, op, lambda *args, **options: (seen.append(options), call(*args, **options))[1])
    return ops


@pytest.mark.parametrize("settings, activation", [
    ({"activation": "silu"}, "gelu"), ({"stem_activation": "silu"}, "silu"),
    ({"stem_width": 1.0, "stem_activation": "silu"}, None),
])  # fmt: skip
def test_activation_of_the_stem_is_a_field_of_its_own(settings, activation):
    seen = []
    recipe = hlb.recipe("smoke", {"base_depth": 2} | settings)
    with torch.device("meta"):
        network = Network(recipe, called(kernels.backend("reference"), "stem", seen))
        network(torch.empty(2, 3, 32, 32))
    assert [options.get("activation") for options in seen] == [activation]


@pytest.mark.parametrize("name", ["smoke", "seed", "record95"])
def test_initial_weights_are_uniform_between_the_ends_of_each_elements_range(name):
    """By the distributions that modules state, drawn here one by one."""
    recipe = hlb.recipe(name, {"base_depth": 8, "dtype": "float32"})
    network = Network(recipe, kernels.backend("reference"))
    optimizer = Optimizer(network, 10, (5, 5), channels_last=True)
    initial = InitialWeights(network, optimizer.arenas)
    bounds = {}
    network.reset(lambda tensor, bound: (bounds.update({tensor.data_ptr(): bound}), tensor.zero_()))
    fixed = {name: p.detach().clone() for name, p in network.named_parameters() if p.requires_grad}
    initial.draw(torch.tensor(3))
    for name, start in fixed.items():
        p = network.get_parameter(name).detach()
        bound = bounds.get(p.data_ptr(), 0.0)
        random = p != start
        assert p.abs().max() <= max(bound, start.abs().max())
        if random.sum() > 500:
            assert p[random].std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
        if name.endswith("filters") and recipe.filter_init == "dirac":
            rows = p.shape[1]
            assert torch.equal(p[:rows], start[:rows]) and random[rows:].all()
        elif "norm" in name:
            assert not random.any()
        else:
            assert random.double().mean() > 0.99
