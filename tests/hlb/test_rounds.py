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
def data() -> hlb.Dataset:
    return hlb.Dataset("synthetic", synthetic.make(EXAMPLES, 40))


@pytest.fixture(scope="module")
def trainer(data) -> Trainer:
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


def test_a_round_has_the_fraction_of_the_epoch_that_it_begins_in_and_the_last_one_from_then_on():
    falling = recipe(hard_fraction="0.8,0.4", epochs=4)
    assert rounds(falling, 500) == [Round(0, 120), Round(6, 80), Round(10, 80)] + [
        Round(first, 40) for first in (14, 16, 18, 20, 22)
    ]
    assert rounds(recipe(hard_fraction=(0.4,)), 500) == rounds(recipe(), 500)


def test_all_images_are_shown_again_where_the_fraction_is_one_again():
    again = recipe(hard_fraction="0.8,1", hard_from=0, drop_last=True)
    assert rounds(again, 500) == [Round(0, 80), Round(4, 80), Round(8, 120), Round(14, 120)]


def test_images_change_their_size_where_the_hard_rounds_begin():
    sizes = [variant.size for variant in plan(recipe(sizes="16,20,24", hard_from=0), 500)]
    assert sizes == [16] * 6 + [20] * 6 + [24] * 6


def test_images_never_seen_are_the_hardest(data):
    ours = Trainer(*resolve(recipe(hard_from=0), hlb.Execution(compile="off")), data)
    seen = images_of_steps(ours)
    first, second, third = ({*sum(seen[i : i + 2], [])} for i in (0, 2, 4))
    assert len(first) == len(second) == len(third) == 40 and first | second | third == {*range(120)}


def test_a_round_ends_where_the_batch_size_changes_and_each_shows_its_images_once(data):
    staged = recipe(batch_size="20,30", hard_fraction=0.8, drop_last=True)
    assert rounds(staged, 500) == [Round(0, 120), Round(6, 90), Round(9, 90), Round(12, 90)]
    staged = recipe(batch_size="20,20,30", hard_fraction=0.8, epochs=2.5)
    assert rounds(staged, 500) == [Round(0, 120), Round(6, 80), Round(10, 80), Round(12, 90)]
    assert [variant.count for variant in plan(staged, 500)] == [20] * 12 + [30] * 2
    ours = Trainer(*resolve(staged, hlb.Execution(compile="off")), data)
    seen = images_of_steps(ours)
    assert [len(ids) for ids in seen] == [20] * 12 + [30] * 2
    assert {*sum(seen[:6], [])} == {*range(120)}
    for begin, end in ((6, 10), (10, 12), (12, 14)):
        ids = sum(seen[begin:end], [])
        assert len(ids) == len({*ids})


@pytest.mark.parametrize("settings, smoothings", [
    ({"hard_label_smoothing": 0.0}, [0.2] * 6 + [0.0] * 12), ({"hard_label_smoothing": 0.2}, [0.2] * 18),
    ({}, [0.2] * 18), ({"hard_label_smoothing": 0.5, "hard_from": 0}, [0.5] * 18),
])  # fmt: skip
def test_hard_images_have_a_label_smoothing_of_their_own(settings, smoothings, data):
    ours, seen = Trainer(*resolve(recipe(**settings), hlb.Execution(compile="off")), data), []
    loss = ours.ops.cross_entropy
    ours.ops.cross_entropy = lambda x, y, smoothing: seen.append(smoothing) or loss(x, y, smoothing)
    ours.run(0, eval_every=0)
    assert seen[:-1] == smoothings and seen[-1] == ours.recipe.label_smoothing  # of the evaluation
    assert len({variant.hard for variant in ours.plan}) == len({*smoothings})


def images_of_steps(ours: Trainer) -> list[list[int]]:
    """The ids that each step of a run is given."""
    seen, augment = [], ours.step.augment
    ours.step.augment = lambda images, ids, *rest, **options: (
        seen.append(ids.tolist()),
        augment(images, ids, *rest, **options),
    )[1]
    assert ours.run(0, eval_every=0).status == "ok"
    return seen


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
