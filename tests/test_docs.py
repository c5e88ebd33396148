"""README.md, ARCHITECTURE.md, docs/ and the guides in folders: the files that they name exist, their commands
are understood, what they show is printed, and facts have the numbers of their sources.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import json
import math
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean

import pytest

import bench.card.cli
import bench.check.cli
import bench.cli
import bench.gate.cli
import bench.pairs
import bench.report.cli
import bench.sweeps.simulation
import bench.tune.cli
import hlb
import kernels.__main__ as catalogue
from hlb import cli
from hlb.cost import expected, floor, passes
from hlb.runs import ledger
from hlb.runs.statistics import RECORD_RUNS, record_claim, summary, welch

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path
    for path in (
        *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "kernels/README.md")),
        *(ROOT / "bench" / name / "README.md" for name in ("baselines", "results/h200")),
        *ROOT.glob("docs/*.md"),
    )
}
SCRIPTS = [ROOT / ".ci" / "run", *(ROOT / ".github" / "workflows").glob("*.yml")]
# Named by a page, and made by a command; a name that is none of a file here.
MADE = {"bench/results/h200/record94.jsonl", "cifar-10-batches-py/", "kernels/convolution/measured.json",
        "results/ledger.jsonl", "roofline.png", "roofline.svg", "speedup.png", "speedup.svg"}  # fmt: skip
FILE = re.compile(r"[\w./-]+(/|\.(py|md|jsonl?|txt|svg|png|ya?ml|ipynb|toml))")
PROMPT = "$ "


def spans(text: str) -> list[str]:
    """What stands in backticks, within a line."""
    prose = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", prose)


def blocks(text: str) -> list[list[str]]:
    """The lines of each fenced block, and of each indented one, without their indentation."""
    fenced = re.compile(r"^( *)```\w*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
    indented = re.compile(r"(?:^|(?<=\n\n))((?: {4,}\S.*(?:\n|$))+)")
    rest = fenced.sub("", text)
    texts = [match[2] for match in fenced.finditer(text)] + [match[1] for match in indented.finditer(rest)]
    return [[line.strip() for line in block.splitlines()] for block in texts]


# Files


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_or_links_is_there(page):
    text = PAGES[page].read_text()
    links = {target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target}
    missing = {link for link in links if link and not (PAGES[page].parent / link).exists()}
    named = {span for span in spans(text) if FILE.fullmatch(span)} - MADE
    folders = (ROOT, PAGES[page].parent) if page.startswith("bench/") else (ROOT,)
    missing |= {name for name in named if not any((folder / name).exists() for folder in folders)}
    assert not missing


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.M
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_heading_that_a_page_links_is_there(page):
    targets = re.findall(r"\]\(([^)\s]*)#([^)\s]+)\)", PAGES[page].read_text())
    paths = [
        (PAGES[page].parent / link if link else PAGES[page], at) for link, at in targets if "://" not in link
    ]
    assert not [(path, at) for path, at in paths if at not in anchors(path.read_text())]


def test_readme_fits_a_screen_and_links_every_page():
    lines = PAGES["README.md"].read_text().splitlines()
    assert len(lines) <= 100
    pages = [page for page in PAGES if page.startswith(("docs/", "kernels/", "ARCHITECTURE"))]
    assert not [page for page in pages if f"]({page})" not in "\n".join(lines)]


def test_the_time_on_a_cpu_in_readme_is_that_of_its_record():
    seconds, source = re.search(
        r"`cpu94` took \[(\d+) s.*?\]\((.*?)\)", PAGES["README.md"].read_text()
    ).groups()
    assert seconds == f"{summary(runs_of(ROOT / source)[1])['mean']:.0f}"


# Commands


def train_by_default(arguments: list[str]) -> None:
    """`hlb`, whose options without a command are those of `hlb train`; and the recipe with its settings."""
    if not arguments or arguments[0].startswith("-"):
        arguments = ["train", *arguments]
    options = cli.parser().parse_args(arguments)
    if options.command == "train":
        hlb.recipe(options.recipe or "record94", options.set)


def of_the_catalogue(arguments: list[str]) -> None:
    if unknown := set(arguments) - {"--json", "--help"}:
        raise ValueError(f"no option {unknown}")


@functools.cache
def usage(module: str) -> str:
    """What `--help` prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit):
        importlib.import_module(module).main(["--help"])
    return printed.getvalue()


def helped(module: str) -> Callable[[list[str]], None]:
    """For a program whose help has all of its options."""

    def understood(arguments: list[str]) -> None:
        known = re.findall(r"--[a-z-]+", usage(module))
        for option in (argument.split("=")[0] for argument in arguments if argument.startswith("--")):
            if option not in known:
                raise ValueError(f"{option} is not in the help of {module}")

    return understood


def of_files(arguments: list[str]) -> None:
    """pytest: its files are there; -k has a word behind it."""
    for name in arguments:
        if "/" in name and not name.startswith("-") and not (ROOT / name).exists():
            raise ValueError(f"{name} is not there")


PROGRAMS = {  # the first that a command begins with says how it is understood
    "python -m hlb": train_by_default,
    "hlb": train_by_default,
    "python -m kernels": of_the_catalogue,
    "python -m bench pairs": bench.pairs.parsed,
    "python -m bench halving": bench.sweeps.simulation.parsed,
    "python -m bench pace": lambda arguments: None,
    "python -m bench times": lambda arguments: None,
    "python -m bench check": bench.check.cli.parsed,
    "python -m bench tune": bench.tune.cli.parsed,
    "python -m bench report": bench.report.cli.parsed,
    "python -m bench gate": bench.gate.cli.parsed,
    "python -m bench card": bench.card.cli.parsed,
    "python -m bench": bench.cli.parsed,
    "python tests/mutants.py": helped("mutants"),
    "python -m pytest": of_files,
    "pytest": of_files,
}
SOMETHING = {
    "COMMAND": "train",
    "NAME": "cross_entropy",
    "CHOICE": "triton",
    "FILE": "file",
    "SECONDS": "60",
}  # for what a page leaves open


def commands(text: str) -> Iterator[tuple[Callable[[list[str]], None], list[str]]]:
    """(how it is understood, arguments) of each command in a page's code."""
    lines = [line for block in blocks(text) for line in block]
    # A command that is only mentioned, such as `hlb compare`, has no arguments.
    bare = re.compile(r"(python -m )?\w+ \w+")
    mentioned = [f"{span} --help" if bare.fullmatch(span) else span for span in spans(text)]
    for line in lines + mentioned:
        line = re.sub(r"\s#.*|\s>.*|\[[^]]*\]", "", line.removeprefix(PROMPT).removeprefix("!"))
        line = re.sub(r"^torchrun \S+ \S+ -m", "python -m", line)
        for part in re.split(r"&&|\|", line):
            words = part.split()
            for program, understood in PROGRAMS.items():
                if words[: len(program.split())] == program.split():
                    arguments = shlex.split(part)[len(program.split()) :]
                    yield understood, [SOMETHING.get(argument, argument) for argument in arguments]
                    break


def fault(understood: Callable[[list[str]], None], arguments: list[str]) -> str | None:
    """Why a command is not understood."""
    try:
        understood(arguments)
    except SystemExit as ended:
        return f"status {ended.code}" if ended.code else None
    except (hlb.UserError, ValueError) as error:
        return str(error)


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path, monkeypatch):
    """Options that name a file have its folder made; DIR is a folder with CIFAR-10."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "DIR" / "cifar-10-batches-py").mkdir(parents=True)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_is_understood(page):
    faults = [(shlex.join(words), fault(how, words)) for how, words in commands(PAGES[page].read_text())]
    assert not [command for command in faults if command[1]]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_every_command_of_ci_is_understood(path):
    text = re.sub(r"[$][{][^}]*[}]", "", path.read_text())
    lines = [line.strip().removeprefix("- ").removeprefix("run: ") for line in text.splitlines()]
    block = "".join(f"    {line}\n" for line in lines if line)
    faults = [(shlex.join(words), fault(how, words)) for how, words in commands(f"\n\n{block}")]
    assert len(faults) > 3 and not [command for command in faults if command[1]]


def test_commands_are_found_in_pages():
    assert not [page for page, path in PAGES.items() if not any(commands(path.read_text()))]
    assert len(list(commands("    hlb env\n\n    hlb audit\n    hlb\n"))) == 3


@pytest.mark.parametrize(
    "command",
    [
        "hlb --runs many",
        "hlb --recipe nothing",
        "hlb --set no_field=1",
        "hlb nothing",
        "hlb sweep --epoch 3",
        "python -m bench check nothing",
        "python -m kernels --nothing",
        "python -m bench nothing --case x",
        "python -m bench --cases x",
        "python -m bench gate --runs many",
        "python -m bench report --markdwon",
        "python tests/mutants.py --jops 3",
        "python -m pytest tests/test_nothing.py",
    ],
)
def test_a_mistake_in_a_command_is_noticed(command):
    ((understood, arguments),) = commands(f"`{command}`")
    assert fault(understood, arguments)


# What is shown


def shown(text: str) -> list[tuple[str, list[str]]]:
    """(command, the lines below it) of each prompt in a page's blocks."""
    prompts = []
    for block in blocks(text):
        if block[0].startswith(PROMPT):
            for line in block:
                if line.startswith(PROMPT):
                    prompts.append((line.removeprefix(PROMPT).partition(" | ")[0], []))
                else:
                    prompts[-1][1].append(line)
    return prompts


# Commands that a test has the time to run; what they print is the same on every machine.
RUN = {
    "python -m kernels": lambda: catalogue.main([]),
    "hlb recipes seed --kernels triton": lambda: cli.main(["recipes", "seed", "--kernels", "triton"]),
    "hlb recipes cpu94 --kernels triton": lambda: cli.main(["recipes", "cpu94", "--kernels", "triton"]),
}


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_is_what_the_command_prints(page, monkeypatch):
    prepare = floor.Phase("prepare", 1, ())
    monkeypatch.setattr(floor, "phases", lambda *_: [prepare])  # all takes seconds, and is shown nowhere
    monkeypatch.setattr(expected.Expectation, "shares", dict.fromkeys(expected.HOW, 0.0))
    for command, wanted in shown(PAGES[page].read_text()):
        if command in RUN:
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                RUN[command]()
            lines = {line.strip() for line in printed.getvalue().splitlines()}
            assert wanted and set(wanted) <= lines, command


def test_pages_show_what_some_commands_print():
    seen = {command for path in PAGES.values() for command, _ in shown(path.read_text())}
    assert set(RUN) <= seen


def test_sentences_of_a_claim_are_those_that_are_printed():
    page = PAGES["docs/record-claim.md"].read_text()
    runs = [0.94, 0.95] * (RECORD_RUNS // 2)
    for accuracies in (runs, [accuracy - 0.01 for accuracy in runs], runs[1:]):
        _, sentence = record_claim(accuracies, 0, "cifar10", 0.94)
        assert re.sub(r"(?<=least )[\d.]+", "…", sentence) in page


# Tables


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the rows below a table's headings, of which one is `heading`."""
    tables = re.findall(r"((?:^\|.*\n)+)", PAGES[page].read_text(), re.MULTILINE)
    split = [[re.split(r" ?\| ?", line)[1:-1] for line in table.splitlines()] for table in tables]
    return [row for head, _, *body in split if heading in head for row in body]


def test_bytes_of_a_tensor_follow_from_its_shape_and_are_those_of_the_diagram():
    told = rows("docs/fused-block.md", "shape")
    assert len(told) == 9
    for name, shape, megabytes, _ in told:
        values, digits = math.prod(map(int, re.findall(r"\d+", shape))), len(megabytes.partition(".")[2])
        sizes = {round(values * itemsize / 1e6, digits) for itemsize in (1, 2, 4)}
        assert float(megabytes) in sizes, name
    drawn = (ROOT / "docs" / "fused-block.svg").read_text()
    extents = {float(number) for number in re.findall(r"([\d.]+) MB", drawn)}
    assert extents <= {float(row[2]) for row in told} | {126.0}


FACTS = "docs/measured-facts.md"


def runs_of(path: Path) -> tuple[list[float], list[float]]:
    """Accuracies, and seconds of training and evaluation."""
    if path.suffix == ".json":
        runs = json.loads(path.read_text())["runs"]
        return [run["accuracy"] for run in runs], [run["seconds"] for run in runs]
    runs = ledger.load(path)
    return [run["accuracy"] for run in runs], [run["train_seconds"] + run["eval_seconds"] for run in runs]


def test_runs_have_the_numbers_of_their_records():
    facts = rows(FACTS, "mean accuracy, seconds, n")
    assert len(facts) == 7
    for _, numbers, source in facts:
        accuracy, seconds = map(summary, runs_of(ROOT / source.strip("`")))
        mean = seconds["mean"]
        written = f"{mean:.0f}" if mean >= 1000 else f"{mean:.1f}"
        assert numbers == f"{100 * accuracy['mean']:.2f} %, {written} s, n = {accuracy['n']}", source


def test_runs_with_8_bit_operands_and_without_have_the_numbers_of_their_records():
    *each, (_, told, _) = rows(FACTS, "mean accuracy, n, last epoch's loss")
    assert len(each) == 2
    accuracies = []
    for _, numbers, source in each:
        runs = ledger.load(ROOT / source.strip("`"))
        accuracies.append([run["accuracy"] for run in runs])
        mean, loss = fmean(accuracies[-1]), fmean(run["epochs"][-1]["train_loss"] for run in runs)
        assert numbers == f"{100 * mean:.2f} %, n = {len(runs)}, {loss:.4f}", source
    test = welch(*accuracies)
    low, high = (100 * bound for bound in test["ci95"])
    assert told == f"{100 * test['difference']:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f}"


def test_ratios_of_step_times_are_those_of_their_records():
    facts = rows(FACTS, "median ratio of step times, pairs")
    assert len(facts) == 4
    for _, numbers, source in facts:
        record = json.loads((ROOT / source.strip("`")).read_text())
        assert numbers == f"{record['median_ratio']:.3f}, {len(record['seconds'])} pairs", source


def test_steps_move_and_do_what_is_counted():
    for _, *columns, command in rows(FACTS, "eager references"):
        name = command.strip("`").split()[2]
        for choice, numbers in zip(("triton", "reference"), columns, strict=True):
            launches = passes.launched(hlb.recipe(name), choice)
            bytes, flops = (sum(getattr(p, what) for p in launches) for what in ("bytes", "flops"))
            assert numbers == f"{bytes / 1e6:.1f} MB, {flops / 1e9:.2f} GFLOP", (name, choice)


def test_bytes_and_flops_of_ops_are_those_of_the_page_of_costs():
    sections = (ROOT / "docs" / "kernel-costs.md").read_text().split("\n## ")
    sections = {section.split("\n")[0]: section for section in sections}
    facts = rows(FACTS, "fused MB") + rows(FACTS, "issued / useful")
    assert len(facts) == 12
    for _, op, *wanted in facts:
        lines = [re.split(r" *\| *", line)[1:-1] for line in sections[op.strip("`")].splitlines()]
        assert any(set(wanted) <= set(cells) and wanted[0] == cells[0] for cells in lines), (op, wanted)


def test_registers_are_those_of_the_baseline_of_compiled_code():
    launches = json.loads((ROOT / "bench" / "baselines" / "static.json").read_text())["launches"]
    registers = launches["columns"].index("registers")
    facts = rows(FACTS, "on 9.0")
    assert len(facts) == 6
    for kernel, case, tile, *told in facts:
        key = f"conv/{kernel.strip('`')}/{case}/float16/8 warps 3 stages {tile}"
        by_chip = {chip: row for chips, row in launches["entries"][key].items() for chip in chips.split()}
        assert told == [str(by_chip[chip][registers]) for chip in ("9.0", "10.0")], key
