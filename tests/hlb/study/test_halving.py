"""Successive halving: who is better, who goes on, what the last rung may claim; in a lab without trainers."""

import math
import random

import pytest

from bench.sweeps.simulation import BUILD, SHARED, STD, Made
from hlb.study import halving
from hlb.study.halving import FIRST, Race, Tally, chances, reach, spread

TARGET = 0.94


def lab(arms: list[tuple[float, float]], budget: float, seed: int = 0) -> Made:
    return Made(arms, budget, random.Random(seed))


def raced(arms: list[tuple[float, float]], budget: float, seed: int = 0) -> Race:
    race = Race(lab(arms, budget, seed), len(arms), TARGET)
    race.run()
    return race


# -- who is better -------------------------------------------------------------------------------------------


def test_chance_is_that_an_arm_reaches_the_target_and_no_faster_one_does():
    tallies = {arm: Tally(10, 0.94, STD**2, seconds) for arm, seconds in enumerate((0.7, 0.5, 0.6))}
    found = chances(tallies, {0: 0.9, 1: 0.2, 2: 0.5})
    assert found == pytest.approx({1: 0.2, 2: 0.8 * 0.5, 0: 0.8 * 0.5 * 0.9})


def test_of_arms_that_are_equally_fast_the_surer_one_is_better():
    tallies = {arm: Tally(10, 0.94, STD**2, seconds) for arm, seconds in enumerate((0.5, 0.5001))}
    assert chances(tallies, {0: 0.3, 1: 0.6}) == pytest.approx({1: 0.6, 0: 0.4 * 0.3})


def test_reach_is_the_share_of_last_rungs_whose_bound_reaches_the_target():
    draw, tally, runs = random.Random(1), Tally(20, 0.9405, STD**2, 0.5), 40
    hits = 0
    for _ in range(4000):
        mean = draw.gauss(tally.mean, STD / math.sqrt(tally.n))  # what the true mean may be
        hits += draw.gauss(mean, STD / math.sqrt(runs)) - 1.645 * STD / math.sqrt(runs) >= TARGET
    assert reach(tally, TARGET, STD, runs) == pytest.approx(hits / 4000, abs=0.02)


def test_spread_is_that_of_all_arms_together_and_an_assumed_one_before_there_are_runs():
    assert spread([Tally(1, 0.94, 0.0, 0.5)]) == halving.SPREAD
    many = [Tally(200, 0.94, 0.003**2, 0.5), Tally(200, 0.93, 0.003**2, 0.6)]
    assert spread(many) == pytest.approx(0.003, rel=0.02)


# -- who goes on ---------------------------------------------------------------------------------------------

CLOSE = [(0.9400 + 0.0002 * i, 0.500 + 0.01 * i) for i in range(8)]


def test_rungs_double_the_runs_and_at_most_half_of_the_arms_go_on():
    race = raced(CLOSE, 400.0)
    assert [rung.runs for rung in race.rungs[:3]] == [FIRST, 2 * FIRST, 4 * FIRST]
    for rung, later in zip(race.rungs, race.rungs[1:]):
        assert set(later.chances) == set(rung.kept)
        assert len(rung.kept) <= -(-len(rung.chances) // 2)
        assert min(rung.chances[arm] for arm in rung.kept) >= max(
            (chance for arm, chance in rung.chances.items() if arm not in rung.kept), default=0.0
        )


def test_hopeless_arms_leave_without_waiting_for_their_half():
    race = raced([(0.93, 0.4)] * 7 + [(0.943, 0.5)], 400.0)
    assert race.rungs[0].kept == [7] and race.claimed == 7


def test_arms_for_which_there_is_no_time_are_named_and_the_first_ones_are_tried():
    race = raced(CLOSE, BUILD + 3 * SHARED + 60.0)
    assert race.untried and race.untried == list(range(8))[-len(race.untried) :]
    assert set(race.rungs[0].chances) == set(range(8)) - set(race.untried)


@pytest.mark.parametrize("budget", [1.0, 14.0, 16.0, 18.0, 25.0, 60.0, 150.0, 400.0])
def test_no_budget_is_exceeded_but_by_the_first_build(budget):
    race = raced(CLOSE, budget)
    assert race.lab.left() >= min(0.0, budget - BUILD)


def test_what_is_left_shows_the_leader_with_seeds_that_chose_nothing():
    race = raced([(0.943, 0.5), (0.93, 0.4)], 120.0)
    assert race.finalists == [0] and race.claimed == 0
    assert race.lab.tally(0, fresh=True).n == race.planned[0] > 50
    assert race.lab.left() < 1.0


# -- what is claimed -----------------------------------------------------------------------------------------


class Told(Made):
    """A lab whose last rungs have the bounds that a test says."""

    bounds: dict[int, float]

    def bound(self, arm: int, fresh: bool = True) -> float:
        return self.bounds[arm]


@pytest.mark.parametrize(
    ("bounds", "claimed"),
    [
        ({0: 0.9401, 1: 0.9401}, 0),
        ({0: 0.9399, 1: 0.9401}, 1),  # the leader falls short
        ({0: 0.9401, 1: 0.9399}, None),  # the leader is not tested
    ],
)
def test_a_doubtful_leader_is_tested_only_after_a_safer_arm_and_at_the_same_level(bounds, claimed):
    arms = [(0.9403, 0.5), (0.9430, 0.6)]
    races = []
    for seed in range(20):
        made = Told(arms, 100.0, random.Random(seed))
        made.bounds = bounds
        races.append(Race(made, 2, TARGET))
        races[-1].run()
    doubtful = [race for race in races if race.finalists == [1, 0]]
    assert len(doubtful) > 5
    assert {race.claimed for race in doubtful} == {claimed}
    tested = [race.lab.tally(0, fresh=True).n > 0 for race in doubtful]
    assert all(tested) if bounds[1] >= TARGET else not any(tested)


def test_an_arm_that_was_dropped_in_the_last_rung_is_not_claimed():
    class Dropping(Made):
        def train(self, counts, fresh=False):
            super().train(counts, fresh)
            if fresh:
                self.dropped[next(iter(counts))] = "it broke"

    race = Race(Dropping([(0.943, 0.5)], 100.0, random.Random(0)), 1, TARGET)
    race.run()
    assert race.claimed is None


def test_without_a_fresh_last_rung_claims_would_be_wrong_far_more_often():
    from bench.sweeps.simulation import row

    wrong = {
        method: row("none, by a hair", 240, method, trials=150).wrong
        for method in ("halving", "equal n, no last rung")
    }
    assert wrong["halving"] <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 150) < 0.25 < wrong["equal n, no last rung"]
