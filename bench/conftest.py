"""What pytest-benchmark's JSON says beside the times: the machine, and its state as they were taken.

Where two runs are compared, pytest-benchmark warns of a difference between their `machine_info`. So that is
what must be the same; clocks, temperature and ceilings, which never are, stand beside it as `machine_state`.
"""

from __future__ import annotations

import pytest
import torch

from hlb.runs import environment

from . import micro


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config, machine_info):
    device, untimed = micro.timed_on()
    machine_info["device"] = environment.device_name(device)
    machine_info["versions"] = environment.versions()
    machine_info["kernels_timed"] = untimed is None


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config, benchmarks, output_json):
    device, _ = micro.timed_on()
    state = {"gpu": environment.gpu_state(device)}
    if device == "cuda":
        state["copy_bytes_per_second"] = micro.copy_rate(device)
        state["matmul_flops_per_second"] = micro.matmul_rate(torch.float16, device)
    output_json["machine_state"] = state
