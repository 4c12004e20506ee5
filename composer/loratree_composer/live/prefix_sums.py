"""The float32 sums of a chain's ancestors, kept for the next leaf under them."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from loratree_composer.arithmetic.edits import Replace
from loratree_composer.arithmetic.merge import FLOATS, merge_into
from loratree_composer.arithmetic.program import Key, Program, is_known


class PrefixSums:
    """W + Σ sᵢBᵢAᵢ over the ancestors alone, in float32, for the tensors that the leaf edits too.

    A sum is made when a second leaf comes under the same ancestors, so that switching between unrelated chains never
    pays for one, and dropped when others come.
    """

    def __init__(self) -> None:
        self._last: dict[str, Key] = {}
        self._sums: dict[str, tuple[Key, object, Tensor]] = {}
        self._seen: dict[str, Key] = {}

    def begin(self, programs: Mapping[str, Program]) -> None:
        """Notes what is merged next, and drops the sums of other ancestors."""
        self._seen, self._last = self._last, {name: program.above_key for name, program in programs.items()}
        for name in [name for name, (key, *_) in self._sums.items() if self._last.get(name) != key]:
            del self._sums[name]

    def of(
        self, name: str, tensor: Tensor, pristine: Callable[[], Tensor], origin: object, program: Program
    ) -> Tensor | None:
        """The kept sum for `program`, of a weight like `tensor`, made now if it will be of use; None without one.

        `pristine` reads the value that it starts from, `origin` is equal as long as that is the same.
        """
        key = program.above_key
        if program.last is None or not is_known(key) or tensor.dtype not in FLOATS:
            return None
        dtype = torch.promote_types(tensor.dtype, torch.float32)
        form = dtype, tensor.device, tensor.shape
        _, known, kept = self._sums.pop(name, (key, None, tensor))
        if origin is not None and known == origin and (kept.dtype, kept.device, kept.shape) == form:
            self._sums[name] = key, origin, kept
            return kept
        if self._seen.get(name) != key or isinstance(program.leaf[0], Replace):
            return None
        found = torch.empty_like(tensor, dtype=dtype, memory_format=torch.contiguous_format, requires_grad=False)
        merge_into(found, pristine(), program.above, name=name)
        self._sums[name] = key, origin, found
        return found

    def clear(self) -> None:
        """Frees every sum."""
        self._last, self._seen, self._sums = {}, {}, {}
