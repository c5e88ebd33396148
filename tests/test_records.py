"""The table of records: which runs are in it, what a row says, and that README.md holds it."""

import dataclasses
import json
from pathlib import Path

import pytest

import hlb
from bench import records
from hlb.statistics import summary

README = f"before\n{records.MARKERS[0]}\nold\n{records.MARKERS[1]}\nafter\n"
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
def root(tmp_path, monkeypatch):
    """A repository with one published record and none of ours."""
    (tmp_path / records.RESULTS).mkdir(parents=True)
    (tmp_path / records.PUBLISHED).write_text(json.dumps([PUBLISHED]))
    (tmp_path / "README.md").write_text(README)
    monkeypatch.setattr(records, "ROOT", tmp_path)
    return tmp_path


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
    lines = [line for line in records.table(root).splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    heads = [head.split()[0].strip(":,") for head in rows[0]]
    return [dict(zip(heads, row)) for row in rows[2:]]


def test_one_run_has_its_accuracy_views_and_time_and_no_interval(root):
    write(root, [run(0.9385, seconds=(9.5, 1.25))])
    assert cells(root)[0] == {
        "system": "`seed`, float32",
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
    assert (row["n"], row["time"]) == ("3", "12 (std 1): prepare + train + evaluation")


def test_failed_runs_are_counted_beside_n_and_in_no_mean(root):
    failed = {"status": "failed", "accuracy": None}
    write(root, [run(0.93), run(seconds=(100.0, 0.0), **failed), run(0.95)])
    row = cells(root)[0]
    assert (row["n"], row["accuracy"][:7]) == ("2, 1 failed", "94.00 %")
    assert row["time"].startswith("10 (std 0): ")


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
    assert cells(root)[0]["system"] == "`seed`, float32, `sizes=24,32 epochs=11.0 compile=on`"


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
        "hardware": "a processor",
        "accuracy": "94.00 %",
        "n": "1, 2 failed",
        "test-time": "6 (flip+shift)",
        "time": "700: whitening + train + evaluation",
        "source": "`bench/results/muon.json`",
    }
    assert len(cells(root)) == 2


def test_what_a_published_record_does_not_state_is_not_made_up(root):
    bare = {"system": "bare", "source": "someone/bare", "seconds": 1.0}
    (root / records.PUBLISHED).write_text(json.dumps([bare, PUBLISHED]))
    assert list(cells(root)[0].values()) == [
        "bare",
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
    (root / records.PUBLISHED).write_text(json.dumps(aims))
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
    assert ("no GPU record yet" in records.table(root)) is missing


def test_write_replaces_what_is_between_the_markers_only_and_twice_is_once(root):
    write(root, [run()])
    assert records.main(["--write"]) == 0
    text = (root / "README.md").read_text()
    assert text == f"before\n{records.MARKERS[0]}\n\n{records.table(root)}\n\n{records.MARKERS[1]}\nafter\n"
    assert records.main(["--write"]) == 0
    assert (root / "README.md").read_text() == text
    write(root, [run(0.5)])
    assert records.replaced(text, records.table(root)) != text


@pytest.mark.parametrize(
    "readme",
    [
        README.replace(records.MARKERS[0], ""),
        README.replace(records.MARKERS[1], ""),
        README + README,
        "\n".join(reversed(README.splitlines())),
    ],
    ids=["no beginning", "no end", "twice", "in the wrong order"],
)
def test_a_marker_that_is_missing_twice_there_or_misplaced_is_a_line_and_exit_2(root, readme, capsys):
    (root / "README.md").write_text(readme)
    assert records.main(["--write"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("bench: README.md: ") and said.err.count("\n") == 1 and not said.out
    assert (root / "README.md").read_text() == readme


@pytest.mark.parametrize("content", ["no JSON", '[{"system": "x"}]', '[{"colour": "red"}]', "[3]", None])
def test_a_published_file_that_cannot_be_used_is_a_line_and_exit_2(root, content, capsys):
    path = root / records.PUBLISHED
    path.unlink() if content is None else path.write_text(content)
    assert records.main([]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("bench: ") and "published.json" in said.err and said.err.count("\n") == 1


def test_the_readme_of_this_repository_holds_the_table_of_its_records():
    root = Path(hlb.__file__).parents[1]
    readme = (root / "README.md").read_text(encoding="utf-8")
    made = records.replaced(readme, records.table(root))
    assert readme == made, "python -m bench.records --write brings README.md up to date"
