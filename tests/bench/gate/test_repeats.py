"""A repeat of the speed gate: what is timed, in which process, and what is said of what cannot be."""

import io
import json
import os
import sys
import textwrap

import pytest
import torch

import kernels
from bench.gate import baseline, cli, repeats
from hlb import UserError
from kernels.base.spec import Case, KernelSpec


def made(name: str, op, reference=lambda x: 2 * x) -> KernelSpec:
    return KernelSpec(
        name=name,
        formula="2 x",
        reference=reference,
        op=op,
        ops=(),
        make=lambda case, dtype, device: {"x": torch.randn(case.n, 8, device=device).to(dtype)},
        cases=(Case("small eval", n=4), Case("large", n=64)),
        space={},
        counted=(),
        bytes=lambda case, dtype: {},
        dtypes=(torch.float32, torch.float16),
        differentiable=("x",),
    )


def fails(x):
    raise RuntimeError("out of registers\nand more")


@pytest.fixture
def ops(monkeypatch):
    """Small ones for a CPU, and small ceilings."""
    specs = (made("right", lambda x: 2 * x), made("wrong", lambda x: 3 * x), made("broken", fails))
    monkeypatch.setattr(kernels, "CATALOGUE", {spec.name: spec for spec in specs})
    monkeypatch.setattr(repeats, "COPIED", {"cpu": 1 << 12})
    monkeypatch.setattr(repeats.timing, "SIDE", {"cpu": 16})
    monkeypatch.setattr(repeats.timing, "SAMPLE_SECONDS", {"cpu": 1e-4})
    monkeypatch.setattr(repeats, "WARM_SECONDS", 0.001)
    repeats.wrong.cache_clear()


def test_catalogue_has_every_case_in_every_direction_and_finds_it_again(ops):
    calls = repeats.catalogue()
    assert len(calls) == 3 * 2 * 2 and calls["right large both"] == {"dtype": "float16", "n": 64}
    assert list(repeats.catalogue(["wrong"])) == [name for name in calls if name.startswith("wrong")]
    for name in calls:
        spec, case, direction = repeats.named(name)
        assert name == f"{spec.name} {case.name} {direction}"


def test_names_of_the_shipped_cases_are_all_different():
    for spec in kernels.CATALOGUE.values():
        names = [case.name for case in spec.cases]
        assert len(set(names)) == len(names), spec.name


def test_repeat_on_a_cpu_times_what_is_right_and_says_what_is_wrong(ops):
    names = [*baseline.CEILINGS, *repeats.catalogue()]
    measured = dict(repeats.measured(names, names, 2, "cpu"))
    assert list(measured) == names
    for name, value in measured.items():
        if name.startswith("wrong"):
            assert value.startswith("wrong values: output 0: relative error")
        elif name.startswith("broken"):
            assert value == "RuntimeError: out of registers"
        else:
            assert 0 < value < 0.1, name
    assert isinstance(
        dict(repeats.measured(["wrong large forward"], [], 2, "cpu"))["wrong large forward"], float
    )


def test_baseline_is_made_and_judged_with_times_of_this_cpu(ops, monkeypatch, tmp_path):
    monkeypatch.delitem(kernels.CATALOGUE, "wrong")
    monkeypatch.delitem(kernels.CATALOGUE, "broken")
    monkeypatch.setattr(cli, "this_gpu", lambda: "NVIDIA H200")
    monkeypatch.setattr(cli, "Repeats", lambda: lambda names: dict(repeats.measured(names, [], 2, "cpu")))
    path = tmp_path / "baseline.json"
    assert cli.main(["--update", "--repeats", "4", "--baseline", str(path)]) == 0
    assert baseline.load(path, "NVIDIA H200").cases.keys() == repeats.catalogue().keys()
    monkeypatch.setattr(cli.judge, "MACHINE", 1000.0)  # a CPU that others use too
    assert cli.main(["--baseline", str(path), "--repeats", "4", "--max-slowdown", "100"]) == 0


def test_process_answers_with_a_line_for_each_name(ops):
    out = io.StringIO()
    request = {"names": ["copy", "broken large forward"], "checked": [], "samples": 1, "device": "cpu"}
    repeats.serve(request, out)
    ready, copy, broken = out.getvalue().splitlines()
    assert ready == repeats.READY and json.loads(copy)[1] > 0
    assert json.loads(broken) == ["broken large forward", "RuntimeError: out of registers"]


def without_a_compiler(x):
    raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable")


def test_a_machine_that_compiles_nothing_is_no_kernels_fault(ops, monkeypatch):
    monkeypatch.setitem(kernels.CATALOGUE, "right", made("right", without_a_compiler))
    out = io.StringIO()
    request = {"names": ["right large forward"], "checked": ["right large forward"]}
    repeats.serve(request | {"samples": 1, "device": "cpu"}, out)
    _, line = out.getvalue().splitlines()
    none, why = json.loads(line)
    assert none is None and why.startswith("nothing can be compiled here: no C compiler is found")
    measure = processes(monkeypatch, f"print('ready')\nprint({line!r})")
    with pytest.raises(UserError, match="^nothing can be compiled here: no C compiler is found"):
        measure(["right large forward"])


def processes(monkeypatch, script: str) -> repeats.Repeats:
    """Repeats by processes that run this in place of measuring."""
    head = "import json, sys, os\nask = json.load(sys.stdin)\n"
    command = (sys.executable, "-S", "-c", head + textwrap.dedent(script))
    monkeypatch.setattr(repeats.Repeats, "command", command)
    return repeats.Repeats(samples=3)


def test_case_that_ends_its_process_is_at_fault_and_those_after_it_are_measured_by_another(monkeypatch):
    measure = processes(
        monkeypatch,
        """
        print("ready", flush=True)
        for name in ask["names"]:
            if name == "b":
                os.abort()
            print(json.dumps([name, 1.0]), flush=True)
            if name == "c":
                break  # as after an illegal access
        """,
    )
    assert measure(["a", "b", "c", "d"]) == {
        "a": 1.0,
        "b": "its process ended with status -6",
        "c": 1.0,
        "d": 1.0,
    }


def test_values_are_checked_in_the_first_repeat_alone(monkeypatch):
    measure = processes(
        monkeypatch, 'print("ready")\nfor n in ask["names"]: print(json.dumps([n, str(ask)]))'
    )
    first, second = measure(["a"])["a"], measure(["a", "b"])["a"]
    assert "'checked': ['a'], 'samples': 3, 'device': 'cuda'" in first and "'checked': ['b']" in second


def test_process_that_does_not_start_is_an_error_and_not_a_kernels_fault(monkeypatch):
    with pytest.raises(UserError, match="did not start"):
        processes(monkeypatch, "sys.exit(1)")(["a", "b"])


def test_interrupt_ends_the_process_too(monkeypatch):
    measure = processes(
        monkeypatch,
        'print("ready")\nprint(json.dumps(["a", os.getpid()]), flush=True)\nimport time; time.sleep(60)',
    )
    started = []

    def interrupted(line, loads=json.loads):
        started.append(loads(line)[1])
        raise KeyboardInterrupt

    monkeypatch.setattr(repeats.json, "loads", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure(["a", "b"])
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)
