"""What a CUDA graph does, on a CPU: operators are recorded once and replayed at the same addresses.

As in a capture, the host's values of the recording are frozen, and reading a value back to the host is an
error. Unlike in one, the operators run while they are recorded; so `capture` puts back what they wrote.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

READS_BACK = {"_local_scalar_dense", "nonzero", "equal", "item", "is_nonzero"}


class Tape(TorchDispatchMode):
    """Records every operator with its arguments and results."""

    def __init__(self):
        super().__init__()
        self.calls, self.before = [], {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func._schema.name.partition("::")[2], kwargs or {}
        if name in READS_BACK:
            raise RuntimeError(f"{name}: the host waits for a value")
        written = [argument.alias_info is not None and argument.alias_info.is_write
                   for argument in func._schema.arguments]  # fmt: skip
        for value, writes in zip((*args, *kwargs.values()), written):
            for tensor in tree_flatten(value)[0] if writes else ():
                self._note(tensor)
        for name, value in kwargs.items():  # out= and keyword-only mutated arguments
            if any(a.name == name and a.alias_info and a.alias_info.is_write for a in func._schema.arguments):
                self._note(value)
        result = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, result))
        return result

    def _note(self, tensor) -> None:
        """The contents of a tensor's storage before anything recorded wrote to it."""
        if isinstance(tensor, Tensor) and (key := tensor.untyped_storage().data_ptr()) not in self.before:
            storage = tensor.untyped_storage()
            self.before[key] = storage, storage.clone()

    def replay(self) -> None:
        """The same operators on the same tensors; what was newly made then is overwritten in place."""
        for func, args, kwargs, result in self.calls:
            new = func(*args, **kwargs)
            for old, fresh in zip(tree_flatten(result)[0], tree_flatten(new)[0]):
                if isinstance(old, Tensor) and old.numel() and old.data_ptr() != fresh.data_ptr():
                    old.detach().copy_(fresh.detach())


def capture(*works: Callable[[], None]) -> list[Callable[[], None]]:
    """As `hlb.execution.capture`, on a CPU."""
    return [_captured(work) for work in works]


def _captured(work: Callable[[], None]) -> Callable[[], None]:
    tape = Tape()
    with tape:
        work()
    for storage, contents in tape.before.values():
        storage.copy_(contents)

    def replay() -> None:
        with torch.no_grad():
            tape.replay()

    return replay
