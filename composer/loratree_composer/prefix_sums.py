"""The float32 sums of a chain's ancestors, kept for the next leaf under them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from loratree_composer.merge import merge_into
from loratree_composer.program import Key, Program, is_known


class PrefixSums:
    """W + Σ sᵢBᵢAᵢ over the ancestors alone, in float32, for the tensors that the leaf edits too.

    A sum is made when a second leaf comes under the same ancestors, so that switching between unrelated chains never
    pays for one, and dropped when others come.
    """

    def __init__(self) -> None:
        self._last: dict[str, Key] = {}
        self._sums: dict[str, tuple[Key, Tensor]] = {}
        self._seen: dict[str, Key] = {}

    def begin(self, programs: Mapping[str, Program]) -> None:
        """Notes what is merged next, and drops the sums of other ancestors."""
        self._seen, self._last = self._last, {name: program.above_key for name, program in programs.items()}
        for name in [name for name, (key, _) in self._sums.items() if self._last.get(name) != key]:
            del self._sums[name]

    def of(self, name: str, tensor: Tensor, pristine: Tensor, program: Program) -> Tensor | None:
        """The kept sum for `program`, of a weight like `tensor`, made now if it will be of use; None without one."""
        key = program.above_key
        if program.last is None or not is_known(key):
            return None
        if (kept := self._sums.get(name)) is not None and kept[1].device == tensor.device:
            return kept[1]
        if self._seen.get(name) != key:
            return None
        found = torch.empty_like(
            tensor,
            dtype=torch.promote_types(tensor.dtype, torch.float32),
            memory_format=torch.contiguous_format,
            requires_grad=False,
        )
        merge_into(found, pristine, program.above, name=name, dtype=tensor.dtype)
        self._sums[name] = key, found
        return found

    def clear(self) -> None:
        """Frees every sum."""
        self._last, self._seen, self._sums = {}, {}, {}
