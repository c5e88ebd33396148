"""The report's page: what is on it, what is said to be missing, and mistakes."""

import dataclasses
import errno
import json
import math
import re
import sys

import pytest

import hlb
from bench.report import benches, cli, records, run_plots
from bench.report.cli import main
from hlb.cost.passes import launched
from hlb.runs import ledger
from kernels.base import chips

BENCH = {
    "device": "cuda",
    "device_name": "a GPU",
    "kernels_timed": True,
    "command": "python -m bench sgd",
    "copy_bytes_per_second": 4e12,
    "rows": [
        {
            "op": "sgd",
            "case": "seed",
            "dtype": "float16",
            "direction": "forward",
            "implementation": by,
            **rest,
        }
        for by, rest in (
            ("eager", {"median": 3e-6, "bytes_per_second": 1e12, "percent_of_copy": 25.0, "fault": None}),
            ("triton", {"median": 1e-6, "bytes_per_second": 3e12, "percent_of_copy": 75.0, "fault": None}),
            ("tuned", {"median": None, "fault": "wrong: <a gradient>"}),
        )
    ],
}
PROFILE = {
    "recipe": "seed",
    "recipe_fields": {"dtype": "float16"},
    "execution": {"kernels": "tuned"},
    "dataset": "cifar10",
    "device_name": "a GPU",
    "images": 512,
    "size": 32,
    "step_seconds": 0.004,
    "rows": [{"op": "stem", "calls": 1, "forward": 0.001, "backward": 0.002, "floor": 0.0005}],
}


def run(accuracy=0.94, name="seed", seconds=(9.0, 1.0), settings=None, **fields) -> dict:
    recipe = hlb.recipe(name, {"dtype": "float16", "master_weights": "off", **(settings or {})})
    line = {
        "recipe": name,
        "recipe_fields": dataclasses.asdict(recipe),
        "execution": {"device": "cuda", "kernels": "reference"},
        "dataset": "cifar10",
        "device": "cuda:0",
        "device_name": "a GPU",
        "versions": {"torch": "2.11.0", "driver": None},
        "commit": "0123456789",
        "command": "hlb --recipe seed",
        "time": "2026-11-22T20:00:00+00:00",
        "status": "ok",
        "accuracy": accuracy,
        "train_seconds": seconds[0],
        "eval_seconds": seconds[1],
    }
    return line | fields


def write(path, runs, first=0) -> str:
    path.write_text("".join(json.dumps(line | {"seed": i}) + "\n" for i, line in enumerate(runs, first)))
    return str(path)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder that is a checkout without results."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(records, "ROOT", tmp_path)
    return tmp_path


@pytest.fixture
def undrawn(monkeypatch):
    """Plots are named, not drawn; nothing is modelled."""
    monkeypatch.setattr(cli, "modelled", list)
    monkeypatch.setattr(cli, "_plot", lambda draw, *what, out, name, says: f"[{name}: {says}]")


def text(html: str) -> str:
    """A page as it is read."""
    html = html.replace("<wbr>", "")
    plain = re.sub(r"<[^>]+>", " ", re.sub(r"<(style|svg).*?</\1>", "", html, flags=re.DOTALL))
    plain = plain.replace("&nbsp;", " ").replace("&lt;", "<").replace("&gt;", ">").replace("&#x27;", "'")
    return re.sub(r"\s+", " ", plain)


def page(place) -> str:
    return text((place / "results" / "report" / "report.html").read_text(encoding="utf-8"))


def section(read: str, heading: str) -> str:
    """What stands under a heading: from its second mention, the first is a link."""
    headings = ["In short", "Records", "Runs", "A step", "Kernels", "How each was made"]
    after = read.split(f" {heading} ", 2)[2]
    following = headings[headings.index(heading) + 1 :]
    return after.partition(f" {following[0]} ")[0] if following else after


def test_the_page_needs_no_other_file_and_the_plots_stand_beside_it(place, capsys):
    path = write(place / "a.jsonl", [run(0.94), run(0.942), run(name="smoke", dataset="synthetic")])
    (place / "k.json").write_text(json.dumps(BENCH))
    (place / "p.json").write_text(json.dumps(PROFILE))
    assert main([path, "--out", "new/folder", "--kernels", "k.json", "--profile", "p.json"]) == 0
    assert capsys.readouterr().out == "new/folder/report.html\n"
    names = ("accuracy-time", "runs", "other-runs", "step-1", "roofline-1", "speed-up-1")
    written = {path.name for path in (place / "new" / "folder").iterdir()}
    assert written == {"report.html", *(f"{name}.{kind}" for name in names for kind in ("png", "svg"))}
    html = (place / "new" / "folder" / "report.html").read_text(encoding="utf-8")
    assert html.count("<svg") == html.count("</svg>") == len(names)
    assert not re.search(r"<(script|link|img|iframe)\b|@import|url\((?!#)", html)
    assert all(link.startswith("#") for link in re.findall(r'(?:href|src)="([^"]*)"', html))
    assert "currentColor" in html and "prefers-color-scheme" in html


def test_the_headline_is_the_fastest_that_reaches_the_target_with_its_command_and_versions(place, undrawn):
    slow = [run(0.941), run(0.943)]
    fast = [run(0.9405, settings={"epochs": 8.0}, seconds=(4.0, 1.0), command="hlb --epochs 8")] * 2
    short = [run(0.9399, settings={"epochs": 4.0}, seconds=(2.0, 0.5))]
    assert main([write(place / "a.jsonl", [*slow, *fast, *short])]) == 0
    said = section(page(place), "In short")
    assert "94 % reached on a GPU: 94.05 % [94.05, 94.05] in 5.000 s (std 0)" in said
    assert (
        "seed , float16, epochs=8.0 run with kernels=reference" in said
        and "hlb --epochs 8" in said
        and "torch 2.11.0" in said
    )
    assert "2; no record claim: 2 of the 100 runs that one takes" in said and "2 (flip)" in said
    assert "driver" not in said


def test_where_no_mean_reaches_the_target_the_headline_is_the_most_accurate_and_says_so(place, undrawn):
    runs = [run(0.93, seconds=(1.0, 0.0)), run(0.939, settings={"epochs": 12.0})]
    assert main([write(place / "a.jsonl", runs)]) == 0
    assert "94 % missed on a GPU: 93.90 % in 10 s" in section(page(place), "In short")


def test_gpu_and_cpu_have_a_headline_each_and_made_up_data_has_none(place, undrawn):
    runs = [
        run(),
        run(device="cpu", device_name="a processor"),
        run(0.99, dataset="synthetic", seconds=(1.0, 0.0)),
    ]
    assert main([write(place / "a.jsonl", runs)]) == 0
    said = section(page(place), "In short")
    assert "reached on a GPU: 94.00 %" in said and "reached on a processor: 94.00 %" in said
    assert "99.00" not in said and "99.00" not in section(page(place), "Records")
    assert "99.00" in section(page(place), "Runs")


def test_failed_runs_count_as_failures_and_in_no_mean(place, undrawn):
    runs = [run(0.94), run(0.96), run(status="failed", accuracy=None, train_seconds=1.0)]
    runs += [run(status="failed", accuracy=None, settings={"epochs": 1.0})]
    assert main([write(place / "a.jsonl", runs)]) == 0
    said = section(page(place), "Runs")
    assert "2, 1 failed accuracy, % time, s 95.00 10 1.41 0 94.00 10 96.00 10" in said
    assert "0, 1 failed" in said
    assert "no record claim: 1 of 3 runs failed" in section(page(place), "In short")


def test_what_was_not_measured_is_said_and_what_was_is_not(place, undrawn):
    assert main([write(place / "a.jsonl", [run(device="cpu")])]) == 0
    said = section(page(place), "In short")
    for missing in (
        "aims at 95 %",
        "aims at 96 %",
        "a run on a GPU",
        "a kernel on a GPU",
        "a step, op by op",
    ):
        assert missing in said
    assert "aims at 94 %" not in said
    assert "No step was profiled. This is arithmetic" in section(page(place), "A step")
    (place / "k.json").write_text(json.dumps(BENCH))
    (place / "p.json").write_text(json.dumps(PROFILE))
    write(place / "a.jsonl", [run(), run(name="record95"), run(name="record96")])
    assert main(["a.jsonl", "--kernels", "k.json", "--profile", "p.json"]) == 0
    assert "Not measured" not in page(place) and "arithmetic: least" in section(page(place), "A step")
    assert "sgd seed float16 forward tuned: wrong: <a gradient>" in section(page(place), "Kernels")


def test_every_command_commit_and_machine_is_there_and_html_in_it_is_text(place, undrawn):
    runs = [run(command=f"hlb --seed {i} <b>", commit=f"{i}bcdefgh99", dirty=True) for i in range(8)]
    assert main([write(place / "a.jsonl", runs)]) == 0
    said = section(page(place), "How each was made")
    assert all(f"hlb --seed {i} <b>" in said for i in range(5)) and "and 3 more" in said
    assert "7bcdefgh with changes" in said and "2026-11-22" in said and "a.jsonl" in said


def test_a_hundred_lines_of_one_seed_are_one_run_and_no_record_claim(place, undrawn, capsys):
    lines = [run(0.95, time=f"2026-11-22T20:00:{i:02}") | {"seed": 0} for i in range(100)]
    (place / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["a.jsonl"]) == 0
    said, told = (
        page(place),
        "99 of the runs of `seed`, float16 repeat another's seed, and each seed counts once",
    )
    assert "1; no record claim: 1 of the 100 runs that one takes" in section(said, "In short")
    assert (
        capsys.readouterr().err == f"bench report: warning: {told}\n"
        and told.replace("`seed`", " seed ").replace("  ", " ") in said
    )


def test_each_of_a_hundred_seeds_is_a_run_whatever_repeats_it(place, undrawn):
    again = [run(0.5, device="cuda:1", commit="another")] * 100  # seeds 0 to 99 once more
    write(place / "b.jsonl", again)
    assert main([write(place / "a.jsonl", [run(0.95)] * 100), "b.jsonl"]) == 0
    assert "100; a record claim: the mean of 100 runs is at least 95.0000%" in section(
        page(place), "In short"
    )


def test_lines_that_are_skipped_are_told_with_the_reason(place, undrawn, capsys):
    path = write(place / "a.jsonl", [run(0.94), run(math.nan), run(device_name=["a GPU"])])
    with open(path, "ab") as f:
        f.write("größer\n".encode("latin-1") + b"[" * 5000 + b'\n{"accuracy": 0.')
    assert main([path]) == 0
    told = "lines skipped: 1 not in UTF-8, 1 nested too deeply, 1 cut short or no JSON, 2 no runs"
    assert capsys.readouterr().err == f"bench report: warning: {path}: 5 {told}\n"
    assert told in section(page(place), "In short") and "94.00 %" in page(place)


def test_a_ledger_that_cannot_be_read_is_a_line_that_names_it(place, capsys, monkeypatch):
    ledger.DEFAULT.parent.mkdir()
    write(place / ledger.DEFAULT, [run()])

    def unreadable(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(ledger, "load", unreadable)
    assert "cannot read results/ledger.jsonl: Permission denied" in refused(capsys)


def test_a_name_may_hold_what_is_mathematics_to_matplotlib(place):
    name = "$\\frac{ 5 $"
    run_plots.distribution(name, records.groups([("a", [run(device_name=name, seed=0)])]), place / "x.svg")
    assert (place / "x.svg").read_text().count("<svg") == 1


def test_without_a_ledger_it_is_of_the_default_one_and_of_the_checkouts_results(place, undrawn):
    (place / records.RESULTS).mkdir(parents=True)
    ledger.DEFAULT.parent.mkdir()
    write(place / ledger.DEFAULT, [run(0.91)])
    write(place / records.RESULTS / "x.jsonl", [run(0.92)], first=1)
    other = {"system": "another", "device_name": "a GPU", "runs": [{"accuracy": 0.935, "seconds": 3.0}]}
    (place / records.RESULTS / "y.json").write_text(json.dumps(other))
    (place / records.RESULTS / "k.json").write_text(json.dumps(BENCH))
    assert main([]) == 0
    said = page(place)
    assert "91.50 %" in said and "93.50 %" in section(said, "Records") and "[roofline-1: " in said
    assert "bench/results/x.jsonl , results/ledger.jsonl , bench/results/y.json ." in said


def test_times_that_are_noted_not_to_be_quoted_are_on_no_page(place, undrawn):
    path = write(place / "a.jsonl", [run(0.95, seconds=(77.5, 0.0)), run(0.94, seconds=(78.5, 0.0))])
    (place / "notes.json").write_text('{"a.jsonl": {"note": "patched", "untimed": "the card was shared"}}')
    assert main([f"{path}:recipe=seed"]) == 0
    said = page(place)
    assert "94.50 %" in said and "78 " not in said and "in 78" not in said
    assert "the card was shared" in section(said, "Runs") and "patched" in section(said, "Records")
    assert "reached" not in section(said, "In short")


def test_another_system_on_our_gpu_is_never_the_headline(place, undrawn):
    (place / records.RESULTS).mkdir(parents=True)
    write(place / records.RESULTS / "x.jsonl", [run(0.92)])
    fast = {"system": "another", "device": "cuda", "runs": [{"accuracy": 0.95, "seconds": 3.0}]}
    (place / records.RESULTS / "y.json").write_text(json.dumps(fast))
    assert main([]) == 0
    assert "94 % missed on a GPU: 92.00 %" in section(page(place), "In short")
    assert "another" in section(page(place), "Records")


def test_what_is_noted_of_a_record_of_kernels_is_said_beside_it(place, undrawn):
    (place / "k.json").write_text(json.dumps(BENCH | {"note": "Percentages are of a memcpy."}))
    assert main([write(place / "a.jsonl", [run()]), "--kernels", "k.json"]) == 0
    assert "Percentages are of a memcpy." in section(page(place), "Kernels")


def test_selections_of_a_ledger_are_reported_and_nothing_else(place, undrawn):
    path = write(place / "a.jsonl", [run(0.91), run(0.92, settings={"epochs": 4.0})])
    (place / records.RESULTS).mkdir(parents=True)
    write(place / records.RESULTS / "x.jsonl", [run(0.93)])
    assert main([f"{path}:epochs=4"]) == 0
    assert "92.00 %" in page(place) and "91.00 %" not in page(place) and "93.00 %" not in page(place)


def refused(capsys, *arguments: str) -> str:
    assert main([*arguments]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("bench report: ") and said.err.count("\n") == 1 and not said.out
    return said.err


def test_mistakes_are_one_line_that_names_them(place, capsys):
    path = write(place / "a.jsonl", [run()])
    (place / "text").write_text("a text")
    assert "nothing to report: no results/ledger.jsonl" in refused(capsys)
    assert "absent.jsonl" in refused(capsys, "absent.jsonl")
    assert "text holds no runs" in refused(capsys, "text")
    assert "no run has epochs=99" in refused(capsys, f"{path}:epochs=99")
    assert "--out: cannot write text/report.html" in refused(capsys, path, "--out", "text")
    assert "--kernels: text is not a record" in refused(capsys, path, "--kernels", "text")
    assert "--kernels: a.jsonl is not a record" in refused(capsys, path, "--kernels", "a.jsonl")
    (place / "deep").write_text("[" * 99999)
    assert "--kernels: deep is not a record" in refused(capsys, path, "--kernels", "deep")
    assert "--profile: cannot read absent: No such file" in refused(capsys, path, "--profile", "absent")
    assert not (place / "results").exists()


@pytest.mark.parametrize("arguments", [[], ["--markdown"]])
def test_without_matplotlib_the_line_says_what_to_install(monkeypatch, capsys, arguments):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install matplotlib" in refused(capsys, *arguments)


def test_help_fits_a_terminal(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert "--markdown" in out and max(map(len, out.splitlines())) <= 80


def test_the_modelled_step_is_that_of_the_launches(monkeypatch):
    monkeypatch.setattr(cli, "MODELLED", "smoke")
    (eager,), (kernels,) = (bar.values() for bar in cli.modelled())
    assert eager.keys() == kernels.keys() and "group1.conv1" in kernels
    steps = launched(hlb.RECIPES["smoke"], "triton")
    assert sum(kernels.values()) == pytest.approx(sum(p.seconds(chips.AIMED_AT) for p in steps))


@pytest.mark.parametrize("content", [[], {}, {"rows": 3}, {"rows": [{"op": "x"}]}, {"rows": [3]}])
def test_other_json_is_neither_kind_of_record(content):
    assert not benches.is_bench(content) and not benches.is_profile(content)
    assert benches.is_bench(BENCH) and benches.is_profile(PROFILE) and not benches.is_bench(PROFILE)
