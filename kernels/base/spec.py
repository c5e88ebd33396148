"""What a kernel declares of itself, from which its tests, benchmark, checks and counts are made."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch

from .launch import FLOATS


class Case(dict):
    """The extents and options of one call by name, and a name of its own: Case("r1.conv1", n=512, c=128)."""

    def __init__(self, label: str = "", /, **fields: Any):
        super().__init__(fields)
        self.label = label

    @functools.cached_property
    def name(self) -> str:
        return self.label or " ".join(f"{key}={value}" for key, value in self.items())

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(key) from None

    def __hash__(self) -> int:
        return hash(self.name)


# Images that the network takes at a time when record94 is evaluated: 2,000, and 1,500 left of the least
# sure; where `eval_batch_size` allows, the five other views of those at once, or all.
EVALUATED = (2000, 1500, 7500, 10000)


@dataclass(frozen=True, eq=False)
class KernelSpec:
    """One op: its reference, its kernels, and what is expected of them.

    `reference` and `op` take the same keyword arguments, which `make(case, dtype, device)` makes afresh at
    random: tensors and options. `dtype` is the network's; a tensor may well have another. In the comparison
    the reference gets every floating tensor, and every option that is a dtype, in float64.

    `cases` are the calls of the shipped recipes. `space` gives small values for each field of a case: tests
    cover every pair of values, hypothesis draws from it, and `valid` says which combinations make sense.
    `counted` are cases large enough for edges not to matter, small enough for the interpreter. `bytes(case,
    dtype)` and `flops(case, dtype)` map the name of each kernel that the op launches, forward and backward,
    to what one call moves through device memory and to the FLOPs of its `tl.dot`s (kernels without one may be
    left out of `flops`). Bytes that several programs of a launch read count for each of them, but for the
    kernels named in `shared_reads`, which leave that to the L2 cache.

    `given(inputs)` is what the reference is told of a run of the op: choices that rounding makes, such as the
    argmax of a pool, on which a whole gradient hangs.

    `compiled` has the values of an option that is code itself, an activation: those that no recipe has are
    compiled ahead of time too (`others`).

    What a run costs is counted from its calls: `case_of(inputs)` is the case of one, as far as bytes and
    FLOPs depend on it, and `part` what it belongs to. `tuned(inputs)` says which backend and arguments
    `tuned` takes for a call, of an op that it chooses by shape.
    """

    name: str
    formula: str
    reference: Callable
    op: Callable
    ops: tuple[str, ...]  # as PyTorch knows them, "hlb::..."
    make: Callable[[Case, torch.dtype, Any], dict[str, Any]]
    cases: tuple[Case, ...]
    space: dict[str, tuple]
    counted: tuple[Case, ...]
    bytes: Callable[[Case, torch.dtype], dict[str, int]]
    flops: Callable[[Case, torch.dtype], dict[str, int]] = lambda case, dtype: {}
    valid: Callable[[Case], bool] = lambda case: True
    dtypes: tuple[torch.dtype, ...] = FLOATS
    differentiable: tuple[str, ...] = ()  # arguments that may need a gradient
    mutates: tuple[str, ...] = ()  # arguments that the op writes, in place of outputs or beside them
    reduction: Callable[[Case], int] = lambda case: 1  # length of the longest sum, for the largest error
    squared: tuple[str, ...] = ()  # results that square what a matrix product gives: see correctness.limits
    narrowed: tuple[str, ...] = ()  # results of what was rounded to 8 bits on the way: see correctness.limits
    since: int = 80  # compute capability of the first chip that has what the kernels need
    compiled: dict[str, tuple] = field(default_factory=dict)
    narrow: dict[str, str] = field(
        default_factory=dict
    )  # kernel argument [precision]: why not 16 bytes a time
    shared_reads: tuple[str, ...] = ()  # kernels
    given: Callable[[dict[str, Any]], dict[str, Any]] = lambda inputs: {}
    fuses: str = ""  # what it does in one launch, or few, that eager PyTorch does operator by operator
    case_of: Callable[[dict[str, Any]], Case] | None = None
    dtype_from: str = "x"  # the argument that has, or is, the dtype of bytes and FLOPs; float32 without it
    part: str = ""  # "layer" of the network, or another part of a run; as the op before where it is ""
    backward: tuple[str, ...] = ()  # kernels of `bytes` that only a gradient needs
    repeats: Callable[[Case], dict[str, int]] = lambda case: {}  # kernels that a call launches several times
    tuned: Callable[[dict[str, Any]], tuple[str, dict[str, Any]]] | None = None

    def dtype(self, wanted: torch.dtype = torch.float16) -> torch.dtype:
        """`wanted`, or where the op does not have it, its first dtype."""
        return wanted if wanted in self.dtypes else self.dtypes[0]

    def dtype_of(self, inputs: dict[str, Any]) -> torch.dtype:
        """The dtype that `bytes` and `flops` take, of a call."""
        value = inputs.get(self.dtype_from, torch.float32)
        return value if isinstance(value, torch.dtype) else value.dtype

    def others(self) -> list[Case]:
        """A case for each value of a `compiled` option that none of `cases` has: the first of them that has
        any, with this one.
        """
        found = []
        for option, values in self.compiled.items():
            having = [case for case in self.cases if case[option] is not None]
            known = {case[option] for case in having}
            found += (
                Case(f"{having[0].name} {value}", **having[0] | {option: value})
                for value in values
                if value not in known
            )
        return found

    @cache  # noqa: B019  a spec lives as long as the process
    def small(self) -> list[Case]:
        """A covering array of `space`: every pair of values of two fields occurs in some valid case."""
        return covering(self.space, self.valid)

    @cache  # noqa: B019
    def small_in_dtypes(self) -> list[tuple[Case, torch.dtype]]:
        """`small`, and a dtype for each, such that every value of a field occurs in every dtype."""
        cases = self.small()

        def pairs(case: Case, dtype: torch.dtype) -> set:
            return {(item, dtype) for item in case.items()}

        open_pairs = {pair for case in cases for dtype in self.dtypes for pair in pairs(case, dtype)}
        chosen = []
        for case in cases:
            chosen.append((case, max(self.dtypes, key=lambda dtype: len(pairs(case, dtype) & open_pairs))))
            open_pairs -= pairs(*chosen[-1])
        everything = list(itertools.product(cases, self.dtypes))
        while open_pairs:
            chosen.append(max(everything, key=lambda one: len(pairs(*one) & open_pairs)))
            open_pairs -= pairs(*chosen[-1])
        return chosen


def sized(**extents: tuple[str, int]) -> Callable[[dict[str, Any]], Case]:
    """A `case_of` of extents of arguments: n=("x", 0) is x.shape[0]."""
    return lambda inputs: Case(**{name: inputs[of].shape[axis] for name, (of, axis) in extents.items()})


def updated(inputs: dict[str, Any], **fields: Any) -> Case:
    """The `case_of` of an optimizer's step that averages nothing."""
    return Case(master=inputs.get("compute") is not None, averaging="none", **fields)


def covering(space: dict[str, tuple], valid: Callable[[Case], bool] = lambda case: True) -> list[Case]:
    """Cases such that every pair of values of two fields that fits a valid case occurs in one.

    Greedy and deterministic: each case takes, field by field, the value that covers most pairs that are still
    open.
    """
    cases = [Case(**dict(zip(space, values))) for values in itertools.product(*space.values())]
    which = np.indices([len(values) for values in space.values()]).reshape(len(space), -1)  # of its values
    good = np.array([valid(case) for case in cases])
    cases, which = [*itertools.compress(cases, good)], which[:, good]
    has = [[of == k for k in range(len(values))] for of, values in zip(which, space.values())]
    pairs = [a & b for first, other in itertools.combinations(has, 2) for a in first for b in other]
    covers = np.packbits(pairs or has[0], axis=0).T  # of a case, a bit for each pair
    covers = [(case, int.from_bytes(bits, "big")) for case, bits in zip(cases, covers)]
    open_pairs, chosen = functools.reduce(int.__or__, (covered for _, covered in covers), 0), []
    while open_pairs:
        best, covered = max(covers, key=lambda item: (item[1] & open_pairs).bit_count())
        chosen.append(best)
        open_pairs &= ~covered
        covers = [item for item in covers if item[1] & open_pairs]
    return chosen
