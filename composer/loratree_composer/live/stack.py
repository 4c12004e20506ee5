"""A chain that runs beside a live module's layers and leaves their weights untouched: y = G ⊙ (Wx) + B(Ax) + b."""

from collections.abc import Mapping, Sequence
from types import MethodType
from typing import Final

import torch
from torch import Tensor, nn

from loratree_composer.arithmetic.edits import Add, Edit, ReplaceRows, Rescale
from loratree_composer.arithmetic.lowrank import LowRank
from loratree_composer.arithmetic.merge import check_deltas, check_values, is_surely_finite, merged
from loratree_composer.arithmetic.normal_form import normal_form
from loratree_composer.arithmetic.precision import full_float32
from loratree_composer.arithmetic.program import Program
from loratree_composer.base.layer_kind import TRANSPOSED, kind_of
from loratree_composer.base.past_forward import is_read_past_forward
from loratree_composer.base.quantised import describe_quantised, read_live
from loratree_composer.base.sharing import tensors
from loratree_composer.live.fit import check_fit, fit_problems, owner, shared_layers
from loratree_composer.live.stacked_layers import KINDS, StackedLayer, StackedQuantised
from loratree_composer.live.untied_tensors import drop_compiled, put, put_back
from loratree_registry.errors import Invalid

# accelerate, which places the layers of a device_map, sets a layer's forward to a hook around this attribute.
INNER: Final = "_old_forward"


class Stack:
    """A chain stacked onto a live module: no tensor of the module is written, and `remove` leaves no trace.

    Deltas and DoRA on Linear, Conv1D, Embedding and convolutions run beside the layer, and so do replaced rows of
    Linear and Embedding, and deltas alone on quantised linear layers. A layer costs one pair of products and one gain
    at any depth of the chain. The factors have the layer's own dtype and device. If the model reads a layer's weight
    past the layer's forward (a functional call such as linear(x, layer.weight)), the delta has no effect there,
    although a merge would include it. After a forward pass, `unreached` names such layers.

    Every other tensor that the chain edits (a bias, a whole value, attention's in_proj and out_proj, experts, norms,
    buffers) is replaced by a composed copy of the same size until `remove`. state_dict() shows the copy, and an
    optimizer made earlier does not know it. Compiled code is dropped.

    Raises Invalid if an edit does not fit, or if a value is not finite, also if only the sum would not be, as in a
    merge; the module is then unchanged.
    """

    def __init__(
        self,
        module: nn.Module,
        programs: Mapping[str, Program],
        *,
        layers: Mapping[str, StackedLayer] | None = None,
        copies: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Prepare and install the chain; or install `layers` and `copies` that were made for the module as it is."""
        self._module = module
        self._beside: dict[str, StackedLayer] = dict(layers or {})
        self._copies: dict[str, Tensor] = dict(copies or {})
        self._originals: dict[str, Tensor] = {}
        self._inner: dict[str, object] = {}
        if layers is None:
            with full_float32():
                self._prepare_all(programs)
        try:
            self._install()
        except BaseException:
            self.remove()
            raise

    @property
    def unreached(self) -> list[str]:
        """The stacked layers with a forward that has not run yet: after a pass, the layers read past their forward.

        The output of the pass lacks their deltas, as it does with PEFT's active adapter; merged weights include them.
        """
        return sorted(name for name, beside in self._beside.items() if not beside.called)

    @property
    def layers(self) -> dict[str, StackedLayer] | None:
        """The layers by name, for another stack of the same chain; None if they depend on values of the module."""
        depends = self._copies or any(layer.depends_on_weight for layer in self._beside.values())
        return None if depends else dict(self._beside)

    @property
    def copies(self) -> dict[str, Tensor]:
        """The composed copies, by the names of the tensors whose places they take."""
        return dict(self._copies)

    @property
    def originals(self) -> dict[str, Tensor]:
        """The module's own tensors of the names that have a composed copy now."""
        return dict(self._originals)

    @property
    def nbytes(self) -> int:
        """The size in bytes of the factors beside the layers, and of the composed copies."""
        return sum(item.nbytes for items in (self._beside, self._copies) for item in items.values())

    def remove(self) -> None:
        """Give every layer its own forward back and every name its own tensor; the module is then as it was."""
        if self._beside or self._copies:
            drop_compiled()
        for name, beside in self._beside.items():
            beside.stop()
            _take_off(self._module.get_submodule(name), beside, self._inner.get(name))
        for name, original in self._originals.items():
            put_back(self._module, name, original)
        self._beside, self._copies, self._originals, self._inner = {}, {}, {}, {}

    def _prepare_all(self, programs: Mapping[str, Program]) -> None:
        read = read_live(self._module)
        live, quantised = read.plain, read.sizes()
        problems = [f"{name} is not in the model" for name in programs if name not in live | quantised]
        problems += shared_layers(self._module, programs)
        for name in (name for name in programs if name in quantised):
            problems += self._prepare_quantised(name, quantised[name], programs[name].joined_edits, live)
        for name in (name for name in programs if name in live):
            edits = programs[name].joined_edits  # computed at each access
            check_values(live[name], edits, name=name)
            problems += fit_problems(self._module, name, live[name], edits)
            if not problems:
                if not is_surely_finite(edits, live[name].dtype, is_tame=True):
                    _check_sum(live[name], programs[name].edits, name)  # made again, in a merge's own order
                self._prepare(name, live[name], edits)
        check_fit(problems)

    def _prepare_quantised(
        self, name: str, size: tuple[int, int], edits: Sequence[Edit], live: Mapping[str, Tensor]
    ) -> list[str]:
        """Prepare a quantised weight of `size` (out, in), or return why the edits do not fit it."""
        layer_name = name.rpartition(".")[0]
        layer, dtype = self._module.get_submodule(layer_name), dtype_beside_quantised(live)
        if problems := quantised_problems(layer, name, size, edits, dtype, has_forward=has_own_forward(layer)):
            return problems
        (delta,) = (stored_as_out_in(edit) for edit in edits if isinstance(edit, Add))
        self._beside[layer_name] = StackedQuantised(layer_name, layer, delta, dtype)
        return []

    def _prepare(self, name: str, tensor: Tensor, edits: Sequence[Edit]) -> None:
        layer = owner(self._module, name)
        whole, beside = _split(layer, name, edits)
        # Rows beside a layer do not reach a head that multiplies by the layer's weight; PEFT's rows are in that weight.
        if any(isinstance(edit, ReplaceRows) for edit in beside) and is_read_past_forward(
            self._module, name.rpartition(".")[0]
        ):
            whole, beside = edits, ()
        if whole:
            self._copies[name] = tensor = compose_copy(tensor, whole, name)
        if beside:
            layer_name = name.rpartition(".")[0]
            try:
                self._beside[layer_name] = KINDS[kind_of(layer)](layer_name, layer, normal_form(tensor, beside))
            except Invalid:
                if not any(isinstance(edit, Add) and edit.groups > 1 for edit in beside):
                    merged(tensor, beside, name=name)  # if the sum overflows too, its sentence says more
                raise

    def _install(self) -> None:
        live = tensors(self._module)
        for name, copy in self._copies.items():
            self._originals[name] = live[name]
            put(self._module, name, copy)
        for name, beside in self._beside.items():
            attributes = vars(self._module.get_submodule(name))
            if INNER in attributes:
                self._inner[name] = attributes[INNER]
            attributes[INNER if INNER in attributes else "forward"] = beside
            beside.start()
        if self._beside or self._copies:
            drop_compiled()


def fits(module: nn.Module, layers: Mapping[str, StackedLayer]) -> bool:
    """Return whether the layers of an earlier stack can be installed again: nothing was replaced, cast or moved."""
    named = dict(module.named_modules())
    return all(name in named and layer.is_of(named[name]) for name, layer in layers.items())


def strip(module: nn.Module) -> None:
    """Give every layer of a copy of a stacked module its own forward back."""
    for layer in module.modules():
        for name in ("forward", INNER):
            if isinstance(beside := vars(layer).get(name), StackedLayer):
                _take_off(layer, beside, None)


def _take_off(layer: nn.Module, beside: StackedLayer, inner: object | None) -> None:
    """Give the layer its own forward back, inside a hook of accelerate too; `inner` is what the hook had before."""
    attributes = vars(layer)
    if attributes.get(INNER) is beside:
        # A hook that was put around the stack took it for the layer's own forward.
        attributes[INNER] = MethodType(type(layer).forward, layer) if inner is None else inner
    if attributes.get("forward") is beside:
        del attributes["forward"]


def is_stacked(module: nn.Module) -> bool:
    """Return whether any layer of `module` carries a stacked delta."""
    forwards = (vars(layer).get(name) for layer in module.modules() for name in ("forward", INNER))
    return any(isinstance(forward, StackedLayer) for forward in forwards)


def _split(layer: nn.Module, name: str, edits: Sequence[Edit]) -> tuple[Sequence[Edit], Sequence[Edit]]:
    """Split the edits into a beginning, held by a copy of the tensor, and an end that runs beside the layer."""
    if not has_plain_forward(layer, name):
        return edits, ()
    beside = (Add, Rescale, ReplaceRows) if kind_of(layer) in ("Linear", "Embedding") else (Add, Rescale)
    first = max((index + 1 for index, edit in enumerate(edits) if not isinstance(edit, beside)), default=0)
    # If there is a copy anyway, it holds every edit, unless a grouped delta follows, which no value of it can give.
    if first and not any(isinstance(edit, Add) and edit.groups > 1 for edit in edits[first:]):
        return edits, ()
    return edits[:first], edits[first:]


def has_plain_forward(layer: nn.Module, name: str) -> bool:
    """Return whether the tensor is the weight of a layer with a known forward that nobody has replaced."""
    return (
        kind_of(layer) in KINDS
        and name.endswith(".weight")
        and "weight" in layer._parameters
        and has_own_forward(layer)
    )


def has_own_forward(layer: nn.Module) -> bool:
    """Return whether the layer's forward is that of its class, alone or inside a hook of accelerate."""
    attributes = vars(layer)
    if INNER in attributes:
        return getattr(attributes[INNER], "__func__", None) is type(layer).forward
    return "forward" not in attributes


def quantised_problems(
    layer: nn.Module, name: str, size: tuple[int, int], edits: Sequence[Edit], dtype: torch.dtype, *, has_forward: bool
) -> list[str]:
    """Return why edits do not fit a quantised weight of `size` (out, in). Raises Invalid if a sum is not finite.

    `has_forward` says that the layer's forward is its class's own, or was before a batch.
    """
    deltas = [edit for edit in edits if isinstance(edit, Add)]
    if len(deltas) != 1 or len(edits) != 1 or deltas[0].kind not in TRANSPOSED or not has_forward:
        return [
            f"{name} is quantised ({describe_quantised(layer)}), and only low-rank deltas run beside a quantised "
            "layer's own forward, not DoRA, token rows or a whole value: take the model without quantization, or "
            "compose to files first and quantise the result"
        ]
    delta = stored_as_out_in(deltas[0])
    if delta.shape != size:
        return [f"{name} is quantised from shape {list(size)}, and the adapter's part is {list(delta.shape)}"]
    check_deltas(edits, dtype, name=name)
    return []


def stored_as_out_in(edit: Add) -> LowRank:
    """Return the delta of a linear layer as [out, in], whichever way the layer stores its weight."""
    return edit.delta.transposed() if TRANSPOSED[edit.kind] else edit.delta


def dtype_beside_quantised(live: Mapping[str, Tensor]) -> torch.dtype:
    """Return the dtype of the model's first tensor that is not quantised: an embedding's, and so the activations'."""
    return next((tensor.dtype for tensor in live.values() if tensor.is_floating_point()), torch.get_default_dtype())


def _check_sum(tensor: Tensor, edits: Sequence[Edit], name: str) -> None:
    """Raise Invalid if a merge of the edits into the tensor would, because the sum is not finite."""
    if any(isinstance(edit, Add) and edit.groups > 1 for edit in edits):
        check_deltas(edits, tensor.dtype, name=name)  # no merge can hold it, so its own sum decides
    elif tensor.is_floating_point():
        merged(tensor, edits, name=name)


def compose_copy(tensor: Tensor, edits: Sequence[Edit], name: str) -> Tensor:
    """Return a tensor with the edits of `name` applied, of the same kind: a parameter, or a buffer."""
    value = merged(tensor, edits, name=name)
    return nn.Parameter(value, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
