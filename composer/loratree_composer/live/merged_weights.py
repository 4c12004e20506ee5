"""A chain merged into a live module, and taken out again bit for bit: the one place that writes weights in place."""

from collections.abc import Collection, Mapping
from functools import partial

from torch import Tensor, nn

from loratree_composer.arithmetic.merge import check_mergeable, check_values, merge_into, writing
from loratree_composer.arithmetic.precision import full_float32
from loratree_composer.arithmetic.program import Key, Program, is_known
from loratree_composer.base.sharing import tensors
from loratree_composer.live.fit import check_fit, check_targets, fit_problems, shared_layers
from loratree_composer.live.prefix_sums import PrefixSums
from loratree_composer.live.pristine import Pristine, PristinePlace, Source, stamp
from loratree_composer.live.untied_tensors import UntiedTensors
from loratree_registry.errors import Invalid, listed


class MergedWeights:
    """A module's tensors, the base's or with a chain merged into them, written where they are: addresses stay.

    Every merge starts from the pristine values, and restoring writes them back, so the base is bit-exact however often
    it is switched. Only what differs from the last merge is computed and written. `pristine` says where the values are
    kept: `host` and `device` hold a copy of every tensor that was ever merged into, until `release`; `files` reads them
    from `source` each time. With `prefixes`, the float32 sum of the ancestors is kept on the tensors' device for those
    that the leaf edits too, 4 bytes a value, from the second merge under the same ancestors on.

    A tensor that other names of the module share, and that the chain edits under one of them, gets memory of its own
    until it is restored. What a caller writes to a merged tensor is lost at the next merge or restore. After a restore
    the tensors are the caller's: a write is seen where torch counts it (Tensor._version), so call `release` before any
    other, through `.data` or by a fused optimizer. Not for several threads.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        pristine: PristinePlace = "host",
        source: Source | None = None,
        prefixes: bool = True,
    ) -> None:
        self._module = module
        self._pristine = Pristine(pristine, source)
        self._prefixes = PrefixSums() if prefixes else None
        self._untied = UntiedTensors(module)
        self._merged: dict[str, tuple[Key, object] | None] = {}

    @property
    def names(self) -> list[str]:
        """The tensors that are merged into now."""
        return sorted(self._merged)

    def merge(self, programs: Mapping[str, Program]) -> None:
        """Makes every tensor what its program says, by name, and the base's where there is none.

        Raises Invalid where an edit does not fit or a result is not finite. After any failure the whole base is back.
        """
        try:
            _refuse(self._restore(set(self._merged) - set(programs)))
            check_fit(shared_layers(self._module, programs))
            targets = self._untied.give(self._tensors(programs), programs)
            if self._prefixes is not None:
                self._prefixes.begin(programs)
            with full_float32():
                for name, tensor in targets.items():
                    self._merge(name, tensor, programs[name])
        except Invalid:
            self.restore()
            check_targets(self._module, programs)  # lists every one that does not fit
            raise
        except BaseException:
            self.restore()
            raise

    def restore(self) -> None:
        """Writes every pristine value back, bit for bit. The copies stay for the next merge.

        Raises Invalid, listing them, where tensors are gone, have another shape or cannot be read from files, after all
        others are back. Those in files are tried again by the next call.
        """
        problems = self._restore(self._merged)
        self._untied.take_back()
        _refuse(problems)

    def release(self) -> None:
        """Restores, and frees what is kept for the next merge."""
        self.restore()
        self._pristine.forget()
        if self._prefixes is not None:
            self._prefixes.clear()

    def _merge(self, name: str, tensor: Tensor, program: Program) -> None:
        if is_known(program.key) and self._merged.get(name) == (program.key, stamp(tensor)) and stamp(tensor):
            return
        check_values(tensor, (), name=name)
        origin, pristine = self._origin(name, tensor), partial(self._original, name, tensor)
        source = None if self._prefixes is None else self._prefixes.of(name, tensor, pristine, origin, program)
        edits = program.edits if source is None else program.leaf
        check_fit(fit_problems(self._module, name, tensor, edits))
        check_mergeable(tensor, edits, name=name)
        self._merged[name] = None  # neither is it pristine, nor yet what the program says
        merge_into(tensor, pristine() if source is None else source, edits, name=name)
        self._merged[name] = program.key, stamp(tensor)

    def _origin(self, name: str, tensor: Tensor) -> object:
        """What is another object when the base's value of a tensor is another, which is kept from here on."""
        shared = self._untied.original(name)
        if shared is not None:
            return stamp(shared)
        if name not in self._merged:
            self._pristine.keep(name, tensor)
        return self._pristine.origin(name)

    def _original(self, name: str, tensor: Tensor) -> Tensor:
        """The base's value of a tensor, read where it is kept."""
        shared = self._untied.original(name)
        pristine = self._pristine.read(name, tensor) if shared is None else shared
        if pristine.shape != tensor.shape:
            raise Invalid(f"{name} was {list(pristine.shape)} when it was merged into and is {list(tensor.shape)} now")
        return pristine

    def _restore(self, names: Collection[str]) -> list[str]:
        """Writes back what can be; returns what cannot, a clause each."""
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
            if tensor is None or pristine is None or pristine.shape != tensor.shape:
                del self._merged[name]
                return [f"{name} is gone, or has another shape"]
            with full_float32(), writing(tensor):
                tensor.detach().copy_(pristine)
            self._pristine.is_back(name, tensor)
        del self._merged[name]
        return []

    def _tensors(self, names: Collection[str]) -> dict[str, Tensor]:
        live = tensors(self._module) if names else {}
        check_fit([f"{name} is not in the model" for name in names if name not in live])
        return {name: live[name] for name in names}


def _refuse(problems: list[str]) -> None:
    if problems:
        raise Invalid(
            f"not all of the base is back ({listed(problems)}): tensors must stay what they are while something is "
            "merged into them, so load the model anew"
        )
