"""A mixed batch on a live model: what the paths of its passes need beside the versions themselves."""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from torch import Tensor, nn

from loratree_composer.adapters.adapter import Adapter, WeightedChain, programs_of
from loratree_composer.arithmetic.edits import Edit
from loratree_composer.arithmetic.merge import check_deltas, is_surely_finite, merged
from loratree_composer.arithmetic.normal_form import last_gain
from loratree_composer.arithmetic.precision import full_float32
from loratree_composer.base.layer_kind import kind_of
from loratree_composer.base.sharing import tensors
from loratree_composer.batch.mix import Mix, Work
from loratree_composer.batch.mixed_layers import KINDS, MixedLayer, MixedQuantised
from loratree_composer.batch.nodes import Nodes
from loratree_composer.batch.passes import Passes
from loratree_composer.batch.plan import Path, Plan, Prefix
from loratree_composer.batch.requests import ReadRow, Requests
from loratree_composer.batch.static import StaticRows, lay_out
from loratree_composer.live.stack import Stack, compose_copy
from loratree_registry.errors import Invalid, listed

Chain = list[tuple[Adapter, float]]  # root to leaf, no level weight is 0

_TAME: Final = 8.0  # a sum of deltas below it overflows no dtype: half an ulp of float16's maximum is 16


class MixedBatch:
    """The paths that a live model's next passes take: `set` puts them on the model, and `remove` takes them off.

    `read` finds the chain of a path that comes with a request of continuous batching.
    """

    def __init__(self, model: nn.Module, nodes: Nodes, read: ReadRow | None = None) -> None:
        self._model, self._nodes, self._mix, self._read = model, nodes, Mix(), read
        self._layers: dict[str, MixedLayer] = {}
        self._copied: Mapping[str, object] = {}  # the levels that each copy holds
        self._gains: dict[tuple[str, Prefix], Tensor] = {}
        self._given: tuple[Sequence[WeightedChain], Sequence[int] | None, bool] = (), None, False
        self._held = set[str]()  # the versions of the paths that are on the model
        self.stack: Stack | None = None
        self._passes: Passes | None = None

    @property
    def nbytes(self) -> int:
        """The size in bytes of copies, DoRA's gains and static rows; the versions themselves are the nodes'."""
        copies = () if self.stack is None else self.stack.copies.values()
        static = [layer.static for layer in self._layers.values() if layer.static is not None]
        return sum(held.nbytes for held in (*copies, *self._gains.values(), *static))

    @property
    def unreached(self) -> list[str]:
        """The layers with a forward that has not run yet."""
        return [] if self.stack is None else self.stack.unreached

    @property
    def plan(self) -> Plan | None:
        """The plan of the next pass; None if no path is set."""
        return None if self._mix.work is None else self._mix.work.plan

    @property
    def rows(self) -> Sequence[WeightedChain]:
        """The chain of each row; none for segments, or if only requests take paths."""
        chains, lengths, _ = self._given
        return chains if lengths is None else ()

    def read(self, ref: str) -> WeightedChain:
        """Return the chain of a path."""
        if self._read is None:
            raise Invalid("this batch has no registry to find a path in: give each row its chain")
        return self._read(ref)

    def set(
        self, chains: Sequence[WeightedChain], lengths: Sequence[int] | None = None, *, static: bool = False
    ) -> None:
        """Let the next passes take these chains, one for each row, or for each segment of `lengths` tokens.

        With `static`, a batch of the same shape as the one before changes only values of tensors that stay: compiled
        and captured code goes on. Without a chain, only requests of continuous batching take paths. Raises Invalid,
        with the chains of before still on the model, if a chain does not fit, if its sum would not be finite, or if
        chains differ in a tensor that all of them must share.
        """
        if chains:
            self._put(chains, lengths, static=static)
        self._given = chains, lengths, static
        self._watch()

    def put_rows(self) -> None:
        """Let the next passes take the chains of the last `set` again."""
        chains, lengths, static = self._given
        if chains:
            self._put(chains, lengths, static=static)
        else:
            self._mix.work = None

    def set_pass(self, chains: Sequence[WeightedChain], lengths: Sequence[int], kept: Sequence[int]) -> None:
        """Let the next pass take these chains, for segments of `lengths` tokens, until the next `set` or `put_rows`.

        The last token alone of the segments `kept` may reach the last layers.
        """
        self._put(chains, lengths, kept=kept)

    def check(self, chains: Sequence[WeightedChain]) -> None:
        """Hold the versions of these chains. Raises Invalid if the chains cannot be in one pass."""
        own = _own_levels(chains)
        paths = self._nodes.hold(own)
        try:
            _find_depths(paths, own)
            self._check_sums(paths, own)
        finally:
            self._nodes.release(_digests_of(paths))

    def _put(
        self,
        chains: Sequence[WeightedChain],
        lengths: Sequence[int] | None,
        *,
        static: bool = False,
        kept: Sequence[int] = (),
    ) -> None:
        own = _own_levels(chains)
        paths = self._nodes.hold(own)
        try:
            self._change(own, paths, lengths, static=static, kept=kept)
        except BaseException:
            self._nodes.release(_digests_of(paths))
            raise
        self._nodes.release(self._held)
        self._held = _digests_of(paths)
        self._nodes.trim()

    def _change(
        self,
        own: Sequence[Chain],
        paths: Sequence[Path],
        lengths: Sequence[int] | None,
        *,
        static: bool,
        kept: Sequence[int],
    ) -> None:
        depths = _find_depths(paths, own)
        copied = {name: _steps_of(own[0][:depth], name) for name, depth in depths.items()}
        self._check_sums(paths, own)
        plan = Plan(paths, lengths, depths)
        if static:
            _check_static(paths, self._nodes.quantised)
        copies: dict[str, Tensor] | None = None
        known = self._gains
        if copied != self._copied or self.stack is None:
            live = self._read_tensors()
            copies, known = {name: _copy(live[name], name, own[0][: depths[name]]) for name in copied}, {}
        gains = self._find_gains(plan, own, copies, known)
        self._install(plan, copies)
        self._lay_out(plan, lengths if static else None, is_static=static)
        rest = Work(Plan([paths[at] for at in kept], [1] * len(kept), depths), gains) if kept else None
        self._copied, self._gains, self._mix.work = copied, gains, Work(plan, gains, rest)

    def _check_sums(self, paths: Sequence[Path], chains: Sequence[Chain]) -> None:
        """Raise Invalid if a merge of a chain would, because a sum is not finite."""
        for path, chain in zip(paths, chains, strict=True):
            if sum(abs(weight) * node.bound for node, weight in path) < _TAME:
                continue
            live = self._read_tensors()
            for name, program in programs_of(chain).items():
                if name in self._nodes.quantised:
                    check_deltas(program.joined_edits, self._nodes.dtype_of(name), name=name)
                elif not is_surely_finite(program.joined_edits, live[name].dtype, is_tame=True):
                    merged(live[name], program.edits, name=name)

    def _watch(self) -> None:
        if self._passes is None:
            self._passes = Passes(self._model, self._mix, Requests(self))

    def _read_tensors(self) -> dict[str, Tensor]:
        """Return the model's own tensors that are not quantised, without the copies that stand in their places."""
        live = tensors(self._model) | (self.stack.originals if self.stack else {})
        return {name: value for name, value in live.items() if name not in self._nodes.quantised}

    def remove(self) -> None:
        """Take everything off the model: the base as it was before."""
        if self._passes is not None:
            self._passes.remove()
            self._passes = None
        self._mix.work, self._copied, self._gains, self._given = None, {}, {}, ((), None, False)
        self._nodes.release(self._held)
        self._held = set()
        if self.stack is not None:
            self.stack.remove()
            self.stack = None

    def _install(self, plan: Plan, copies: Mapping[str, Tensor] | None) -> None:
        """Put forwards on the layers that the plan changes, and copies in their tensors' places, if some are new."""
        needed = {layer for path in plan.paths for node, _ in path for layer in node.layers}
        if copies is None and needed <= self._layers.keys():
            return
        held = {} if self.stack is None or copies is not None else self.stack.copies
        for name in needed - self._layers.keys():
            self._layers[name] = self._make_layer(name)
        if self.stack is not None:
            self.stack.remove()
            self.stack = None
        self.stack = Stack(self._model, {}, layers=self._layers, copies=held if copies is None else copies)

    def _make_layer(self, name: str) -> MixedLayer:
        layer, weight = self._model.get_submodule(name), f"{name}.weight"
        if weight in self._nodes.quantised:
            out, _ = self._nodes.quantised[weight]
            return MixedQuantised(name, layer, self._mix, self._nodes.dtype_of(weight), out)
        return KINDS[kind_of(layer)](name, layer, self._mix)

    def _lay_out(self, plan: Plan, lengths: Sequence[int] | None, *, is_static: bool) -> None:
        """Give the layers their rows side by side, or take them away."""
        before = {layer.weight_name: layer.static for layer in self._layers.values() if layer.static is not None}
        rows: dict[str, StaticRows] = {}
        if is_static:
            live = tensors(self._model)
            names = {name for path in plan.paths for node, _ in path if node.place for name in node.place.block.a}
            weights = {name: live[name] for name in sorted(names | before.keys())}
            rows = lay_out(weights, plan.paths_of, lengths, before)
        for layer in self._layers.values():
            layer.static = rows.get(layer.weight_name)

    def _find_gains(
        self,
        plan: Plan,
        chains: Sequence[Chain],
        copies: Mapping[str, Tensor] | None,
        known: Mapping[tuple[str, Prefix], Tensor],
    ) -> dict[tuple[str, Prefix], Tensor]:
        """Return DoRA's gain for each weight and sum that the plan scales; `copies` are new copies of weights."""
        spans = [
            (depth, name, span)
            for depth, level in enumerate(plan.levels)
            for span in level.spans
            for name in span.node.magnitudes
            if depth >= plan.depths.get(name, 0)
        ]
        gains = {key: known[key] for _, name, span in spans if (key := (name, span.prefix)) in known}
        if all((name, span.prefix) in gains for _, name, span in spans):
            return gains
        held = tensors(self._model) if copies is None else {**self._read_tensors(), **copies}
        by_prefix = {
            tuple((a.digest, w) for a, w in chain[: depth + 1]): chain[: depth + 1]
            for chain in chains
            for depth in range(len(chain))
        }
        for _, name, span in spans:
            if (key := (name, span.prefix)) not in gains:
                gains[key] = _gain_of(held[name], by_prefix[span.prefix][plan.depths.get(name, 0) :], name)
        return gains


def _digests_of(paths: Sequence[Path]) -> set[str]:
    return {node.digest for path in paths for node, _ in path}


def _own_levels(chains: Sequence[WeightedChain]) -> list[Chain]:
    return [[(adapter, weight) for adapter, weight in chain if weight] for chain in chains]


def _check_static(paths: Sequence[Path], quantised: Collection[str]) -> None:
    if quantised:
        raise Invalid(f"a static batch takes no quantised layer, such as {min(quantised)}: leave `static` out")
    others = sorted({name for path in paths for node, _ in path for name in node.beside_products})
    if others:
        raise Invalid(
            "a static batch takes only low-rank deltas by row, and its paths change "
            f"{listed(others, limit=3)} in another way: leave `static` out"
        )


def _find_depths(paths: Sequence[Path], chains: Sequence[Chain]) -> dict[str, int]:
    """Return how many levels of every path must be in a copy of a tensor, for each tensor that needs one.

    Raises Invalid if the paths differ in these levels.
    """
    depths: dict[str, int] = {}
    for path in paths:
        for depth, (node, _) in enumerate(path):
            depths |= {name: max(depth + 1, depths.get(name, 0)) for name in node.whole}
    differing = [
        name for name, depth in depths.items() if len({_steps_of(chain[:depth], name) for chain in chains}) > 1
    ]
    if differing:
        raise Invalid(
            f"the paths of the batch differ in {listed(sorted(differing), limit=3)}, which all rows of a batch must "
            "share: only low-rank deltas, DoRA, biases and token rows of linear layers and embeddings can differ; put "
            "the paths that share them into one batch"
        )
    return depths


def _steps_of(chain: Chain, name: str) -> tuple[tuple[str, float], ...]:
    """Return the digests and level weights of the levels that edit a tensor."""
    return tuple((adapter.digest, weight) for adapter, weight in chain if name in adapter.parts)


def _edits_of(chain: Chain, name: str) -> list[Edit]:
    return [edit for adapter, weight in chain if name in adapter.parts for edit in adapter.step(weight).edits[name]]


def _copy(tensor: Tensor, name: str, chain: Chain) -> Tensor:
    return compose_copy(tensor, programs_of(chain)[name].edits, name)


def _gain_of(weight: Tensor, chain: Chain, name: str) -> Tensor:
    with full_float32():
        return last_gain(weight, _edits_of(chain, name)).to(weight.device, weight.dtype)
