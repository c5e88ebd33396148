import json
import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: workers share the cores

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton
    import interpreter

    interpreter.speed_up()

    from kernels.base import launch

    if fault := launch.interpreter_fault():
        pytest.exit(fault, returncode=2)
# Inductor takes the vector instructions that the processor says it has; to try each takes a dozen seconds.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")

settings.register_profile("hlb", deadline=None)
settings.load_profile("hlb")


@pytest.fixture(autouse=True)
def made_inputs_repeat():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def determinism_is_as_it_was():
    """Whatever a run asked of torch for the whole process."""
    before = torch.are_deterministic_algorithms_enabled()
    yield
    if torch.are_deterministic_algorithms_enabled() != before:  # to ask for it imports torch's compiler
        torch.use_deterministic_algorithms(before)


@pytest.fixture
def tf32():
    """torch may multiply float32 as tf32. No attribute that monkeypatch can set back."""
    before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, True
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture
def launch_table(monkeypatch, tmp_path):
    """A function that writes measured.json, from data or as text; until then there is none."""
    from kernels.convolution import selection

    def write(content: dict | str) -> None:
        selection.FILE.write_text(content if isinstance(content, str) else json.dumps(content))
        selection.forget()

    monkeypatch.setattr(selection, "FILE", tmp_path / "measured.json")
    selection.forget()
    yield write
    monkeypatch.undo()
    selection.forget()
