"""The cases of the SPECs, against what recipes call: a shape without one is neither tested nor tuned."""

from __future__ import annotations

import pytest

import hlb
import kernels
from hlb.cost.rehearsal import Call, Rehearsal
from hlb.step import plan, rounds

EXAMPLES = 50000


def calls(recipe) -> list[Call]:
    """Of all that a run of a recipe does, on tensors without memory."""
    run = Rehearsal(recipe, examples=EXAMPLES)
    parts = [run.prepare, run.evaluate]
    parts += [lambda n=n: run.step.shuffle(n) for n in {images for _, images in rounds(recipe, EXAMPLES)}]
    parts += [lambda v=v: run.step(v) for v in dict.fromkeys(plan(recipe, EXAMPLES))]
    return [call for part in parts for call in run.part(part)[0]]


def frozen(value):
    return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value


def has_case(op: str, inputs: dict) -> bool:
    """Whether a case of the op has all extents and options of a call that bytes and FLOPs depend on."""
    evaluated = "_eval" * (inputs.get("training") is False)
    fields = {name: frozen(value) for name, value in kernels.CATALOGUE[op].case_of(inputs).items()}
    fields.pop("by_kernel", None)  # the cases are of all passes by kernels
    cases = kernels.CATALOGUE[op + evaluated].cases
    return any(all(case.get(name) == value for name, value in fields.items()) for case in cases)


@pytest.mark.parametrize("name", ["record94", "cpu94", "seed", "airbench94"])
def test_every_call_of_a_recipe_has_a_case_of_its_extents(name):
    found = calls(hlb.recipe(name))
    assert {"augment", "stem", "conv_bn_act", "pool_head", "sgd", "views"} <= {op for op, _ in found}
    missing = {
        f"{op}: {kernels.CATALOGUE[op].case_of(inputs)}" for op, inputs in found if not has_case(op, inputs)
    }
    assert not missing


def test_names_of_cases_tell_them_apart():
    for spec in kernels.CATALOGUE.values():
        names = [case.name for case in spec.cases]
        assert len(set(names)) == len(names), spec.name
