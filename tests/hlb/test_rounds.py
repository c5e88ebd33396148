"""Rounds: which images a step is given when only the hard ones are shown, and what is known of them."""

import pytest
import torch
import torch.nn.functional as F

import hlb
from hlb import synthetic
from hlb.execution import resolve
from hlb.step import Round, plan, rounds
from hlb.train import Trainer

EXAMPLES, BATCH = 120, 20
SETTINGS = {"base_depth": 4, "train_examples": EXAMPLES, "batch_size": BATCH, "eval_batch_size": 40,
            "epochs": 3.0, "whiten_images": 50, "whiten_bias_epochs": 0.5, "sizes": "20",
            "dtype": "float32", "hard_fraction": 0.4, "hard_from": 1}  # fmt: skip


def recipe(**settings):
    return hlb.recipe("smoke", SETTINGS | settings)


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    data = hlb.Dataset("synthetic", synthetic.make(EXAMPLES, 40))
    return Trainer(*resolve(recipe(), hlb.Execution(compile="off")), data)


def test_hard_rounds_follow_one_another_from_their_epoch_on():
    assert rounds(recipe(), 500) == [Round(0, 120), *(Round(first, 40) for first in range(6, 18, 2))]
    assert rounds(recipe(hard_from=2), 500) == [Round(0, 120), Round(6, 120)] + [
        Round(first, 40) for first in (12, 14, 16)
    ]


@pytest.mark.parametrize("settings", [{"hard_fraction": 1.0}, {"hard_from": 3}, {"hard_from": 99}])
def test_a_round_is_an_epoch_where_no_image_is_left_out(settings):
    assert rounds(recipe(**settings), 500) == [Round(0, 120), Round(6, 120), Round(12, 120)]


@pytest.mark.parametrize(
    "settings, images",
    [
        ({"hard_fraction": 0.01}, 20),
        ({"hard_fraction": 0.99}, 100),
        ({"batch_size": 50, "drop_last": False}, 50),
    ],
)
def test_hard_images_fill_whole_batches(settings, images):
    changed = recipe(**settings)
    assert rounds(changed, 500)[-1].images == images
    assert {variant.count for variant in plan(changed, 500)[6:]} == {changed.batch_size}


def test_short_last_batches_stay_where_no_image_is_left_out():
    whole = recipe(batch_size=50, drop_last=False, hard_fraction=1.0)
    assert [variant.count for variant in plan(whole, 500)] == [50, 50, 20] * 3


def test_a_set_smaller_than_a_batch_is_shown_whole():
    settings = {"batch_size": 500, "drop_last": False}
    assert rounds(recipe(**settings), 500) == [Round(0, 120), Round(1, 120), Round(2, 120)]


def shown(step, steps: range) -> list[list[int]]:
    """The ids of each step, in the order in which it is given them."""
    return [step.batches[number - int(step.first)].tolist() for number in steps]


def test_a_hard_round_shows_the_images_of_largest_loss_once_each_in_an_order_of_its_own(trainer):
    step = trainer.step
    step.reset(7)
    hardest = list(range(3, 120, 3))
    step.losses.copy_(torch.tensor([1.0 + (i % 5) if i in hardest else 0.1 for i in range(120)]))
    orders = []
    for first in (6, 8):
        step.optimizer.step_index.fill_(first)
        step.shuffle(len(hardest) // 20 * 20)
        ids = sum(shown(step, range(first, first + 1)), [])
        orders.append(step.order[: len(hardest) // 20 * 20].tolist())
        assert ids == orders[-1][:20]
        assert len(set(orders[-1])) == len(orders[-1]) and set(orders[-1]) <= set(hardest)
    assert orders[0] != orders[1]


def test_numbers_of_rounds_key_their_draws(trainer):
    step, seen = trainer.step, []
    step.reset(7)
    for first, images in trainer.rounds:
        step.optimizer.step_index.fill_(first)
        step.shuffle(images)
        seen.append((int(step.number), int(step.first)))
    assert seen == [(number, first) for number, (first, _) in enumerate(trainer.rounds)]


def test_losses_are_those_of_the_images_when_last_seen(trainer, monkeypatch):
    step, given = trainer.step, []
    step.reset(7)
    step.shuffle(EXAMPLES)
    assert torch.isinf(step.losses).all()
    network = step.network

    def noting(*arguments):
        logits, stats = network(*arguments)
        given.append(logits.detach())
        return logits, stats

    noting.layout = network.layout
    noting.running = network.running
    monkeypatch.setattr(step, "network", noting)
    step(trainer.plan[0])
    ids = step.batches[0]
    expected = F.cross_entropy(given[0], step.labels[ids], reduction="none")
    assert torch.equal(step.losses[ids], expected)
    assert torch.isinf(step.losses).sum() == EXAMPLES - BATCH


def test_a_run_begins_without_what_the_one_before_it_knew(trainer):
    ends = [[row["train_loss"] for row in trainer.run(seed, eval_every=0).epochs] for seed in (3, 4, 3)]
    assert ends[0] == ends[2] != ends[1]


def test_hard_images_are_those_that_the_run_finds_hard(trainer):
    """An image that is never told apart from another class stays among those that are shown."""
    step = trainer.step
    labels = step.labels.clone()
    wrong = torch.arange(0, EXAMPLES, 12)  # of another class than they look
    step.labels[wrong] = (labels[wrong] + 1) % 10
    try:
        run = trainer.run(1, eval_every=0)
    finally:
        step.labels.copy_(labels)
    assert run.status == "ok"
    others = torch.ones(EXAMPLES, dtype=torch.bool)
    others[wrong] = False
    assert step.losses[wrong].mean() > step.losses[others].mean()
