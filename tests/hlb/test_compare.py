"""Two groups of ledger runs: which are selected, what is said of them, and what is not."""

import json
import re

import pytest

from hlb.cli import main, parser
from hlb.runs import ledger
from hlb.study.compare import Sample, compare

ACCURACIES = (0.9387, 0.94, 0.9413)  # standard deviation 0.13 points


def record(accuracy=0.94, seconds=10.0, recipe=None, execution=None, **fields) -> dict:
    """A line of a ledger."""
    fields = {"dataset": "cifar10", "device_name": "chip", "views": "flip+shift", "commit": "2f9c1", **fields}
    return {
        "recipe": "record94",
        "recipe_fields": {"name": "record94", "lr": 0.24, "epochs": 8.0, "drop_last": True}
        | {"group_widths": [1.0, 4.0, 4.0], "groups": ["pair", "pair", "pair"]}
        | (recipe or {}),
        "execution": {"device": "cuda:0", "compile": "on", "threads": 4} | (execution or {}),
        "status": "ok",
        "accuracy": accuracy,
        "train_seconds": seconds - 1,
        "eval_seconds": 1.0,
        "epochs": [{"epoch": 1}],
        **fields,
    }


def runs(count: int, accuracy=0.0, seconds=10.0, first=0, **fields) -> list[dict]:
    """Runs of seeds `first`, ...: accuracies that deviate by 0.13 points, a mean of 94 % and `accuracy` more;
    times that deviate by 1 %.
    """
    return [
        record(ACCURACIES[i % 3] + accuracy, seconds * (1 + (i % 3 - 1) / 100), seed=first + i, **fields)
        for i in range(count)
    ]


def failed(**fields) -> dict:
    return record(None, status="failed", **fields)


def said(a: list[dict], b: list[dict]) -> str:
    return compare(Sample("a", a), Sample("b", b))["verdict"]


def warned(a: list[dict], b: list[dict]) -> str:
    return "\n".join(compare(Sample("a", a), Sample("b", b))["warnings"])


@pytest.fixture
def file(tmp_path, monkeypatch):
    """all.jsonl: seeds 0 to 6, each other than the rest in one thing; and files that are none."""
    monkeypatch.chdir(tmp_path)
    for seed, changes in enumerate(
        (
            {},
            {"recipe": {"lr": 0.3}},
            {"execution": {"compile": "off"}},
            {"commit": "81d0a"},
            {"recipe": {"group_widths": [1.0, 2.0, 4.0], "drop_last": False}},
            {"recipe": {"epochs": 9.0}, "device_name": "Xeon: fast, 2 threads"},
            {"status": "failed", "accuracy": None},
        )
    ):
        ledger.append("all.jsonl", record(seed=seed, **changes))
    (tmp_path / "torn.jsonl").write_text('{"accuracy": 0.')
    (tmp_path / "text.txt").write_text("a text")
    (tmp_path / "folder").mkdir()
    return "all.jsonl"


# -- which runs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "conditions, seeds",
    [
        ("", {0, 1, 2, 3, 4, 5, 6}),
        (":", {0, 1, 2, 3, 4, 5, 6}),
        (":lr=0.3", {1}),
        (":lr=3e-1", {1}),
        (":compile=off", {2}),
        (":commit=81", {3}),
        (":group_widths=1,2,4", {4}),
        (":group_widths=1,2", set()),
        (":group_widths=1,4,4,lr=0.3", {1}),
        (":drop_last=false", {4}),
        (":drop_last=true,lr=0.24,compile=on,commit=2f9c,status=ok", {0, 5}),
        (":epochs=9", {5}),  # the recipe's, not the ledger's list
        (":device_name=Xeon: fast, 2 threads", {5}),
        (":device=cuda:0", {0, 1, 2, 3, 4, 5, 6}),
        (":device=cuda", {0, 1, 2, 3, 4, 5, 6}),
        (":seed=6", {6}),
        (":status=failed", {6}),
        (":accuracy=None", {6}),
    ],
)
def test_selection_has_the_runs_with_all_its_values(file, conditions, seeds):
    if seeds:
        assert {run["seed"] for run in ledger.select(file + conditions)} == seeds
    else:
        with pytest.raises(ValueError, match="accepted is one of 1.0,4.0,4.0"):
            ledger.select(file + conditions)


@pytest.mark.parametrize("name", ["a:b.jsonl", "lr=1:lr=2", "all.jsonl:b"])
def test_colon_belongs_to_the_name_of_a_file_that_exists(file, name):
    ledger.append(name, record(seed=77))
    assert [run["seed"] for run in ledger.select(f"{name}:lr=0.24")] == [77]


def test_lines_that_are_no_runs_are_left_out(file):
    for line in ({"status": "ok"}, {**record(), "accuracy": None}, {**record(), "execution": 1}, {"seed": 5}):
        ledger.append(file, line)
    assert len(ledger.select(file)) == 7


@pytest.mark.parametrize(
    "selection, names",
    [
        ("nowhere.jsonl", "nowhere.jsonl"),
        ("nowhere.jsonl:lr=0.24", "nowhere.jsonl"),
        ("folder", "folder"),
        ("", "accepted is"),
        (":lr=0.24", "accepted is"),
        ("torn.jsonl", "holds no runs"),
        ("text.txt", "holds no runs"),
        ("all.jsonl:lr", "accepted is FILE:field=value"),
        ("all.jsonl:lrr=0.24", "did you mean lr"),
        ("all.jsonl:xyzzy=1", "xyzzy"),
        ("all.jsonl:lr=0.25", "accepted is one of 0.24, 0.3"),
        ("all.jsonl:lr=many", "accepted is one of 0.24, 0.3"),
        ("all.jsonl:lr=0.3,compile=off", "compile=off"),
    ],
)
@pytest.mark.parametrize("place", [0, 1], ids="AB")
def test_selection_of_nothing_is_one_line_that_names_it_and_exit_status_2(
    file, capsys, selection, names, place
):
    arguments = [file, file]
    arguments[place] = selection
    status = main(["compare", *arguments])
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert err.startswith("hlb: ") and err.count("\n") == 1 and names in err


# -- what is said --------------------------------------------------------------------------------------------


def test_verdict_names_real_differences_with_their_size_interval_and_p():
    verdict = said(runs(12), runs(12, accuracy=0.005, seconds=9.0))
    accuracy, time = re.findall(
        r"(\w+ ?\w*) by ([\d.]+) (\S+) \(95 % interval ([\d.]+) to ([\d.]+), p < 0.001\)", verdict
    )
    assert accuracy[:3] == ("more accurate", "0.500", "points") and time[:3] == ("and faster", "10.00", "%")
    half = 2.073873 * 0.0013 * (12 / 11 * 2 / 3) ** 0.5 * 100 * (2 / 12) ** 0.5  # t, 22 degrees of freedom
    assert [float(end) for end in accuracy[3:]] == pytest.approx([0.5 - half, 0.5 + half], abs=6e-4)
    assert float(time[3]) < 10 < float(time[4])
    assert verdict.startswith("B is ")


def test_verdict_turns_with_the_groups():
    verdict = said(runs(12, accuracy=0.005, seconds=9.0), runs(12))
    assert "B is less accurate by 0.500 points" in verdict and "slower by 11.11 %" in verdict
    assert " -" not in verdict  # intervals are of what the words say


def test_verdict_without_a_difference_says_how_many_runs_one_of_a_given_size_takes():
    verdict = said(runs(6), runs(6, first=6))
    assert verdict.startswith("A and B cannot be told apart in accuracy (n = 6 each would have to be about ")
    # std 0.0013 * sqrt(0.8): 2 * 0.8 * 2.8016^2 * (0.13 / 0.05)^2 + 0.96 = 85.9
    assert "about 86 to see a difference of 0.05 points" in verdict
    # std 1 % * sqrt(0.8): 2 * 0.8 * 2.8016^2 + 0.96 = 13.5
    assert "in time (n = 6 each would have to be about 14 to see a difference of 1 %)" in verdict


def test_verdict_says_when_there_are_runs_enough_for_a_difference_of_a_given_size():
    verdict = said(runs(99), runs(90, first=99))
    assert "in accuracy (n = 99 and 90 is enough to see a difference of 0.05 points)" in verdict


def test_verdict_keeps_the_measure_that_differs_from_the_one_that_does_not():
    verdict = said(runs(6), runs(6, seconds=8.0))
    assert verdict.startswith("B is faster by 20.00 %")
    assert "; they cannot be told apart in accuracy (" in verdict and "or in time" not in verdict


@pytest.mark.parametrize(
    "a, b, says", [(1, 5, "A has 1."), (5, 1, "B has 1."), (1, 1, "A has 1 and B has 1.")]
)
def test_one_run_cannot_be_tested(a, b, says):
    content = compare(Sample("a", runs(a)), Sample("b", runs(b, accuracy=0.1)))
    assert content["verdict"].startswith("It cannot be tested") and content["verdict"].endswith(says)
    assert content["difference"]["accuracy"]["p"] is None
    assert content["difference"]["accuracy"]["difference"] == pytest.approx(0.1, abs=0.0027)


def test_failed_runs_are_counted_and_in_no_mean():
    content = compare(Sample("a", [*runs(3), failed(seed=3), failed(seed=4)]), Sample("b", runs(3)))
    assert (content["A"]["n"], content["A"]["failed"], content["B"]["failed"]) == (3, 2, 0)
    assert content["A"]["accuracy"]["mean"] == pytest.approx(0.94)
    assert "2 of A's 5 runs failed" in content["warnings"][0]


def test_failed_runs_do_not_make_up_for_missing_ones():
    assert said([*runs(1), failed()], runs(3)).startswith("It cannot be tested")


@pytest.mark.parametrize(
    "a, b",
    [(runs(6), runs(6, device_name="other")), ([*runs(6), *runs(1, device_name="other")], runs(6))],
    ids=["of B", "of a run of A"],
)
def test_times_on_different_devices_are_not_compared(a, b):
    content = compare(Sample("a", a), Sample("b", [dict(run, train_seconds=1.0) for run in b]))
    assert (
        content["difference"]["seconds"]["p"] is None and content["difference"]["accuracy"]["p"] is not None
    )
    assert "imes on different devices" in content["verdict"] and "faster" not in content["verdict"]
    assert "devices: chip" in "\n".join(content["warnings"])


@pytest.mark.parametrize("field, what", [("dataset", "data sets"), ("views", "test-time views")])
def test_groups_that_differ_or_are_mixed_in_what_decides_accuracy_are_warned_of(field, what):
    others = runs(3, first=3, **{field: "other"})
    assert f"A and B differ in their {what}" in warned(runs(3), others)
    assert f"B mixes {what}" in warned(runs(3), [*runs(3, first=9), *others])


def test_like_groups_are_warned_of_nothing():
    assert warned(runs(3), runs(3, first=3)) == ""


def test_runs_in_both_groups_are_warned_of():
    assert "2 runs are in A and in B" in warned(runs(3), runs(2))


# What says nothing of a run: when and by which code and GPU it ran, and how its recipe was written.
ASIDE = (
    {"time": "later"},
    {"commit": "81d0a"},
    {"execution": {"device": "cuda:1"}},
    {"execution": {"threads": 8}},
    {"recipe": {"name": "renamed"}},
    {"recipe": {"target": 0.95}},
    {"recipe": {"epochs": 8}},
    {"recipe": {"momentum": 0.85}},  # what the field is where a record lacks it
)


@pytest.mark.parametrize("aside", ASIDE, ids=str)
def test_runs_that_repeat_a_seed_are_warned_of_and_leave_n(aside):
    content = compare(
        Sample("a", [*runs(3), *runs(2, accuracy=0.05, **aside)]), Sample("b", runs(3, first=5))
    )
    assert "2 of A's runs repeat" in content["warnings"][0]
    assert (content["A"]["n"], content["A"]["accuracy"]["mean"]) == (3, pytest.approx(0.94))


@pytest.mark.parametrize(
    "apart",
    [
        {"first": 3},
        {"dataset": "other"},
        {"device_name": "other"},
        {"execution": {"compile": "off"}},
        {"recipe": {"lr": 0.3}},
        {"recipe": {"field_that_is_gone": 1}},
    ],
    ids=str,
)
def test_runs_of_another_seed_recipe_execution_or_place_repeat_none(apart):
    content = compare(
        Sample("a", [*runs(3), *runs(3, **{"first": 0} | apart)]), Sample("b", runs(3, first=9))
    )
    assert content["A"]["n"] == 6 and "repeat" not in "".join(content["warnings"])


def test_a_hundred_lines_of_one_seed_are_one_run_of_which_nothing_can_be_said():
    hundred = [dict(run, time=str(i)) for i, run in enumerate(runs(1) * 100)]
    content = compare(Sample("a", hundred), Sample("b", runs(12)))
    assert content["A"]["n"] == 1 and content["difference"]["accuracy"]["p"] is None
    assert content["verdict"].startswith("It cannot be tested") and content["verdict"].endswith("A has 1.")


# -- sides that mix what is compared -------------------------------------------------------------------------


def test_a_side_that_mixes_recipes_or_executions_is_named_field_by_field_and_gets_no_verdict():
    other = runs(6, 0.3, first=6, recipe={"epochs": 2.0, "lr": 0.3}, execution={"compile": "off"})
    a, b = Sample("a", [*runs(6), *other]), Sample("b", runs(12))
    content = compare(a, b)
    assert content["verdict"] == (
        "No verdict, since A mixes epochs, lr, compile: choose one of each, as FILE:epochs=8.0, or take them "
        "together with --pool."
    )
    assert [line for line in content["warnings"] if "mixes" in line] == [
        "A mixes epochs: 8.0; 2.0",
        "A mixes lr: 0.24; 0.3",
        "A mixes compile: on; off",
    ]
    assert content["A"]["mixed"]["epochs"] == ["8.0", "2.0"] and content["B"]["mixed"] == {}
    for test in content["difference"].values():
        assert test["p"] is test["ci95"] is None and test["difference"] is not None
    pooled = compare(a, b, pool=True)
    assert pooled["verdict"].startswith("B is less accurate") and pooled["warnings"] == content["warnings"]
    assert compare(b, a)["verdict"].startswith("No verdict, since B mixes epochs, lr, compile: ")


def test_a_side_that_mixes_data_sets_or_kinds_of_device_gets_no_verdict_either():
    """Each is an experiment of its own, though no field of a recipe says so."""
    for other in ({"dataset": "synthetic"}, {"execution": {"device": "cpu"}}, {"execution": {"threads": 9}}):
        assert said([*runs(6), *runs(6, first=6, **other)], runs(12)).startswith("No verdict, since A mixes")
    assert "No verdict" not in said([*runs(6), *runs(6, first=6, execution={"device": "cuda:1"})], runs(12))


def test_sides_that_differ_from_each_other_are_what_is_compared():
    assert said(runs(12), runs(12, 0.005, recipe={"lr": 0.3})).startswith("B is more accurate")


def test_what_an_older_run_does_not_say_of_its_execution_is_a_value_of_its_own():
    lines = [*runs(6), *runs(6, first=6, execution={"graph": "run"})]
    assert "A mixes graph: not recorded; run" in warned(lines, runs(12))
    assert "as FILE:graph=run, or" in said(lines, runs(12))


def test_accuracy_without_any_spread_is_not_tested():
    verdict = said(
        [record(0.9, 10 + i / 10, seed=i) for i in range(3)], [record(0.8, 5 + i / 10) for i in range(3)]
    )
    assert "accuracy cannot be tested" in verdict and "B is faster by" in verdict


def test_skipped_lines_are_told_with_the_reason_by_the_command_and_in_its_json(file, capsys):
    with open(file, "ab") as f:
        f.write("größer\n".encode("latin-1") + b'{"accuracy": NaN}\n{"accuracy": 0.\n')
    for out in ([], ["--json"]):
        assert main(["compare", f"{file}:lr=0.24", f"{file}:lr=0.3", *out]) == 0
        said = capsys.readouterr().out
        assert (
            said.count("all.jsonl: 3 lines skipped: 1 not in UTF-8, 1 cut short or no JSON, 1 no runs") == 1
        )


def test_a_ledger_of_which_no_line_is_a_run_says_why(file, tmp_path, capsys):
    (tmp_path / "windows.jsonl").write_text(json.dumps(record(seed=0)) + "\n", encoding="utf-16")
    assert main(["compare", "windows.jsonl", file]) == 2
    err = capsys.readouterr().err
    assert "holds no runs (windows.jsonl: 1 line skipped: 1 not in UTF-8)" in err and err.count("\n") == 1


def test_what_a_terminal_would_obey_is_escaped(file, capsys):
    ledger.append(file, record(seed=9, device_name="\x1b[2J\nA is faster", recipe={"\x1b]0;": 1}))
    assert main(["compare", file, file]) == 0
    assert r"\x1b[2J\nA is faster" in capsys.readouterr().out
    assert main(["compare", f"{file}:xyzzy=1", file]) == 2
    assert capsys.readouterr().err.rstrip("\n").isprintable()


def test_the_command_takes_mixed_runs_together_where_it_is_asked_to(file, capsys):
    assert main(["compare", file, f"{file}:lr=0.24"]) == 0
    out = capsys.readouterr().out
    assert "warning: A mixes lr: 0.24; 0.3" in out and "No verdict" in out.splitlines()[-1]
    assert main(["compare", file, f"{file}:lr=0.24", "--pool"]) == 0
    out = capsys.readouterr().out
    assert "warning: A mixes lr: 0.24; 0.3" in out and "No verdict" not in out


# -- the command ---------------------------------------------------------------------------------------------


def test_command_prints_both_selections_statistics_warnings_and_the_verdict(file, capsys):
    for run in [*runs(12, commit="old"), *runs(12, 0.005, commit="new", views="none"), failed(commit="new")]:
        ledger.append(file, run)
    assert main(["compare", f"{file}:commit=old", f"{file}:commit=new"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"A: {file}:commit=old\nB: {file}:commit=new\n")
    assert max(len(row) for row in out.splitlines() if row.startswith(("accuracy", "train", "B - A"))) <= 80
    assert re.search(r"accuracy A +12 +0 +0.9400 +0.0011 +0.9393 .. 0.9407", out)
    assert re.search(r"accuracy B +12 +1 +0.9450 ", out)
    assert re.search(r"B - A +\+0.0050 +\+0.0041 .. \+0.0059 +<0.001", out)
    assert "warning: A and B differ in their test-time views" in out and "…" not in out
    assert out.splitlines()[-1].startswith("B is more accurate by 0.500 points")


def test_table_is_whole_on_a_narrow_terminal(file, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["compare", f"{file}:lr=0.24", f"{file}:lr=0.24"]) == 0
    assert re.search(r"accuracy +5 +1 +0.9400 +0.0000 +0.9400 .. 0.9400", capsys.readouterr().out)


def test_json_is_alone_on_standard_output_and_says_the_same(file, capsys):
    assert main(["compare", file, f"{file}:lr=0.24", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["A"]["n"], content["A"]["failed"], content["B"]["n"]) == (6, 1, 5)
    assert content["verdict"] == said(ledger.select(file), ledger.select(f"{file}:lr=0.24"))


@pytest.mark.parametrize("command", ["compare", "sweep"])
def test_help_of_a_command_fits_a_screen_and_its_examples_are_valid(capsys, command):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    lines = capsys.readouterr().out.rstrip("\n").split("\n")
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    examples = [line.split()[1:] for line in lines if line.startswith(f"  hlb {command} ")]
    examples += [line.split()[5:] for line in lines if line.startswith("  torchrun ")]
    assert len(examples) >= 3
    for arguments in examples:
        assert parser().parse_args(arguments).command == command
