"""A chain merged into a live module and removed bit for bit: the only code that writes into a caller's weights."""

from collections.abc import Collection, Mapping
from functools import partial

from torch import Tensor, nn

from loratree_composer.adapters.budget import Budget
from loratree_composer.arithmetic.merge import check_mergeable, check_values, merge_into, writing
from loratree_composer.arithmetic.precision import full_float32
from loratree_composer.arithmetic.program import Key, Program, is_known
from loratree_composer.base.sharing import is_sharded, tensors
from loratree_composer.live.fit import check_fit, check_targets, fit_problems, shared_layers
from loratree_composer.live.prefix_sums import PrefixSums
from loratree_composer.live.pristine import Pristine, PristinePlace, Source, stamp
from loratree_composer.live.untied_tensors import UntiedTensors
from loratree_registry.errors import Invalid, listed


class MergedWeights:
    """The tensors of a module, into which chains are merged in place: the tensors keep their addresses.

    Every merge starts from the pristine values and every restore writes them back, so the base stays bit-exact after
    any number of switches. Only tensors that differ from the last merge are computed and written. `pristine` chooses
    the source of the pristine values: `host` and `device` hold a copy of every tensor that a merge has written, until
    `release`; `files` reads `source` each time. With `prefixes`, the float32 sum of the ancestors is cached on the
    tensor's device for each tensor that the leaf edits too, 4 bytes a value, if a second merge has the same ancestors
    and the sum fits in `budget`.

    A tensor that the chain edits under one name, while other names share its memory, gets memory of its own until the
    restore. A caller's write to a merged tensor is lost at the next merge or restore. After a restore a caller may
    write to the tensors, and the next merge sees every write that torch counts (Tensor._version). Writes through
    `.data` or by a fused optimizer are not counted: call `release` before them. Not safe for several threads.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        pristine: PristinePlace = "host",
        source: Source | None = None,
        prefixes: bool = True,
        budget: Budget | None = None,
    ) -> None:
        self._module = module
        self._pristine = Pristine(pristine, source)
        self._prefixes = PrefixSums(budget) if prefixes else None
        self._untied = UntiedTensors(module)
        self._merged: dict[str, tuple[Key, object] | None] = {}

    @property
    def nbytes(self) -> int:
        """The size in bytes of the pristine copies, and of the copies of names that are untied now."""
        return self._pristine.nbytes + self._untied.nbytes

    @property
    def names(self) -> list[str]:
        """The names of the tensors that a chain is merged into now."""
        return sorted(self._merged)

    def merge(self, programs: Mapping[str, Program]) -> None:
        """Merge each program into the tensor of its name, and restore the merged tensors that have no program now.

        Raises Invalid if an edit does not fit or a result is not finite. After any failure the whole base is restored.
        """
        try:
            _check_restored(self._restore(set(self._merged) - set(programs)))
            check_fit(shared_layers(self._module, programs))
            self._untied.repair()
            targets = self._untied.give(self._find_tensors(programs), programs)
            if self._prefixes is not None:
                self._prefixes.begin(programs, targets)
            with full_float32():
                for name, tensor in targets.items():
                    self._merge(name, tensor, programs[name])
        except Invalid:
            self.restore()
            check_targets(self._module, programs)  # raises one error that lists every tensor that does not fit
            raise
        except BaseException:
            self.restore()
            raise

    def restore(self) -> None:
        """Write every pristine value back, bit for bit. The copies stay for the next merge.

        If tensors are gone, have another shape or cannot be read from files, all others are restored, and then Invalid
        is raised with a list of these tensors. The next call tries again.
        """
        problems = self._restore(self._merged)
        self._untied.take_back()
        _check_restored(problems)

    def release(self) -> None:
        """Restore the base, and free the copies and the cached sums, also if not all of the base is back."""
        try:
            self.restore()
        finally:
            self._merged.clear()
            self._pristine.forget()
            if self._prefixes is not None:
                self._prefixes.clear()

    def _merge(self, name: str, tensor: Tensor, program: Program) -> None:
        if is_known(program.key) and self._merged.get(name) == (program.key, stamp(tensor)) and stamp(tensor):
            return
        check_values(tensor, (), name=name)
        origin, pristine = self._track_origin(name, tensor), partial(self._read_original, name, tensor)
        source = None if self._prefixes is None else self._prefixes.of(name, tensor, pristine, origin, program)
        edits = program.edits if source is None else program.leaf_edits
        check_fit(fit_problems(self._module, name, tensor, edits))
        check_mergeable(tensor, edits, name=name)
        self._merged[name] = None  # until the write succeeds, the tensor is neither pristine nor merged
        merge_into(tensor, pristine() if source is None else source, edits, name=name)
        self._merged[name] = program.key, stamp(tensor)

    def _track_origin(self, name: str, tensor: Tensor) -> object:
        """Save the base's value of a tensor if it is new; return an object that stays equal while the value stays."""
        shared = self._untied.original(name)
        if shared is not None:
            return stamp(shared)
        if name not in self._merged:
            self._pristine.keep(name, tensor)
        return self._pristine.origin(name)

    def _read_original(self, name: str, tensor: Tensor) -> Tensor:
        """Return the base's value of a tensor: the shared tensor, a copy, or a read from files."""
        shared = self._untied.original(name)
        pristine = self._pristine.read(name, tensor) if shared is None else shared
        if pristine.shape != tensor.shape:
            raise Invalid(f"{name} was {list(pristine.shape)} when it was merged into and is {list(tensor.shape)} now")
        return pristine

    def _restore(self, names: Collection[str]) -> list[str]:
        """Write back every pristine value that can be, and return one clause for each that cannot."""
        live, problems = tensors(self._module) if names else {}, []
        for name in sorted(names):
            try:
                problems += self._write_back(name, live.get(name))
            except Invalid as error:
                problems.append(str(error))
        return problems

    def _write_back(self, name: str, tensor: Tensor | None) -> list[str]:
        if self._untied.original(name) is None:
            pristine = None if tensor is None else self._pristine.read(name, tensor)
            if tensor is None or pristine is None or not _can_hold(tensor, pristine):
                self._merged[name] = None  # the next restore tries again: a wrapper may be taken off until then
                return [f"{name} is gone, is offloaded or sharded now, or has another shape"]
            with full_float32(), writing(tensor):
                tensor.detach().copy_(pristine)
            self._pristine.is_back(name, tensor)
        del self._merged[name]
        return []

    def _find_tensors(self, names: Collection[str]) -> dict[str, Tensor]:
        live = tensors(self._module) if names else {}
        check_fit([f"{name} is not in the model" for name in names if name not in live])
        return {name: live[name] for name in names}


def _can_hold(tensor: Tensor, pristine: Tensor) -> bool:
    """Return whether a pristine value can be written into the tensor: it has memory of its own, and that shape."""
    return tensor.shape == pristine.shape and not tensor.is_meta and not is_sharded(tensor)


def _check_restored(problems: list[str]) -> None:
    if problems:
        raise Invalid(
            f"not all of the base is back ({listed(problems, limit=3)}): put the tensors back and restore again, or "
            "load the model again: none may be replaced, reshaped or moved away while a chain is merged into it"
        )
