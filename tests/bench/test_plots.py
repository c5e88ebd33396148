"""Plots: that they draw the numbers they are given, say what is missing, and write the files they should."""

import json
from itertools import combinations
from statistics import geometric_mean

import matplotlib.figure
import numpy as np
import PIL.Image
import pytest

from bench.report import benches, plots, run_plots
from bench.report.drawing import drawn, label
from bench.report.records import Group, Record
from hlb.runs.statistics import summary


@pytest.fixture
def figures(monkeypatch):
    """What was drawn; nothing is saved."""
    drawings = []
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda figure, *_, **__: drawings.append(figure))
    return drawings


def row(op, by, seconds, direction="forward", flops=None, case="seed", **fields) -> dict:
    """A row of `python -m bench` of an op that moves 1000 bytes."""
    labels = {"op": op, "case": case, "dtype": "float16", "direction": direction, "implementation": by}
    rates = {"bytes": 1000, "bytes_per_second": 1000 / seconds, "percent_of_copy": 1 / seconds}
    products = {"flops": flops, "flops_per_second": flops and flops / seconds}
    return labels | {"median": seconds, "fault": None} | rates | products | fields


def bench(*rows, **fields) -> dict:
    whole = {"device": "cuda", "device_name": "a GPU", "commit": "0123456789", "kernels_timed": True}
    rates = {"copy_bytes_per_second": 4.2e12, "matmul_flops_per_second": 7.9e14}
    return whole | rates | {"rows": list(rows)} | fields


def texts(figure) -> str:
    """All that a figure says, without its ticks."""
    return "\n".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def dots(axes, marker: str | None = None) -> list[tuple[float, float]]:
    lines = [line for line in axes.lines if line.get_linestyle() == "None"]
    chosen = [line for line in lines if marker in (None, line.get_marker())]
    return sorted((x, y) for line in chosen for x, y in zip(*line.get_data()))


# -- records of `python -m bench` ----------------------------------------------------------------------------


def test_a_roofline_has_a_point_for_each_time_under_the_two_measured_ceilings(figures, tmp_path):
    rows = [row("conv", "eager", 4e-9, flops=5e5), row("conv", "triton", 1e-9, flops=5e5)]
    rows += [row("sgd", "triton", 2e-9), row("conv", "tuned", 1e-9, flops=5e5, fault="wrong")]
    plots.roofline(bench(*rows), tmp_path / "x.png")
    left, right = figures[0].axes
    assert dots(left) == [(500, pytest.approx(1.25e14)), (500, pytest.approx(5e14))]
    ends = [tuple(zip(*line.get_data())) for line in left.lines if line.get_linestyle() == "-"]
    ridge = 7.9e14 / 4.2e12
    (start, flat), (low, high) = ends
    assert start == pytest.approx((ridge, 7.9e14)) == high and flat[1] == 7.9e14
    assert low[1] == pytest.approx(low[0] * 4.2e12)
    assert "matrix product, 790 TFLOP/s" in texts(figures[0]) and "copy, 4.2 TB/s" in texts(figures[0])
    assert [x for x, _ in dots(right)] == [pytest.approx(5e8)]
    assert [name.get_text() for name in right.get_yticklabels()] == ["sgd forward"]


def test_a_roofline_of_a_record_without_a_copy_says_what_stands_in_for_it(figures, tmp_path):
    record = bench(row("conv", "eager", 1e-9, flops=5e5), row("sgd", "eager", 5e-10))
    del record["copy_bytes_per_second"]
    plots.roofline(record, tmp_path / "x.png")
    assert "no copy in the record;\nits largest rate, 2 TB/s" in texts(figures[0])


def test_forward_and_backward_together_are_no_third_point(figures, tmp_path):
    ways = ("forward", "backward", "both")
    plots.roofline(bench(*(row("conv", "triton", 1e-9, way, 5e5) for way in ways)), tmp_path / "x.png")
    assert len(dots(figures[0].axes[0])) == 2
    plots.roofline(bench(*(row("conv", "triton", 1e-9, way, 5e5) for way in ways[::2])), tmp_path / "x.png")
    assert len(dots(figures[1].axes[0])) == 2


def test_ops_without_products_go_by_the_share_that_ours_reaches(figures, tmp_path):
    rows = [
        row(op, by, s)
        for op, ours in (("a", 0.02), ("b", 0.01))
        for by, s in (("eager", 0.05), ("tuned", ours))
    ]
    plots.roofline(bench(*rows), tmp_path / "x.png")
    assert [name.get_text() for name in figures[0].axes[1].get_yticklabels()] == ["a forward", "b forward"]


def test_a_speed_up_is_a_geometric_mean_of_the_fastest_of_ours_at_each_case(figures, tmp_path):
    times = {"one": (8.0, 2.0, 2.0, 1.0), "two": (4.0, 8.0, 1.0, 3.0)}
    rows = [
        row("conv", by, seconds, case=case)
        for case, each in times.items()
        for by, seconds in zip(("eager", "compiled", "triton", "tuned"), each)
    ]
    plots.speed_up(bench(*rows, row("sgd", "eager", 3.0), row("sgd", "triton", 1.0)), tmp_path / "x.png")
    axes = figures[0].axes[0]
    assert [name.get_text() for name in axes.get_yticklabels()] == ["sgd", "conv"]
    means = {
        bar.get_y() + bar.get_height() / 2: 1 + bar.get_width()
        for bar in axes.patches
        if bar.get_height() < 1
    }
    expected = [3.0, geometric_mean([2.0, 8.0]), geometric_mean([8.0, 4.0])]
    assert [means[y] for y in sorted(means)] == pytest.approx(expected)
    assert sorted(x for x, _ in dots(axes, "|")) == pytest.approx([2.0, 3.0, 4.0, 8.0, 8.0])
    assert any(list(line.get_xdata()) == [1, 1] for line in axes.lines)


def test_a_speed_up_is_of_forward_and_backward_together(figures, tmp_path):
    ways = {"forward": 2.0, "backward": 3.0, "both": 5.0}
    rows = [
        row("conv", by, s if by == "eager" else 1.0, way)
        for way, s in ways.items()
        for by in ("eager", "triton")
    ]
    plots.speed_up(bench(*rows), tmp_path / "x.png")
    assert dots(figures[0].axes[0], "|") == [(5.0, pytest.approx(0.19))]


@pytest.mark.parametrize(
    "others, says", [((), "nothing to compare"), (("compiled",), "Speed-up by torch.compile")]
)
def test_a_record_of_a_cpu_draws_what_it_has_and_says_so(figures, tmp_path, others, says):
    rows = [row("conv", by, 1e-3, flops=5e5) for by in ("eager", *others)]
    record = bench(*rows, device="cpu", device_name="a processor", kernels_timed=False, dirty=True)
    for draw in (plots.roofline, plots.speed_up):
        draw(record, tmp_path / "x.png")
    about = "references on CPU, a processor, float16, commit 01234567 with changes"
    assert all(about in texts(figure) for figure in figures)
    assert says in texts(figures[1]) and len(dots(figures[0].axes[0])) == len(rows)


def test_a_record_in_which_everything_failed_is_an_empty_plot(figures, tmp_path):
    record = bench(row("conv", "triton", 1e-9, flops=5e5, fault="wrong", median=None))
    plots.roofline(record, tmp_path / "x.png")
    plots.speed_up(record, tmp_path / "x.png")
    assert "no op with matrix products was timed" in texts(figures[0]) and len(figures) == 2


def test_older_records_call_both_passes_training():
    assert benches.whole(benches.by_call([row("a", "eager", 1.0), row("a", "eager", 3.0, "training")])) == [
        {"eager": row("a", "eager", 3.0, "training")}
    ]


# -- files ---------------------------------------------------------------------------------------------------


def test_a_plot_is_written_as_its_suffix_says_and_has_the_same_bytes_twice(tmp_path):
    record, files = (
        bench(row("sgd", "eager", 1.0), row("sgd", "triton", 0.5)),
        ("a.png", "a.svg", "b.png", "b.svg"),
    )
    a, b = [tmp_path / name for name in files[:2]], [tmp_path / name for name in files[2:]]
    plots.speed_up(record, *a)
    plots.speed_up(record, *b)
    assert [path.read_bytes() for path in a] == [path.read_bytes() for path in b]
    assert PIL.Image.open(a[0]).format == "PNG" and "<svg" in a[1].read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == list(files)


# -- runs ----------------------------------------------------------------------------------------------------


def ours(system="`cpu94`, bfloat16", **fields) -> Record:
    known = {"seconds": 500.0, "accuracy": 0.942, "accuracy_ci95": [0.94, 0.944], "gpu": False, "ours": True}
    return Record(system, "x", **known | fields)


THEIRS = [Record("theirs", "y", seconds=2.0, accuracy=0.94), Record("silent", "z", seconds=3.0)]


def test_accuracy_against_time_draws_what_is_known_and_keeps_it_in_the_file(tmp_path):
    mine = [ours(), ours("peer", seconds=7.0, gpu=True, ours=False), ours(seconds=None)]
    run_plots.accuracy_time(mine, THEIRS, tmp_path / "x.png")
    kept = json.loads(PIL.Image.open(tmp_path / "x.png").text["Description"])
    assert kept == run_plots.points(mine, THEIRS)
    assert [(p["system"], p["seconds"], p["accuracy"], p["whose"], p["gpu"]) for p in kept] == [
        ("`cpu94`, bfloat16", 500.0, 0.942, "ours", False),
        ("peer", 7.0, 0.942, "theirs", True),
        ("theirs", 2.0, 0.94, "published", True),
    ]


def test_records_and_their_intervals_stand_at_their_numbers_and_the_targets_are_lines(figures, tmp_path):
    run_plots.accuracy_time([ours()], THEIRS, tmp_path / "x.png")
    (axes,), said = figures[0].axes, texts(figures[0])
    assert [*dots(axes, "o"), *dots(axes, "s")] == [(2.0, 94.0), (500.0, pytest.approx(94.2))]
    (interval,) = axes.collections[0].get_segments()
    assert interval.tolist() == [[500.0, pytest.approx(94.0)], [500.0, pytest.approx(94.4)]]
    levels = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"]
    assert levels == [94, 95, 96] and axes.get_xscale() == "log"
    assert "without an accuracy: silent" in said and "published, GPU" in said and "ours, CPU" in said
    assert {"cpu94", "theirs"} <= set(said.split("\n")) and "published, CPU" not in said


def test_what_was_measured_on_one_gpu_stands_larger_above_and_by_its_kernels(figures, tmp_path):
    gpu = {"gpu": True, "hardware": "a GPU"}
    near = [
        ours("`record94`, float16", seconds=1.0, execution="`kernels=triton graph=run`; patched", **gpu),
        ours("a peer", seconds=1.5, ours=False, execution="compiled", **gpu),
    ]
    far = [ours("`seed`, float16", seconds=3.0, **gpu), ours("`seed`", seconds=0.9, gpu=True, hardware="b")]
    run_plots.accuracy_time([*near, *far], THEIRS, tmp_path / "x.png")
    above, below = figures[0].axes
    assert dots(above, "o") == [(1.0, pytest.approx(94.2)), (1.5, pytest.approx(94.2))]
    assert [x for x, _ in dots(below, "o")] == [0.9, 1.0, 1.5, 2.0, 3.0]
    assert "on a GPU" in above.get_title(loc="left") and above.get_xscale() == "linear"
    assert sorted(text.get_text() for text in above.texts) == ["a peer", "record94, triton"]
    assert "a peer" not in [text.get_text() for text in below.texts]
    assert "theirs, measured by us, GPU" in texts(figures[0])


def group(accuracies, seconds, **fields) -> Group:
    about = {"system": "`seed`, float16, `lr=2`", "hardware": "a GPU", "dataset": "cifar10", "target": 0.94}
    about |= {
        "execution": "",
        "views": "flip",
        "views_fraction": 1.0,
        "contract": "",
        "sources": ("x",),
        "gpu": True,
        "failed": 0,
    }
    return Group(**about | fields, runs=[{"accuracy": a, "seconds": s} for a, s in zip(accuracies, seconds)])


def test_every_run_is_a_dot_beside_its_groups_mean_and_interval_for_one_run_and_for_200(figures, tmp_path):
    draws = np.random.default_rng(0)
    many = draws.normal(0.94, 0.001, 200).tolist(), draws.normal(10, 0.1, 200).tolist()
    groups = [group(*many, failed=3), group([0.93], [20.0]), group([], [], failed=2)]
    run_plots.distribution("Runs", groups, tmp_path / "x.png")
    left, right = figures[0].axes
    assert [name.get_text() for name in left.get_yticklabels()] == [
        "seed lr=2\nn = 1, a GPU",
        "seed lr=2\nn = 200, 3 failed, a GPU",
    ]
    assert [x for x, _ in dots(left, "o")] == pytest.approx(sorted(100 * a for a in (*many[0], 0.93)))
    shares = [100 * second / np.mean(many[1]) for second in many[1]]
    assert [x for x, _ in dots(right, "o")] == pytest.approx(sorted([*shares, 100.0]))
    assert dots(left, "|") == [pytest.approx((100 * np.mean(many[0]), 0.68))]
    bounds = [100 * bound for bound in summary(many[0])["ci95"]]
    assert any(np.allclose(c.get_segments()[0][:, 0], bounds) for c in left.collections)
    assert "20 s" in texts(figures[0]) and f"{np.mean(many[1]):.4g} s" in texts(figures[0])


def test_runs_whose_times_are_not_quoted_have_their_accuracies_and_no_dot_of_time(figures, tmp_path):
    about = {"untimed": "the card was shared", "execution": "`kernels=triton`; patched"}
    groups = [group([0.94, 0.95], [1.0, 2.0], **about), group([0.93], [20.0])]
    run_plots.distribution("Runs", groups, tmp_path / "x.png")
    left, right = figures[0].axes
    assert left.get_yticklabels()[0].get_text() == "seed lr=2\nkernels=triton\nn = 2, a GPU, patched"
    assert [x for x, _ in dots(left, "o")] == pytest.approx([93.0, 94.0, 95.0])
    assert [y for _, y in dots(right, "o")] == [pytest.approx(1, abs=0.5)]
    assert "no time" in texts(figures[0]) and "2 s" not in texts(figures[0])


def test_a_steps_series_follow_one_another_in_a_bar_and_are_summed_beside_it(figures, tmp_path):
    bars = [{"forward": {"a": 0.001, "b": 0.002}, "backward": {"a": 0.003}}, {"floor": {"a": 0.0005}}]
    run_plots.step_times("A step", bars, tmp_path / "x.png")
    axes = figures[0].axes[0]
    assert [name.get_text() for name in axes.get_yticklabels()] == ["b", "a"]
    bars = {
        (round(bar.get_x(), 6), round(bar.get_width(), 6)) for bar in axes.patches if bar.get_height() < 1
    }
    assert bars >= {(0.0, 1.0), (1.0, 3.0), (0.0, 2.0), (0.0, 0.5)}
    assert [text.get_text() for text in axes.texts] == ["2", "4", "0.5"]


@pytest.mark.parametrize("seed", range(3))
def test_labels_cover_neither_each_other_nor_a_point_nor_a_line_and_stay_inside(seed, tmp_path):
    draws = np.random.default_rng(seed)
    points = [(*draws.uniform(0, 1, 2) ** 2, f"point number {i}") for i in range(14)]
    with drawn([], "", 8, 5) as figure:
        axes = figure.subplots()
        axes.set(xlim=(-0.2, 1.5), ylim=(-0.2, 1.2))
        label(figure, axes, points, [((-0.2, 0.1), (1.5, 0.1))])
        figure.draw_without_rendering()
        boxes = [text.get_window_extent() for text in axes.texts]
        spots = axes.transData.transform([point[:2] for point in points])
        level = axes.transData.transform((0, 0.1))[1]
        inside = axes.get_window_extent()
    assert len(boxes) == len(points)
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert not any(box.contains(*spot) for box in boxes for spot in spots)
    assert not any(box.y0 < level < box.y1 for box in boxes)
    assert all(inside.contains(*corner) for box in boxes for corner in box.corners())


@pytest.mark.parametrize(
    "system, shown",
    [
        ("`cpu94`, bfloat16, `epochs=9.0`", "cpu94 epochs=9.0"),
        ("`airbench94` (recorded as `record94`), float16, `lr=2`", "airbench94 lr=2"),
        ("airbench94_muon in bfloat16, its device lines changed", "airbench94_muon in bfloat16"),
        ("`record94`, float16, `conv_dtype=auto,float8,float8 epochs=7.9`", "record94 float8 epochs=7.9"),
        ("`seed`, float16, `sizes=20,24,24,28,28,28,32 epochs=9.0`", "seed sizes=20,24,24,28,28,28,32 …"),
    ],
)
def test_a_systems_label_is_short(system, shown):
    assert run_plots.short(system) == shown
