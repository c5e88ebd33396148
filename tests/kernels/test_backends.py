"""Which implementation of an op runs: the choice per op, what can run where, and a machine without triton."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hlb
import kernels
from hlb import UserError, synthetic
from hlb.execution import resolve
from hlb.train import Trainer
from kernels.base import launch
from kernels.convolution import selection

ROOT = Path(__file__).parents[2]
H200 = ROOT / "bench" / "results" / "h200"
# One step an epoch, so that every step's loss shows. Of much fewer images one rounding that flips an argmax
# shows too: with 6, the reference's third loss differs by 2e-3 from that of its own contiguous layout.
FIRST_STEPS = {"batch_size": 16, "epochs": 2, "eval_batch_size": 4, "base_depth": 4, "whiten_images": 16,
               "sizes": "16", "dtype": "float32"}  # fmt: skip
# Large tiles of convolutions: the interpreter takes milliseconds for a step, whatever its size.
FEW_STEPS = {"order": "rows", "rows": 256, "cols": 64, "depth": 256, "splits": 1}


@pytest.fixture
def no_interpreter(monkeypatch):
    monkeypatch.setattr(launch, "INTERPRETED", False)


def chosen(choice: str, **settings) -> str:
    """What `--kernels choice` resolves to on a CPU."""
    recipe = hlb.recipe("smoke", settings)
    return resolve(recipe, hlb.Execution(device="cpu", kernels=choice))[1].kernels


def test_a_choice_holds_for_every_op_but_its_exceptions():
    choice = kernels.choose("triton,sgd=reference")
    assert choice.pop("sgd") == "reference"
    assert set(choice.values()) == {"triton"}
    ops = kernels.backend("triton,sgd=reference")
    assert ops.sgd is kernels.BACKENDS["reference"]["sgd"]
    assert ops.cross_entropy is kernels.CATALOGUE["cross_entropy"].op


def test_tuned_chooses_convolutions_by_shape_and_has_kernels_for_the_rest():
    choice = kernels.choose("tuned,sgd=reference")
    assert (choice.pop("conv_bn_act"), choice.pop("sgd")) == ("tuned", "reference")
    assert set(choice.values()) == {"triton"}
    assert kernels.backend("tuned").se_gate is kernels.CATALOGUE["se_gate"].op


@pytest.mark.parametrize(
    "choice", ["nonsense", "", "triton,nonsense=reference", "triton,sgd=nonsense", "triton,"]
)
def test_an_unknown_choice_is_a_value_error(choice):
    with pytest.raises(ValueError, match="^kernels: got "):
        kernels.choose(choice)


def test_every_op_of_the_reference_is_an_op_of_the_other_backend():
    assert kernels.BACKENDS["triton"].keys() == kernels.BACKENDS["reference"].keys()


def test_every_kernel_of_the_catalogue_is_what_the_triton_backend_calls():
    called = kernels.BACKENDS["triton"].values()
    assert all(spec.op in called for spec in kernels.CATALOGUE.values())


def test_auto_is_the_reference_on_a_cpu():
    assert chosen("auto") == "reference"


def test_float64_has_no_kernels():
    assert chosen("triton", dtype="float64") == "reference"


def test_triton_on_a_cpu_needs_the_interpreter(no_interpreter):
    with pytest.raises(UserError, match="^--kernels triton: kernels need a CUDA device.*TRITON_INTERPRET=1"):
        chosen("triton")
    with pytest.raises(UserError, match="^--kernels reference,sgd=triton: kernels need a CUDA device"):
        chosen("reference,sgd=triton")
    assert chosen("tuned") == "reference"  # as no kernel can run


def test_a_kernel_on_a_cpu_without_the_interpreter_is_a_value_error(no_interpreter):
    with pytest.raises(ValueError, match="^device: got cpu, accepted is a CUDA device"):
        kernels.CATALOGUE["cross_entropy"].op(torch.zeros(2, 10), torch.zeros(2, dtype=torch.int64), 0.2)


@pytest.mark.skipif(not launch.INTERPRETED, reason="triton does not interpret here")
def test_an_interpreter_that_its_numpy_is_too_new_for_is_one_line_that_names_both(monkeypatch):
    monkeypatch.setattr(launch.np, "__version__", "2.4.0")
    both = (
        f"the interpreter of triton {launch.triton.__version__} does not work with numpy 2.4.0: pip install"
    )
    with pytest.raises(ValueError, match=f"^device: {both} 'numpy<2.4'$"):
        kernels.CATALOGUE["cross_entropy"].op(torch.zeros(2, 10), torch.zeros(2, dtype=torch.int64), 0.2)
    for choice in ("triton", "tuned", "reference,sgd=triton"):
        with pytest.raises(UserError, match=f"^--kernels {choice}: {both}"):
            chosen(choice)
    assert chosen("reference") == chosen("auto") == "reference"


@pytest.mark.parametrize(("triton", "numpy"), [("3.6.0", "2.3.5"), ("3.7.0", "2.4.0"), ("3.10.1", "2.10.0")])
def test_other_versions_are_tried(triton, numpy, monkeypatch):
    monkeypatch.setattr(launch, "INTERPRETED", True)
    monkeypatch.setattr(launch.triton, "__version__", triton, raising=False)
    monkeypatch.setattr(launch.np, "__version__", numpy)
    assert launch.interpreter_fault() is None


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # `import triton` raises ImportError
import torch, kernels, hlb
from hlb.cli import main
logits = torch.zeros(2, 10)
loss, correct = kernels.backend("reference").cross_entropy(logits, torch.zeros(2, dtype=torch.int64), 0.2)
assert correct == 2
try:
    kernels.backend("triton").cross_entropy(logits, torch.zeros(2, dtype=torch.int64), 0.2)
except ValueError as error:
    assert "triton is not installed" in str(error), error
else:
    raise AssertionError("a kernel ran without triton")
assert main(["recipes", "smoke", "--kernels", "triton"]) == 0
sys.exit(main(["--recipe", "smoke", "--data", "synthetic", "--kernels", "triton"]))
"""


def test_everything_but_the_kernels_works_where_triton_is_not_installed():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip() == "hlb: --kernels triton: triton is not installed; take --kernels reference"


@pytest.mark.parametrize("name", ["seed", "record94"])  # smoke is record94 in all that kernels see
def test_triton_gives_the_losses_and_the_accuracy_of_the_reference(name):
    data = hlb.Dataset("synthetic", synthetic.make(16, 4))
    runs = []
    for choice in ("reference", "triton"):
        execution = hlb.Execution(device="cpu", kernels=choice)
        with selection.only(**FEW_STEPS):
            ours = Trainer(*resolve(hlb.recipe(name, FIRST_STEPS), execution), data)
            runs.append(ours.run(0, eval_every=0))
    reference, triton = ([row["train_loss"] for row in run.epochs] for run in runs)
    assert len(set(triton)) == 2
    assert triton == pytest.approx(reference, rel=1e-4)
    assert runs[1].accuracy == runs[0].accuracy
