"""The grid of a sweep: its configurations, the order of their runs, the shares of processes."""

import collections
import dataclasses

import pytest

import hlb
from hlb.study import grid


@pytest.mark.parametrize(
    "setting, field, values",
    [
        ("lr=0.2,0.24,0.3", "lr", ["0.2", "0.24", "0.3"]),
        ("lr=0.2", "lr", ["0.2"]),
        (" lr = 0.2, 0.3", "lr", ["0.2", "0.3"]),
        ("views=flip,none", "views", ["flip", "none"]),
        ("sizes=24,28,32/28,32", "sizes", ["24,28,32", "28,32"]),
        ("group_widths=1,4,4", "group_widths", ["1,4,4"]),
        ("groups=pair,pair/pair", "groups", ["pair,pair", "pair"]),
        ("hard_fraction=0.5,0.7", "hard_fraction", ["0.5", "0.7"]),
        ("hard_fraction=0.8,0.6/0.5", "hard_fraction", ["0.8,0.6", "0.5"]),
        ("unknown=1,2", "unknown", ["1", "2"]),
    ],
)
def test_alternatives_are_split_at_commas_and_those_of_lists_at_slashes(setting, field, values):
    assert grid.alternatives(setting) == (field, values)


def test_grid_is_the_product_and_its_last_field_varies_fastest():
    found = grid.grid("smoke", ["lr=0.1,0.2", "sizes=28,32/32", "epochs=2"])
    assert [one.name for one in found] == [f"lr={lr} sizes={s}" for lr in (0.1, 0.2) for s in ("28,32", "32")]
    assert found[1].values == {"lr": 0.1, "sizes": (32,)} and found[1].recipe.sizes == (32,)
    assert {one.recipe.epochs for one in found} == {2.0}
    assert "auto" not in (found[0].recipe.dtype, found[0].execution.device)


@pytest.mark.parametrize("settings", ["lr=0.1,0.2", ("lr=0.1,0.2",)])
def test_a_setting_alone_is_a_list_of_one(settings):
    assert [one.recipe.lr for one in grid.grid("smoke", settings)] == [0.1, 0.2]


@pytest.mark.parametrize(
    "settings, options", [({"lr": [0.1]}, {}), (5, {}), ([0.1], {}), (["lr=0.1,0.2"], {"draw": "2"})], ids=str
)
def test_what_is_no_setting_or_count_is_refused_in_a_line(settings, options):
    with pytest.raises(hlb.UserError, match="^--(set|random): got "):
        grid.grid("smoke", settings, **options)


def test_grid_of_single_alternatives_is_the_recipe_with_these():
    (only,) = grid.grid("smoke", ["lr=0.1", "epochs=2"])
    assert (only.name, only.values, only.recipe.lr) == ("smoke", {}, 0.1)


def test_random_draws_distinct_points_that_depend_on_the_seed_only():
    settings = ["lr=0.1,0.2,0.3,0.4", "bias_lr=1,2,3,4,5"]
    everything = [one.name for one in grid.grid("smoke", settings)]
    drawn = [[one.name for one in grid.grid("smoke", settings, draw=6, seed=s)] for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    for names in drawn:
        assert len(names) == 6 and names == [name for name in everything if name in names]
    assert [one.name for one in grid.grid("smoke", settings, draw=20)] == everything


def test_random_draws_from_a_grid_too_large_to_list():
    settings = [f"{field}={','.join(map(str, range(1, 200)))}" for field in ("lr", "bias_lr", "linear_lr")]
    assert len(grid.grid("smoke", settings, draw=3)) == 3


def test_configurations_take_turns_back_and_forth():
    turns = [(0, 5), (1, 5), (2, 5), (2, 6), (1, 6), (0, 6), (0, 7), (1, 7), (2, 7)]
    assert list(grid.order(3, range(5, 8))) == turns


@pytest.mark.parametrize(
    "configurations, seeds, processes", [(4, 8, 4), (2, 6, 2), (3, 8, 4), (5, 3, 2), (1, 3, 8)]
)
def test_shares_are_equal_and_tie_no_configuration_to_a_process(configurations, seeds, processes):
    runs = list(grid.order(configurations, range(seeds)))
    dealt = grid.shares(runs, processes)
    assert sorted(run for share in dealt for run in share) == sorted(runs)
    assert all(share == [run for run in runs if run in share] for share in dealt)  # in their order
    sizes = [len(share) for share in dealt]
    assert max(sizes) - min(sizes) <= 1
    counts = [collections.Counter(i for i, _ in share) for share in dealt]
    for i in range(configurations):
        held = [count[i] for count in counts]
        assert max(held) - min(held) <= 2


def test_what_a_dead_process_left_is_shared_by_all():
    left = grid.shares(list(grid.order(2, range(10))), 2)[1]
    assert [len(share) for share in grid.shares(left, 2)] == [5, 5]


@pytest.mark.parametrize("name", sorted(grid.READY))
def test_ready_grid_begins_with_its_recipe_and_changes_it_in_turn(name):
    chosen, recipe = grid.READY[name], hlb.RECIPES[grid.READY[name].recipe]
    found = grid.ready(name, [])
    assert [one.name for one in found] == [one or recipe.name for one in chosen.settings]
    auto = {"dtype", "master_weights"}
    for one, changes in zip(found, chosen.settings):
        fields = {setting.partition("=")[0] for setting in changes.split()}
        assert fields == {
            field for field in one.values if getattr(one.recipe, field) != getattr(recipe, field)
        }
        rest = dataclasses.asdict(recipe).keys() - auto - fields
        assert all(getattr(one.recipe, field) == getattr(recipe, field) for field in rest)


def test_settings_beside_a_ready_grid_change_all_of_it():
    found = grid.ready("record94", ["base_depth=4", "groups=pair,pair,pair"])
    assert {one.recipe.base_depth for one in found} == {4} and "base_depth" not in found[0].values
    for settings, said in (
        (["epochs=3"], "got epochs=3, of which --grid record94 has values"),
        (["momentum=0.8,0.9"], "got momentum=0.8,0.9, of which one value is accepted"),
        (["momentum=0.8", "momentum=0.9"], "got momentum=0.9"),
    ):
        with pytest.raises(hlb.UserError, match=f"--set: {said}"):
            grid.ready("record94", settings)
