"""Help: a page for each command, whose examples and options are real; and of recipes, what each field is."""

import dataclasses
import json
import re

import pytest

import bench.check.cli
import bench.cli
import bench.gate.cli
import bench.pairs
import bench.tune.cli
import hlb
from hlb import recipes
from hlb.cli import COMMANDS, main, parser
from hlb.commands import help
from hlb.cost import fields

HELP = [["--help"], ["-h"], *([command, "--help"] for command in COMMANDS)]


def helped(arguments: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    out, err = capsys.readouterr()
    assert (left.value.code, err) == (0, "")
    return out


@pytest.mark.parametrize("arguments", HELP, ids=" ".join)
def test_help_fits_a_screen_and_shows_examples(capsys, arguments):
    lines = helped(arguments, capsys).rstrip("\n").split("\n")
    command = arguments[0] if arguments[0] in COMMANDS else "train"
    assert lines[0].startswith(f"usage: hlb {'[train]' if command == 'train' else command} ")
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    examples = sum(bool(re.match(r"  (hlb|torchrun) ", line)) for line in lines)
    assert examples >= (4 if command == "train" else 1)


@pytest.mark.parametrize("arguments", HELP, ids=" ".join)
def test_examples_of_the_help_are_valid_command_lines(capsys, arguments):
    examples = re.findall(r"^  hlb\b.*", helped(arguments, capsys), re.MULTILINE)
    for example in " && ".join(re.split(r"\s{3,}", line.strip())[0] for line in examples).split("&&"):
        words = example.split()[1:]
        commanded = bool(words) and not words[0].startswith("-")
        parser().parse_args(words if commanded else ["train", *words])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_all_options_of_its_command_and_no_other(command, capsys):
    said = set(re.findall(r"--[a-z-]+", helped([command, "--help"], capsys)))
    said -= {"--help", "--nproc-per-node", *{"train": ["--views"], "eval": ["--save"]}.get(command, [])}
    (subparsers,) = (action for action in parser()._actions if action.dest == "command")
    there = {option for action in subparsers.choices[command]._actions for option in action.option_strings}
    assert said == there - {"-h", "--help"}


def test_pages_take_more_recipes_than_there_are(monkeypatch):
    many = {f"recipe-number-{i}": hlb.RECIPES["seed"] for i in range(40)}
    monkeypatch.setattr(help, "RECIPES", hlb.RECIPES | many)
    page = help.page(help.TRAIN)
    assert max(map(len, page.split("\n"))) <= 80 and "record94" in page


@pytest.mark.parametrize("command", ["train", "sweep", "compare", "eval", "audit", "recipes", "env"])
def test_json_takes_a_file_or_standard_output_in_every_command(command):
    needed = {"compare": ["a", "b"], "eval": ["model.pt"]}.get(command, [])
    for words, target in (
        (["--json"], "-"),
        (["--json", "-"], "-"),
        (["--json", "a.json"], "a.json"),
        ([], None),
    ):
        assert parser().parse_args([command, *needed, *words]).json == target


@pytest.mark.parametrize(
    ("parsed", "needed"),
    [
        (bench.cli.parsed, []),
        (bench.cli.parsed, ["vs", "HEAD", "sgd"]),
        (bench.check.cli.parsed, []),
        (bench.tune.cli.parsed, []),
        (bench.gate.cli.parsed, []),
        (bench.pairs.parsed, ["lr=1", "lr=2"]),
    ],
    ids=["benchmark", "vs", "check", "tune", "gate", "pairs"],
)
def test_json_takes_a_file_or_standard_output_in_every_command_of_bench(
    parsed, needed, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for words, target in (
        (["--json"], "-"),
        (["--json", "-"], "-"),
        (["--json=a.json"], "a.json"),
        ([], None),
    ):
        assert parsed([*needed, *words]).json == target


def test_an_option_counts_as_given_where_it_stands_and_not_by_its_default():
    def given(*words: str) -> dict[str, str]:
        return parser().parse_args(words).given

    assert given("train") == {} and given("recipes", "seed") == {"name": "NAME"}
    assert given("train", "--runs=1", "--set", "lr=1") == {"runs": "--runs", "set": "--set"}
    assert bench.cli.parsed(["sgd", "--samples", "3"]).given == {"names": "NAMES", "samples": "--samples"}
    options = parser().parse_args(["train", "--runs", "1"])
    options.only(["runs"], "as it is read")
    options.without(["seed"], "as it is not given")
    with pytest.raises(hlb.UserError, match="^--runs: only so; leave --runs out$"):
        options.only(["seed"], "only so")


def test_recipes_and_env_write_json_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "seed", "--json", "a.json"]) == main(["env", "--json", "b.json"]) == 0
    assert json.loads((tmp_path / "a.json").read_text())["seed"]["steps"] == 970
    out = capsys.readouterr().out
    assert json.loads((tmp_path / "b.json").read_text())["torch"] in out and "fields, for --set" in out


def test_a_recipe_is_shown_as_it_would_be_with_other_values(capsys):
    assert main(["recipes", "seed", "--set", "epochs=80", "base_depth=128", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["seed"]
    assert (shown["epochs"], shown["steps"]) == (80, 7760)
    assert shown["parameters"]["trainable"] > 20e6
    assert main(["recipes", "seed", "--set", "epochs=80"]) == 0
    assert re.search(r"^  epochs=80.0 ", capsys.readouterr().out, re.MULTILINE)


def test_every_field_has_a_line_and_what_it_takes(capsys):
    names = [field.name for field in dataclasses.fields(hlb.Recipe) if field.name != "name"]
    assert list(fields.MEANING) == names
    assert main(["recipes", "record94"]) == 0
    lines = capsys.readouterr().out.split("fields, for --set:\n")[1].rstrip("\n").split("\n")
    assert [line.split("=")[0].strip() for line in lines] == names
    for line, name in zip(lines, names):
        assert fields.MEANING[name] in line and line.endswith(")")
    by_name = dict(zip(names, lines))
    assert "(1 to 4096)" in by_name["base_depth"] and "(none, ema, lookahead, tail)" in by_name["averaging"]
    assert "(8 to 32, a list)" in by_name["sizes"] and "(true or false)" in by_name["drop_last"]


def test_a_field_without_a_range_is_a_truth_value_or_a_choice():
    """So that what is said to be accepted is what is checked."""
    kinds = recipes._kinds()
    plain = {name for name in kinds if name not in recipes.RANGES and name not in recipes.CHOICES}
    assert {kinds[name] for name in plain} == {bool}
