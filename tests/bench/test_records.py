"""The table of records: which runs are in it, what a row says; the tables of pages between their markers."""

import dataclasses
import json
import re
from collections import Counter
from pathlib import Path

import PIL.Image
import pytest

import hlb
import kernels
from bench.report import kernel_costs, kernel_tables, markdown, pages, peers, records, run_plots
from bench.report.cli import main
from hlb.cost import complexity, expected, floor
from hlb.runs.statistics import summary

MARKERS = ("<!-- records -->", "<!-- /records -->")
PAGE = f"before\n{MARKERS[0]}\nold\n{MARKERS[1]}\nafter\n"
SEED = records.published_seed()
PUBLISHED = {
    "system": "theirs",
    "hardware": "A100",
    "target": 0.94,
    "accuracy": 0.9402,
    "n": 200,
    "views": "flip+shift",
    "views_fraction": 0.25,
    "seconds": 1.98,
    "contract": "train only",
    "source": "someone/theirs",
    "date": "2025-10",
}


@pytest.fixture(autouse=True)
def root(request, tmp_path, monkeypatch):
    """A checkout with one published record and none of ours, whose only page has the table of records."""
    if "repository" in request.fixturenames:
        return None
    (tmp_path / records.RESULTS).mkdir(parents=True)
    (tmp_path / "README.md").write_text(PAGE)
    monkeypatch.setattr(records, "ROOT", tmp_path)
    monkeypatch.setattr(records, "PUBLISHED", tmp_path / "published.json")
    monkeypatch.setattr(pages, "PAGES", {"README.md": {"records": pages.records_table}})
    publish(PUBLISHED)
    return tmp_path


def publish(*entries: dict) -> None:
    """Writes the file of published records."""
    records.PUBLISHED.write_text(json.dumps({"records": entries, "seed_system": SEED}))


@pytest.fixture
def repository() -> Path:
    """This repository as it is."""
    return Path(hlb.__file__).parents[1]


def run(accuracy=0.94, name="seed", settings=None, seconds=(9.0, 1.0), execution=None, **fields) -> dict:
    recipe = hlb.recipe(name, {"dtype": "float32", "master_weights": "off", **(settings or {})})
    return {
        "recipe": name,
        "recipe_fields": dataclasses.asdict(recipe),
        "execution": {"device": "cpu", "kernels": "reference", **(execution or {})},
        "dataset": "cifar10",
        "device": "cpu",
        "device_name": "a processor",
        "status": "ok",
        "accuracy": accuracy,
        "train_seconds": seconds[0],
        "eval_seconds": seconds[1],
        **fields,
    }


def write(root: Path, runs: list[dict], name: str = "cpu/some.jsonl") -> None:
    path = root / records.RESULTS / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(line | {"seed": i}) + "\n" for i, line in enumerate(runs)))


def cells(root: Path) -> list[dict[str, str]]:
    """The rows of the table, by the first word of their column's heading."""
    lines = [line for line in pages.records_table(root).splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    heads = [head.split()[0].strip(":,") for head in rows[0]]
    return [dict(zip(heads, row)) for row in rows[2:]]


def test_one_run_has_its_accuracy_views_and_time_and_no_interval(root):
    write(root, [run(0.9385, seconds=(9.5, 1.25))])
    assert cells(root)[0] == {
        "system": "`seed`, float32",
        "run": "",
        "hardware": "a processor",
        "accuracy": "93.85 %",
        "n": "1",
        "test-time": "2 (flip)",
        "time": "10.75: prepare + train + evaluation",
        "source": "`bench/results/cpu/some.jsonl`",
    }


def test_several_runs_have_a_mean_an_interval_and_the_mean_time_with_its_deviation(root):
    accuracies = [0.939, 0.941, 0.943]
    write(root, [run(a, seconds=(s, 1.0)) for a, s in zip(accuracies, (10.0, 11.0, 12.0))])
    low, high = summary(accuracies)["ci95"]
    row = cells(root)[0]
    assert row["accuracy"] == f"94.10 % [{100 * low:.2f}, {100 * high:.2f}]"
    assert (row["n"], row["time"]) == ("3", "12.00 (std 1): prepare + train + evaluation")


def test_failed_runs_are_counted_beside_n_and_in_no_mean(root):
    failed = {"status": "failed", "accuracy": None}
    write(root, [run(0.93), run(seconds=(100.0, 0.0), **failed), run(0.95)])
    row = cells(root)[0]
    assert (row["n"], row["accuracy"][:7]) == ("2, 1 failed", "94.00 %")
    assert row["time"].startswith("10.00 (std 0): ")


def test_a_row_of_failed_runs_only_has_no_numbers(root):
    write(root, [run(status="failed", accuracy=None)])
    row = cells(root)[0]
    assert (row["n"], row["accuracy"], row["time"].partition(":")[0]) == ("0, 1 failed", "none", "none")


@pytest.mark.parametrize(
    "other", [run(dataset="synthetic"), run(name="smoke"), run(accuracy=None), {"accuracy": 1}]
)
def test_made_up_data_recipes_without_an_aim_and_lines_that_are_no_runs_are_left_out(root, other):
    write(root, [other])
    assert [row["system"] for row in cells(root)] == ["theirs"]


@pytest.mark.parametrize(
    "one, other",
    [
        ({}, {"name": "airbench94"}),
        ({}, {"settings": {"dtype": "float16"}}),
        ({}, {"settings": {"epochs": 11.0}}),
        ({}, {"settings": {"views": "none"}}),
        ({"name": "record94"}, {"name": "record94", "settings": {"views_fraction": 0.5}}),
        ({}, {"device_name": "another processor"}),
        ({}, {"execution": {"kernels": "triton"}}),
        ({}, {"note": "patched"}),
        ({}, {"untimed": "the card was shared"}),
    ],
)
def test_runs_that_differ_in_recipe_dtype_setting_views_or_device_are_different_rows(root, one, other):
    write(root, [run(**one), run(**other)])
    rows = cells(root)[:2]
    assert [row["n"] for row in rows] == ["1", "1"]
    assert rows[0] != rows[1]


def test_runs_of_a_group_are_gathered_from_several_ledgers_and_each_counts_once(root):
    write(root, [run(), run()])
    write(root, [run(), run(), run()], "gpu.jsonl")  # the first two once more
    row = cells(root)[0]
    assert (row["n"], row["source"]) == ("3", "`bench/results/cpu/some.jsonl`, `bench/results/gpu.jsonl`")


def test_changed_settings_are_named(root):
    write(root, [run(settings={"epochs": 11.0, "sizes": (24, 32)}, execution={"compile": "on"})])
    row = cells(root)[0]
    assert (row["system"], row["run"]) == ("`seed`, float32, `sizes=24,32 epochs=11.0`", "`compile=on`")


@pytest.mark.parametrize(
    "device, chosen, says",
    [
        ("cpu", {"compile": "off", "graph": "off"}, ""),
        (
            "cuda",
            {"compile": "off", "graph": "off", "threads": 16},
            "`kernels=reference compile=off graph=off`",
        ),
        (
            "cuda:1",
            {"kernels": "triton,sgd=reference", "graph": "run", "deterministic": True},
            "`kernels=triton,sgd=reference graph=run deterministic=True`",
        ),
    ],
)
def test_a_row_says_how_it_was_executed_where_that_is_not_plain_and_on_a_gpu_in_any_case(
    root, device, chosen, says
):
    write(root, [run(device=device, execution=chosen)])
    assert cells(root)[0]["run"] == says


def test_what_is_noted_of_a_ledger_stands_in_its_row_and_in_no_other(root):
    write(root, [run(execution={"kernels": "triton"}, note="as the program wrote it")], "gpu/a.jsonl")
    write(root, [run(0.93)], "gpu/b.jsonl")
    (root / records.RESULTS / "gpu" / "notes.json").write_text('{"a.jsonl": {"note": "patched"}}')
    assert [row["run"] for row in cells(root)[:2]] == ["`kernels=triton`; patched", ""]


def test_times_that_are_not_to_be_quoted_are_in_no_row_and_the_accuracy_is(root):
    write(root, [run(0.94, seconds=(1.0, 0.5)), run(0.95, seconds=(8.0, 0.5))])
    notes = {"some.jsonl": {"untimed": "accuracy only: the card was shared"}}
    (root / records.RESULTS / "cpu" / "notes.json").write_text(json.dumps(notes))
    row = cells(root)[0]
    assert (row["accuracy"][:7], row["n"]) == ("94.50 %", "2")
    assert row["time"] == "accuracy only: the card was shared"
    assert not records.best(records.trained(root)) and not run_plots.points(pages.mine(root), [])


@pytest.mark.parametrize("notes", ["[]", '{"some.jsonl": 3}', '{"some.jsonl": {"untimd": "x"}}', "no JSON"])
def test_notes_that_cannot_be_used_are_a_line_that_names_them(root, notes):
    write(root, [run()])
    (root / records.RESULTS / "cpu" / "notes.json").write_text(notes)
    with pytest.raises(hlb.UserError, match="notes.json: "):
        records.trained(root)


def test_a_recipe_recorded_under_an_older_name_goes_by_its_present_one(root):
    line = run(name="airbench94") | {"recipe": "record94"}
    del line["recipe_fields"]["views_fraction"]  # a field that came later
    write(root, [line])
    row = cells(root)[0]
    assert row["system"] == "`airbench94` (recorded as `record94`), float32"
    assert row["test-time"] == "6 (flip+shift)"


def test_a_run_from_before_hard_images_was_of_all_of_them(root):
    line = run(name="cpu94")
    for field in ("hard_fraction", "hard_from"):
        del line["recipe_fields"][field]
    write(root, [line])
    assert cells(root)[0]["system"] == "`cpu94`, float32, `hard_fraction=1.0`"


def test_where_all_images_were_trained_the_epoch_from_which_the_hardest_would_be_is_not_said(root):
    write(root, [run(settings={"hard_from": 5}), run(settings={"hard_fraction": 0.5, "hard_from": 5})])
    assert [row["system"] for row in cells(root)[:2]] == [
        "`seed`, float32",
        "`seed`, float32, `hard_fraction=0.5 hard_from=5`",
    ]


def test_a_recipe_keeps_its_name_where_another_trains_the_same(root, monkeypatch):
    twin = dataclasses.replace(hlb.RECIPES["seed"], name="twin", target=0.95)
    monkeypatch.setattr(records, "RECIPES", {"twin": twin, **hlb.RECIPES})
    write(root, [run()])
    assert cells(root)[0]["system"] == "`seed`, float32"


def test_views_of_a_fraction_of_the_images_say_so(root):
    assert cells(root)[0]["test-time"] == "6 (flip+shift), for the least sure 25 %"


def test_another_system_that_we_ran_is_a_row_with_its_own_contract(root):
    other = {
        "system": "airbench94_muon on a CPU",
        "device_name": "a processor",
        "views": "flip+shift",
        "contract": "whitening + train + evaluation",
        "runs": [{"seed": 0, "accuracy": 0.94, "seconds": 700.0}, {"seed": 1, "accuracy": None}],
    }
    other["runs"].append({"seed": 2, "status": "failed", "accuracy": 0.1, "seconds": 9.0})
    made_up = other | {"dataset": "synthetic"}
    (root / records.RESULTS / "muon.json").write_text(json.dumps(other))
    (root / records.RESULTS / "made-up.json").write_text(json.dumps(made_up))
    (root / records.RESULTS / "pairs.json").write_text(json.dumps({"a": "x", "seconds": []}))
    assert cells(root)[0] == {
        "system": "airbench94_muon on a CPU",
        "run": "",
        "hardware": "a processor",
        "accuracy": "94.00 %",
        "n": "1, 2 failed",
        "test-time": "6 (flip+shift)",
        "time": "700: whitening + train + evaluation",
        "source": "`bench/results/muon.json`",
    }
    assert len(cells(root)) == 2


def write_peers(root: Path, *systems: str, name: str = "peers.json", **measured) -> None:
    lists = {"accuracy_list": [0.94, 0.942], "train_eval_seconds_list": [1.0, 1.5], "time_list": [0.5, 0.75]}
    about = {"execution": "compiled", "views": "flip+shift", "own_contract": "training only"}
    peers = [
        {"system": system, **about, "measured": {"device": "a GPU", **lists, **measured}}
        for system in systems
    ]
    run = {"command": "a script", "date": "2026-11-26", "driver": "580"}
    (root / records.RESULTS / name).write_text(json.dumps({"run": run, "peers": peers}))


def test_a_peer_has_its_time_by_our_rule_and_by_its_own_and_is_none_of_ours(root):
    write_peers(root, "theirs here")
    write(root, [run(0.9, device="cuda", device_name="a GPU", seconds=(2.0, 0.0))])
    first, second = cells(root)[:2]
    assert first == {
        "system": "theirs here",
        "run": "compiled",
        "hardware": "a GPU",
        "accuracy": "94.10 % [92.83, 95.37]",
        "n": "2",
        "test-time": "6 (flip+shift)",
        "time": "1.250 (std 0.354): prepare + train + evaluation; "
        "by its own rule 0.6250 (std 0.177): training only",
        "source": "`bench/results/peers.json`",
    }
    assert second["system"] == "`seed`, float32"
    (best,) = records.best([*records.trained(root), *peers.timed(root)]).values()
    assert best.system == "`seed`, float32"


def test_a_gpu_that_only_peers_ran_on_is_no_gpu_record_of_ours(root):
    write_peers(root, "theirs here")
    write(root, [run()])
    assert "no GPU record yet" in pages.records_table(root)


def test_the_first_table_is_our_best_on_a_gpu_and_the_peers_on_the_same_one(root):
    assert pages.gpu_table(root) == "No GPU has been measured yet."
    write_peers(root, "theirs here")
    gpu = {"device": "cuda", "device_name": "a GPU"}
    fast, slow = run(0.941, seconds=(0.5, 0.1), **gpu), run(0.95, settings={"epochs": 99.0}, **gpu)
    write(root, [fast, slow, run(0.96, seconds=(0.1, 0.1))])
    assert [line.split(" | ")[0] for line in pages.gpu_table(root).splitlines()[2:4]] == [
        "| `seed`, float32",
        "| theirs here",
    ]
    write_peers(root, "theirs here", device="another GPU")
    assert "theirs" not in pages.gpu_table(root) and "| 0.6 |" in pages.gpu_table(root)


def test_the_first_table_has_one_peer_the_fastest_that_reaches_its_target_and_the_seed_system(root):
    write(root, [run(0.941, seconds=(0.5, 0.1), device="cuda", device_name="a GPU")])
    write_peers(root, "slow", train_eval_seconds_list=[3.0, 3.0])
    write_peers(root, "fast", SEED["system"] + ", float16", name="more.json")
    write_peers(
        root, "too low", name="low.json", accuracy_list=[0.93, 0.93], train_eval_seconds_list=[0.75, 0.75]
    )
    text = pages.gpu_table(root)
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[1:]] == ["`seed`, float32", "fast", f"{SEED['system']}, float16"]
    assert rows[0][:3] == ["system", "accuracy: mean [95 % interval]", "n"]
    assert rows[2][1:] == [
        "94.10 % [92.83, 95.37]",
        "2",
        "1.250 (std 0.354)",
        "a GPU",
        "[more.json](bench/results/more.json)",
    ]
    assert "too low took 0.75 s for a mean below 94 %: 93.00 % [93.00, 93.00], n = 2." in text
    assert "slow took" not in text and "Ours ran with `kernels=reference`." in text


def test_what_a_published_record_does_not_state_is_not_made_up(root):
    bare = {"system": "bare", "source": "someone/bare", "seconds": 1.0}
    publish(bare, PUBLISHED)
    assert list(cells(root)[0].values()) == [
        "bare",
        "",
        *["not stated"] * 4,
        "1: contents not stated",
        "someone/bare",
    ]
    assert cells(root)[1]["accuracy"] == "94.02 %, std not stated"


def test_rows_go_by_target_then_ours_first_then_gpu_then_time(root):
    aims = [
        PUBLISHED | {"system": f"theirs {t} {s}", "target": t, "seconds": s}
        for t in (0.95, 0.94)
        for s in (9, 3)
    ]
    publish(*aims)
    write(
        root,
        [
            run(name="airbench94", seconds=(5.0, 0.0)),
            run(seconds=(7.0, 0.0), device="cuda", device_name="a GPU"),
            run(seconds=(4.0, 0.0)),
            run(settings={"target": 0.95}, device_name="aims higher"),
        ],
    )
    assert [(row["system"].partition(",")[0], row["hardware"]) for row in cells(root)] == [
        ("`seed`", "a GPU"),
        ("`seed`", "a processor"),
        ("`airbench94`", "a processor"),
        ("theirs 0.94 3", "A100"),
        ("theirs 0.94 9", "A100"),
        ("`seed`", "aims higher"),
        ("theirs 0.95 3", "A100"),
        ("theirs 0.95 9", "A100"),
    ]


@pytest.mark.parametrize(
    "gpu, missing",
    [
        ({}, True),
        ({"device": "cuda:0"}, False),
        ({"device": "cuda", "dataset": "synthetic"}, True),
        ({"device": "cuda", "status": "failed"}, True),
    ],
)
def test_the_missing_gpu_record_is_said_until_a_ledger_has_one(root, gpu, missing):
    write(root, [run(**gpu)])
    assert ("no GPU record yet" in pages.records_table(root)) is missing


def test_markdown_replaces_what_is_between_the_markers_only_and_twice_is_once(root, capsys, monkeypatch):
    write(root, [run()])
    monkeypatch.setattr(kernel_costs, "text", lambda: "costs")  # seconds
    assert main(["--markdown"]) == 0
    text, plot = (root / "README.md").read_text(), (root / pages.PLOT).read_bytes()
    assert text == f"before\n{MARKERS[0]}\n\n{pages.records_table(root)}\n\n{MARKERS[1]}\nafter\n"
    assert capsys.readouterr().out.split() == [
        *(str(root / path) for path in ("README.md", "docs/kernel-costs.md", pages.PLOT))
    ]
    assert (root / "docs" / "kernel-costs.md").read_text() == "costs\n"
    assert main(["--markdown"]) == 0
    assert ((root / "README.md").read_text(), (root / pages.PLOT).read_bytes()) == (text, plot)
    write(root, [run(0.5)])
    assert pages.replaced(text, {"records": pages.records_table(root)}, "README.md") != text


def test_every_page_gets_its_tables_or_none_is_written(root, capsys, monkeypatch):
    monkeypatch.setattr(kernel_costs, "text", lambda: "costs")
    tables = {
        "README.md": {"one": lambda _: "1"},
        "docs/more.md": {"two": lambda _: "2", "three": lambda _: "3"},
    }
    monkeypatch.setattr(pages, "PAGES", tables)
    (root / "README.md").write_text("<!-- one -->\n<!-- /one -->")
    assert "cannot read docs/more.md: No such file" in refused(capsys, "--markdown")
    (root / "docs").mkdir()
    (root / "docs" / "more.md").write_text("<!-- two -->\n<!-- /two -->")
    assert "docs/more.md: expected one line <!-- three -->" in refused(capsys, "--markdown")
    assert "1" not in (root / "README.md").read_text() and not (root / "docs" / "kernel-costs.md").exists()
    (root / "docs" / "more.md").write_text("<!-- three -->\n<!-- /three -->\n<!-- two -->\n<!-- /two -->")
    write(root, [run()])
    assert main(["--markdown"]) == 0
    assert (root / "README.md").read_text() == "<!-- one -->\n\n1\n\n<!-- /one -->"
    assert re.findall(r"\d", (root / "docs" / "more.md").read_text()) == ["3", "2"]


def test_where_there_are_no_records_the_rows_of_a_page_stay(root, capsys, monkeypatch):
    """As in a copy of the project without bench/results."""
    monkeypatch.setattr(kernel_costs, "text", lambda: "costs")
    (root / records.RESULTS).rmdir()
    assert f"--markdown: no record in {root / records.RESULTS}" in refused(capsys, "--markdown")
    assert (root / "README.md").read_text() == PAGE and not (root / "docs").exists()


def refused(capsys, *arguments: str) -> str:
    """What is said of a mistake in `python -m bench report`."""
    assert main([*arguments]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("bench report: ") and said.err.count("\n") == 1 and not said.out
    return said.err


@pytest.mark.parametrize(
    "text",
    [
        PAGE.replace(MARKERS[0], ""),
        PAGE.replace(MARKERS[1], ""),
        PAGE + PAGE,
        "\n".join(reversed(PAGE.splitlines())),
    ],
    ids=["no beginning", "no end", "twice", "in the wrong order"],
)
def test_a_marker_that_is_missing_twice_there_or_misplaced_is_a_line_and_exit_2(root, text, capsys):
    (root / "README.md").write_text(text)
    assert "README.md: " in refused(capsys, "--markdown")
    assert (root / "README.md").read_text() == text and not (root / pages.PLOT).exists()


BROKEN = ('[{"system": "x"}]', '[{"colour": "red"}]', "[3]")


@pytest.mark.parametrize(
    "content", ["no JSON", "{}", *BROKEN, *(f'{{"records": {entries}}}' for entries in BROKEN), None]
)
def test_a_published_file_that_cannot_be_used_is_a_line_and_exit_2(content, capsys):
    records.PUBLISHED.unlink() if content is None else records.PUBLISHED.write_text(content)
    assert "published.json" in refused(capsys, "--markdown")


@pytest.mark.parametrize("other", [["--out", "x"], ["--kernels", "x"], ["--profile", "x"]])
def test_markdown_is_of_the_checkouts_results_alone(other, capsys):
    assert f"leave {other[0]} out" in refused(capsys, *other, "--markdown")


def test_a_page_that_is_not_there_is_a_line_and_exit_2(root, capsys):
    (root / "README.md").unlink()
    assert "README.md: No such file" in refused(capsys, "--markdown")


def test_a_published_file_without_the_seed_system_is_a_line_and_exit_2(root, capsys, monkeypatch):
    monkeypatch.setattr(pages, "PAGES", {"README.md": {"records": pages.seed_table}})
    records.PUBLISHED.write_text(json.dumps({"records": [PUBLISHED]}))
    assert "published.json: `seed_system` is missing" in refused(capsys, "--markdown")


def test_a_table_in_markdown_escapes_bars_and_sets_numbers_to_the_right():
    assert markdown.table(("a|b", "n"), [("c|d", "1"), ("", "2")], numbers={1}).splitlines() == [
        "| a\\|b | n |",
        "|--|--:|",
        "| c\\|d | 1 |",
        "|  | 2 |",
    ]


# -- the other tables ----------------------------------------------------------------------------------------


def bench(root: Path, name: str, eager: float, compiled: float | None, **fields) -> None:
    """A record of `python -m bench`: cross_entropy in 1 s, beside references."""
    times = {"eager": eager, "compiled": compiled, "triton": 1.0}
    labels = {"op": "cross_entropy", "case": "seed", "dtype": "float16", "direction": "forward"}
    rows = [labels | {"implementation": by, "median": s, "fault": None} for by, s in times.items() if s]
    record = {"device_name": "a GPU", "kernels_timed": True, "rows": rows, **fields}
    (root / records.RESULTS / name).write_text(json.dumps(record))


def kernel_rows(root: Path) -> dict[str, list[str]]:
    lines = [line for line in pages.kernels_table(root).splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0].strip("`"): row[1:] for row in rows}


@pytest.fixture
def few(monkeypatch):
    """A catalogue of two ops."""
    chosen = {name: kernels.CATALOGUE[name] for name in ("cross_entropy", "pool_head")}
    monkeypatch.setattr(kernel_tables, "CATALOGUE", chosen)


def test_kernels_have_their_speed_up_per_gpu_the_latest_record_counts_and_what_is_missing_is_said(root, few):
    bench(root, "b.json", 4.0, 2.0, time="2026-01-01")
    bench(root, "a.json", 6.0, 3.0, time="2026-02-01")
    bench(root, "c.json", 8.0, None, device_name="another GPU")
    bench(root, "d.json", 50.0, 50.0, device_name="CPU", kernels_timed=False)
    rows = kernel_rows(root)
    assert [head.rpartition(" on ")[2] for head in rows["op"][-2:]] == ["another GPU", "a GPU"]
    assert rows["cross_entropy"][-2:] == ["8.00, not measured", "6.00, 3.00"]
    assert rows["pool_head"][-2:] == ["not measured"] * 2


def test_kernels_without_a_gpu_record_are_not_measured(root, few):
    assert [row[-1] for row in list(kernel_rows(root).values())[1:]] == ["not measured"] * 2


def test_where_compiled_pytorch_is_faster_the_kernels_table_says_so(root, few):
    bench(root, "a.json", 4.0, 0.25)
    assert (
        "torch.compile is faster in these cases (its time over ours): `cross_entropy` forward (seed 0.25)."
        in (pages.kernels_table(root))
    )
    bench(root, "a.json", 4.0, 1.25)
    assert "is faster in these cases" not in pages.kernels_table(root)


def test_passes_have_the_fastest_kernel_beside_cudnn_as_measured_and_as_corrected(root):
    found = {
        f"b at 32 {kind}": {"seconds": {"one": 9e-5, "another": 4e-5}, "cudnn": 3e-5 + i * 2e-5}
        for i, kind in enumerate(kernel_tables.PASSES)
    }
    found |= {name.replace("32", "24"): one for name, one in found.items()}
    content = {
        "run": {"device": "a GPU", "date": "2026-11-26", "commit": "849e75a467", "note": "patched"},
        "corrected": {
            "what": "put right",
            "seconds": {"b at 32": {"backward": {"triton": 8e-5, "cudnn": 2e-4, "of": ["wgrad"]}}},
            "derived": {"seconds": {"b at 32": {"forward": {"cudnn": 6e-5}}}},
        },
        "found": found,
    }
    (root / records.RESULTS / "conv-passes.json").write_text(json.dumps(content))
    lines = pages.passes_table(root).splitlines()
    assert lines[2] == "| b at 32 | 40 / **30** | **40** / 50 | **40** / 70 | **40** / 60 | **80** / 200 |"
    assert not lines[3] and "a GPU, 2026-11-26, commit 849e75a4," in lines[4] and "patched" in lines[5]


def test_the_table_of_recipes_counts_what_hlb_recipes_does(monkeypatch, root):
    parts = expected.Phase("train", 1, Counter(measured=0.3, modelled=0.1))
    monkeypatch.setattr(expected, "of", lambda *_: expected.Expectation("a GPU", (parts,)))
    monkeypatch.setattr(floor, "phases", lambda recipe, choice: [recipe.name])
    monkeypatch.setattr(floor, "seconds", lambda parts, chip: {"record94": 0.25}.get(*parts, 0.5))
    table = pages.recipes_table(root)
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| `")]
    said = table.replace("\n", " ")
    assert "`record94` with `--kernels tuned` is expected to take 0.400 s on" in said
    assert "(75 % measured, 0 % corrected, 0 % scaled, 25 % modelled)" in said
    assert "there is 0.250 s of `record94`, against 0.500 s of `airbench94`" in said
    assert [row[0] for row in rows] == [f"| `{name}`" for name in hlb.RECIPES]
    counted = [complexity.report(recipe) for recipe in hlb.RECIPES.values()]
    assert [row[4] for row in rows] == [f"{one['steps']} of {one['batch_size']}" for one in counted]
    recipe = dataclasses.replace(hlb.RECIPES["seed"], sizes=(20, 24), hard_fraction=0.25, hard_from=3)
    said = "images that grow, 20 to 24 pixels; after 3 epochs only the 25 % of the images"
    assert f"; {said} whose loss was largest" in pages.described(recipe)


def test_bytes_of_a_kernel_are_those_of_its_page(root, few):
    page = (Path(kernels.__file__).parents[1] / "docs" / "kernel-costs.md").read_text(encoding="utf-8")
    for name, row in list(kernel_rows(root).items())[1:]:
        section = page.partition(f"## {name}\n")[2].partition("\n## ")[0]
        line = next(line for line in section.splitlines() if line.startswith("| record94 "))
        eager, moved = (cell.strip() for cell in line.split("|")[3:5])
        assert row[1:4] == ["1 of `record94`", eager, moved]
        assert row[4] == f"{100 - 100 * float(moved) / float(eager):.0f} %"


def test_every_op_says_what_it_fuses_and_which_cases_its_row_adds_up():
    assert all(spec.fuses for spec in kernels.CATALOGUE.values())
    of, cases = kernel_tables.calls_of(kernels.CATALOGUE["conv_bn_act"])
    names = [f"record94 g{group}.conv{i}" for group in (1, 2, 3) for i in (1, 2)]
    assert (of, [case.name for case in cases]) == ("6 of `record94`", names)


def test_the_published_numbers_of_the_seed_system_stand_beside_our_runs_of_seed_only(root):
    write(root, [run(0.93), run(status="failed", accuracy=None), run(name="airbench94")])
    write(root, [run(dataset="synthetic")], "cpu/made-up.jsonl")
    lines = pages.seed_table(root).splitlines()
    assert "| hlb-CIFAR10 v0.3.0 |  | A100 80 GB | float16 | 93.97 % | 3 | 9.702 (std 0.047) |" in lines
    assert [line for line in lines if line.startswith("| `")] == [
        "| `seed` |  | a processor | float32 | 93.00 % | 1, 1 failed | 10 |"
    ]


def test_the_seed_system_that_we_ran_stands_among_its_published_numbers_with_both_times(root):
    write_peers(root, "hlb-CIFAR10 v0.3.0, float16", "another")
    (line,) = [line for line in pages.seed_table(root).splitlines() if "a GPU" in line]
    assert line.startswith("| hlb-CIFAR10 v0.3.0 | compiled | a GPU | float16 | 94.10 % [")
    assert "1.250 (std 0.354): prepare" in line and "own rule 0.6250 (std 0.177): training only" in line


# -- this repository -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "page, table", [(page, table) for page in pages.PAGES for table in pages.PAGES[page]]
)
def test_the_pages_of_this_repository_hold_the_tables_of_its_records(repository, page, table):
    text = (repository / page).read_text(encoding="utf-8")
    made = pages.replaced(text, {table: pages.PAGES[page][table](repository)}, page)
    assert text == made, f"python -m bench report --markdown brings {page} up to date"


def test_every_marker_of_a_page_is_of_a_table(repository):
    for path in (repository / "README.md", *(repository / "docs").glob("*.md")):
        marked = set(re.findall(r"^<!-- (\S+) -->$", path.read_text(encoding="utf-8"), re.MULTILINE))
        tables = pages.PAGES.get(path.relative_to(repository).as_posix(), {})
        assert marked == {*tables, *(f"/{table}" for table in tables)}, path


def test_the_plot_of_this_repository_is_of_its_records_and_results_shows_it(repository):
    with PIL.Image.open(repository / pages.PLOT) as image:
        drawn = json.loads(image.text["Description"])
    points = run_plots.points(pages.mine(repository), records.published())
    assert drawn == json.loads(json.dumps(points)), "python -m bench report --markdown brings it up to date"
    assert f"]({pages.PLOT.name})" in (repository / "docs" / "results.md").read_text(encoding="utf-8")
    assert (repository / pages.PLOT).stat().st_size < 150_000


def test_the_seed_system_has_the_same_numbers_among_the_published_records(repository):
    theirs = records.published_seed()["runs"][0]
    ours = next(r for r in records.published() if r.system == "hlb-CIFAR10 v0.3.0, float16")
    assert (ours.accuracy, ours.seconds) == (theirs["accuracy"], theirs["seconds"])
