"""How a recipe is executed: device, kernel backend, compilation, layout, threads, determinism.

`resolve` turns every `auto` into a value, once, before anything is built; records hold the resolved values.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import getpass
import os
import re
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from tempfile import gettempdir

import torch
from torch._functorch import config as functorch

import kernels
from kernels.base import chips, launch
from kernels.base.compilers import missing
from kernels.base.timing import no_collection

from .errors import UserError, expect_known, read
from .optimizer import OPTIMIZERS, name_of
from .ranges import DTYPES
from .recipes import Recipe

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
DEVICES = ("auto", "cpu", "cuda", "mps")
COMPILE = ("auto", "on", "off")
GRAPHS = ("auto", "off", "step", "run")
# Options of torch.compile wherever it is called. Batch norm reads five tensors: beyond 4 Inductor writes its
# result to memory, in float32, for each kernel of the backward pass to read, rather than to compute it there.
INDUCTOR = {"realize_reads_threshold": 8}


def name_inductors_cache() -> None:
    """Inductor, which other parts of torch import, calls its cache by the user's name. In a container a user
    may have none: then by the number.
    """
    try:
        getpass.getuser()
    except (ImportError, KeyError, OSError):  # on Windows, elsewhere, and from Python 3.13 on
        number = os.getuid() if hasattr(os, "getuid") else 0
        os.environ.setdefault(
            "TORCHINDUCTOR_CACHE_DIR", os.path.join(gettempdir(), f"torchinductor_{number}")
        )


name_inductors_cache()


@dataclass(frozen=True)
class Execution:
    """Where and how to run; nothing here changes a result by more than rounding."""

    device: str = "auto"
    kernels: str = "auto"  # reference, triton or tuned; exceptions behind: "triton,sgd=reference"
    compile: str = "auto"
    graph: str = "auto"  # CUDA graphs: off, of a step, or of the whole run
    channels_last: bool = True
    threads: int = 0  # CPU threads; 0 is PyTorch's own choice
    deterministic: bool = False

    def __post_init__(self):
        for name, kind in typing.get_type_hints(Execution).items():
            value = getattr(self, name)
            value = str(value) if isinstance(value, torch.device) else value
            object.__setattr__(self, name, read(name, value, kind))


def available(device: str) -> bool:
    """Whether torch can use the device: cpu, cuda (or cuda:N), mps."""
    kind, _, index = device.partition(":")
    if kind == "cuda":
        return torch.cuda.is_available() and (
            not index or index.isdigit() and int(index) < torch.cuda.device_count()
        )
    return device == "cpu" or device == "mps" and torch.backends.mps.is_available()


def cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware (AVX512-BF16, AMX-BF16, Arm BF16)."""
    try:
        with open("/proc/cpuinfo") as f:
            words = set(next((line for line in f if line.startswith(("flags", "Features"))), "").split())
    except OSError:
        return False
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def device_of(execution: Execution) -> str:
    """The device that `auto` stands for, or the one named. Raises UserError where it is not available."""
    device = execution.device
    if device == "auto":
        device = next(d for d in ("cuda", "mps", "cpu") if available(d))
    if device.partition(":")[0] not in DEVICES[1:]:
        expect_known("--device", DEVICES, device)
    if not available(device):
        raise UserError(
            f"--device {device}: torch {torch.__version__} finds no such device here; leave --device out, "
            "or take --device cpu"
        )
    return device


def resolve(recipe: Recipe, execution: Execution) -> tuple[Recipe, Execution]:
    """Both with every `auto` replaced. Raises UserError for an unavailable device, or a dtype it cannot
    run.
    """
    device = device_of(execution)
    kind = device.partition(":")[0]
    expect_known("--compile", COMPILE, execution.compile)
    if not 0 <= execution.threads <= cpus():
        raise UserError(
            f"--threads: got {execution.threads}, accepted is 1 to {cpus()}, the cores of this process "
            "(0 is PyTorch's choice)"
        )
    expect_known("--graph", GRAPHS, execution.graph)
    if execution.graph in ("step", "run") and kind != "cuda":
        raise UserError(
            f"--graph {execution.graph}: CUDA graphs need a CUDA device, this is {device}; leave it out"
        )
    captured = execution.graph
    if recipe.optimizer not in OPTIMIZERS:  # its step reads rates from the host
        if captured in ("step", "run"):
            raise UserError(
                f"--graph {captured}: optimizer={name_of(recipe.optimizer)} cannot be captured; leave it out"
            )
        captured = "off"
    elif captured == "auto":
        captured = "step" if kind == "cuda" else "off"
    threads = execution.threads or torch.get_num_threads()

    dtype = recipe.dtype
    if dtype == "auto":
        dtype = {"cuda": "float16", "mps": "float32", "cpu": "bfloat16" if cpu_has_bfloat16() else "float32"}[
            kind
        ]
    if dtype == "tf32" and kind != "cuda":
        raise UserError(f"--dtype tf32: only a CUDA device has it, this is {device}; take --dtype float32")
    if dtype == "float64" and kind == "mps":
        raise UserError("--dtype float64: mps has no float64; take --dtype float32")
    if named := (set(recipe.conv_dtype) & set(DTYPES)) - {dtype}:
        raise UserError(
            f"conv_dtype: got {', '.join(sorted(named))} in a network of {dtype}; take auto for that, or "
            "--dtype of that name"
        )
    convs = recipe.conv_dtypes
    master = recipe.master_weights
    if master == "auto":
        master = "on" if dtype == "bfloat16" else "off"
    backends = _resolve_kernels(execution.kernels, device, dtype)
    expect_operands(recipe, dtype, backends, device)
    compile = execution.compile
    if compile == "auto":
        useful = kind == "cuda" and launch.INSTALLED  # Inductor's code for a GPU is Triton's, none on Windows
        compile = "on" if useful and not _needs_no_compiler(backends, captured) else "off"
    return (
        dataclasses.replace(
            recipe,
            dtype=dtype,
            master_weights=master,
            conv_dtype=convs[:1] if len(set(convs)) == 1 else convs,
        ),
        dataclasses.replace(
            execution,
            device=device,
            compile=compile,
            graph=captured,
            threads=threads,
            kernels=backends,
        ),
    )


def _needs_no_compiler(choice: str, captured: str) -> bool:
    """Whether a captured step is as fast without torch.compile: where no op is a reference.

    Then little is left to fuse, and no launch waits for the host: beside its kernels and cuDNN's a step of
    record94 has some 17 launches, a dozen without those that set memory, 11 of 575 ms of a run in all
    (profile `tuned` of bench/results/h200/profiles.json). Compiling takes two minutes of a first run.
    """
    return captured != "off" and "reference" not in kernels.choose(choice).values()


def _resolve_kernels(choice: str, device: str, dtype: str) -> str:
    """The choice of kernels as it will run: `auto` is `tuned` on CUDA; float64 has no kernels, and where none
    can run `tuned` is the reference.
    """
    runnable = launch.runnable(device)
    if choice == "auto":
        choice = "tuned" if device.startswith("cuda") else "reference"
    try:
        kernels.choose(choice)
    except ValueError as error:
        raise UserError(f"--{error}") from None
    if dtype == "float64":
        return "reference"
    if runnable:
        fault = launch.interpreter_fault()
        if fault and set(kernels.choose(choice).values()) != {"reference"}:
            raise UserError(f"--kernels {choice}: {fault}, or take --kernels reference")
        return choice
    untuned = re.sub(r"\btuned\b", "reference", choice)
    if "triton" in kernels.choose(untuned).values():
        if not launch.INSTALLED:
            raise UserError(f"--kernels {choice}: triton is not installed; take --kernels reference")
        raise UserError(
            f"--kernels {choice}: kernels need a CUDA device, this is {device}; take --kernels reference, "
            "or set TRITON_INTERPRET=1 to run them on a CPU, slowly"
        )
    return untuned


def expect_operands(recipe: Recipe, dtype: str, choice: str, device: str) -> None:
    """Raises UserError where a choice of kernels takes one for convolutions that has no 8-bit operands."""
    if set(recipe.conv_dtypes) == {"auto"} or kernels.choose(choice)["conv_bn_act"] != "triton":
        return
    chip = chips.current(device)
    if dtype not in ("float16", "bfloat16") or not chip.float8:
        raise UserError(
            f"conv_dtype: got {','.join(recipe.conv_dtype)} in {dtype} on {chip.name}; kernels have 8-bit "
            "operands in float16 and bfloat16, from compute capability 8.9 on: take --kernels tuned"
        )


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of weights and images: tf32 is float32 whose products are rounded."""
    return torch.float32 if name == "tf32" else getattr(torch, name)


def apply(recipe: Recipe, execution: Execution) -> None:
    """Sets torch's process-wide switches for a resolved recipe and execution."""
    torch.set_num_threads(execution.threads)
    tf32 = recipe.dtype == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    # Inductor's own Triton template for convolutions is wrong with 8 warps in torch 2.11.
    os.environ.setdefault("TORCHINDUCTOR_MAX_AUTOTUNE_CONV_BACKENDS", "ATEN")
    if execution.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if execution.deterministic or torch.are_deterministic_algorithms_enabled():  # it imports torch's compiler
        # warn_only: max_pool2d's backward is listed as nondeterministic; where windows do not overlap it is
        # not.
        torch.use_deterministic_algorithms(execution.deterministic, warn_only=True)
    torch.backends.cudnn.benchmark = not execution.deterministic
    if execution.device.startswith("cuda:"):
        torch.cuda.set_device(execution.device)  # graphs are captured on the current one
    if execution.compile == "on":
        torch._dynamo.config.recompile_limit = 64  # a step has a variant for each size of the images
        # Batch norm is an autograd.Function, of which torch keeps no compiled code between processes unless
        # it is told that it may. (Its environment variable is read once, when torch is imported.)
        functorch.autograd_cache_allow_custom_autograd_functions = True
    if execution.device == "cpu":
        _keep_memory()


@contextlib.contextmanager
def torch_defaults() -> Iterator[None]:
    """Inside, torch makes float32 tensors on the CPU and keeps gradients, whatever the caller has set for his
    own work.
    """
    dtype, elsewhere = torch.get_default_dtype(), torch.get_default_device().type != "cpu"
    torch.set_default_dtype(torch.float32)
    try:
        cpu = torch.device("cpu") if elsewhere else contextlib.nullcontext()
        with cpu, torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(dtype)


def cpus() -> int:
    """Logical processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def compiled(work: Callable) -> Callable:
    """`work` compiled as one graph without a break, for each shape that it is called with."""
    return torch.compile(work, fullgraph=True, dynamic=False, options=INDUCTOR)


def capture(*works: Callable[[], None]) -> list[Callable[[], None]]:
    """Captures each `work()` as a CUDA graph on the current device; returns a function per graph that replays
    it. The graphs share one memory pool, since none reads what another allocated; call one at a time. Each
    `work` must have run before: compiling during a capture is an error.

    A replay uses the addresses and host values of the capture: whatever changes from step to step or from run
    to run must be read from the device. A capture executes nothing.
    """
    torch.cuda.synchronize()
    torch.cuda.empty_cache()  # what the warm-up held; a graph's memory is its own
    pool, replays = torch.cuda.graph_pool_handle(), []
    with no_collection(), torch.compiler.set_stance("fail_on_recompile"):
        for work in works:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                work()
            replays.append(graph.replay)
    return replays


def _keep_memory() -> None:
    """Tells glibc to keep freed memory, so that the system does not map and clear a step's activations anew.
    Does nothing without glibc.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def synchronize(device: str | torch.device) -> None:
    """Waits until the device has done what was asked of it; nothing to wait for on a CPU."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()


@contextlib.contextmanager
def shortage_explained(recipe: Recipe) -> Iterator[None]:
    """Turns what a machine lacks into a UserError. Of memory it says how much was asked for, and which
    settings lower it; of a compiler, or a folder for what that makes, which, and how to do without.
    """
    try:
        yield
    except Exception as error:
        if why := missing(error):
            raise UserError(
                f"nothing can be compiled here: {why}; "
                "or take --compile off, on a GPU with --kernels reference"
            ) from None
        out = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
        if not out and not isinstance(error, torch.OutOfMemoryError):
            raise
        asked = re.search(r"tried to allocate ([\d.]+ \w+)", str(error), re.IGNORECASE)
        batch, test = max(recipe.batch_sizes) // 2, recipe.eval_batch_size // 2
        raise UserError(
            f"out of memory: {asked.group(1) if asked else 'more'} was needed on top of what was in use; "
            f"lower it with --set batch_size={batch} or eval_batch_size={test}"
        ) from None
