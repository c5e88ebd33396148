"""Gradients of pooled outputs, compiled for 9.0 at widths that no recipe has.

They have to do as `python -m bench check` asks of the recipes' launches: no product may read registers that
the next step of the loop writes. On an H200 such a race gave gradients that were wrong by a fifth.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.base import launch

pytestmark = pytest.mark.skipif(not launch.INSTALLED, reason="triton is not installed")

ROOT = Path(__file__).resolve().parents[3]
COMPILED = r"""
import json, torch
from torch._subclasses.fake_tensor import FakeTensorMode
from bench.check import aot, ptx
from bench.tune import measure
from kernels.base.chips import AIMED_AT, targeting
from kernels.base.launch import recording
from kernels.convolution import selection
from kernels.convolution.tiling import Problem

shapes = {
    "dgrad, 40 channels": ("dgrad", 7, 64, 40),
    "dgrad, 40 of large maps": ("dgrad", 31, 40, 40),
    "wgrad, 80 of 24 channels": ("wgrad", 31, 24, 80),
    "wgrad, 160 of 24 channels": ("wgrad", 7, 24, 160),
}
found = {}
for name, (kind, side, c, o) in shapes.items():
    problem = Problem(kind, 512, side, side, c, o, 3, True, torch.float16)
    with targeting(AIMED_AT), FakeTensorMode(), recording() as launches:
        config = selection.choose(problem, AIMED_AT)
        measure.kernel(problem, config, measure.tensors(problem, "cpu"))()
    result = aot.compile_launch(launches[0], 90)
    registers = ptx.from_registers(aot.compiled(launches[0], 90).asm["ptx"])
    found[name] = {"faults": result.faults, "error": result.error, "registers": registers}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What is wrong with each launch, in a process that does not interpret."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}
    environment.pop("TRITON_INTERPRET", None)
    script = [sys.executable, "-c", COMPILED]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_products_of_expanded_gradients_end_before_the_next_step(found):
    assert len(found) == 4
    for name, one in found.items():
        assert one == {"faults": [], "error": "", "registers": True}, name
