"""A chain beside a live module's layers, which stay untouched: y = G ⊙ (Wx) + B(Ax) + b."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from loratree_composer.arithmetic.edits import Add, Edit, ReplaceRows, Rescale
from loratree_composer.arithmetic.merge import check_values, merged
from loratree_composer.arithmetic.normal_form import normal_form
from loratree_composer.arithmetic.precision import full_float32
from loratree_composer.arithmetic.program import Program
from loratree_composer.base.layer_kind import kind_of
from loratree_composer.base.sharing import tensors
from loratree_composer.live.fit import check_fit, fit_problems, owner, shared_layers
from loratree_composer.live.stacked_layers import KINDS, StackedLayer
from loratree_composer.live.untied_tensors import drop_compiled, put, put_back


class Stack:
    """A chain stacked onto a live module: no tensor of the module is written, and `remove` leaves no trace.

    Deltas and DoRA on Linear, Conv1D, Embedding and convolutions, and replaced rows of the first and third, run beside
    the layer: one pair of products and one gain a layer, whatever the depth. Their factors are held in the layer's own
    dtype, on its device. A layer whose weight is read past its forward (a functional call such as linear(x,
    layer.weight)) never runs them: they are left out, where a merge would have them in. After a forward pass,
    `unreached` names those.

    Every other tensor that the chain edits (a bias, a whole value, attention's in_proj and out_proj, experts, norms,
    buffers) is a composed copy, as large as the tensor, in place of the module's own object until `remove`: it is what
    state_dict() shows, and what an optimizer made before does not know. Compiled code is dropped.

    Raises Invalid where an edit does not fit or a value is not finite; the module is then as it was. The products are
    the layer's own, so one that overflows its dtype shows in the output, where a merge would have been refused.
    """

    def __init__(self, module: nn.Module, programs: Mapping[str, Program]) -> None:
        self._module = module
        self._beside: dict[str, StackedLayer] = {}
        self._copies: dict[str, Tensor] = {}
        self._originals: dict[str, Tensor] = {}
        with full_float32():
            self._prepare_all(programs)
        try:
            self._install()
        except BaseException:
            self.remove()
            raise

    @property
    def unreached(self) -> list[str]:
        """The layers whose forward has not run since they were stacked: after a pass, those it read past their forward.

        What such a pass computes lacks their deltas, as it does with PEFT's active adapter; merged weights have them.
        """
        return sorted(name for name, beside in self._beside.items() if not beside.called)

    def remove(self) -> None:
        """Gives every layer its own forward and every name its own tensor back; the module is as it was."""
        if self._beside or self._copies:
            drop_compiled()
        for name, beside in self._beside.items():
            beside.stop()
            held = vars(self._module.get_submodule(name))
            if held.get("forward") is beside:
                del held["forward"]
        for name, original in self._originals.items():
            put_back(self._module, name, original)
        self._beside, self._copies, self._originals = {}, {}, {}

    def _prepare_all(self, programs: Mapping[str, Program]) -> None:
        live = tensors(self._module)
        problems = [f"{name} is not in the model" for name in programs if name not in live]
        problems += shared_layers(self._module, programs)
        for name in (name for name in programs if name in live):
            edits = programs[name].edits  # made at each access
            check_values(live[name], edits, name=name)
            problems += fit_problems(self._module, name, live[name], edits)
            if not problems:
                self._prepare(name, live[name], edits)
        check_fit(problems)

    def _prepare(self, name: str, tensor: Tensor, edits: Sequence[Edit]) -> None:
        layer = owner(self._module, name)
        whole, beside = _split(layer, name, edits)
        if whole:
            self._copies[name] = tensor = _composed(tensor, whole, name)
        if beside:
            layer_name = name.rpartition(".")[0]
            self._beside[layer_name] = KINDS[kind_of(layer)](layer_name, layer, normal_form(tensor, beside))

    def _install(self) -> None:
        live = tensors(self._module)
        for name, copy in self._copies.items():
            self._originals[name] = live[name]
            put(self._module, name, copy)
        for name, beside in self._beside.items():
            vars(self._module.get_submodule(name))["forward"] = beside
        if self._beside or self._copies:
            drop_compiled()


def is_stacked(module: nn.Module) -> bool:
    """Tells whether any layer of `module` carries a stacked delta."""
    return any(isinstance(vars(layer).get("forward"), StackedLayer) for layer in module.modules())


def _split(layer: nn.Module, name: str, edits: Sequence[Edit]) -> tuple[Sequence[Edit], Sequence[Edit]]:
    """The edits that a copy of the tensor holds, and those after them that run beside it."""
    if not _has_plain_forward(layer, name):
        return edits, ()
    beside = (Add, Rescale, ReplaceRows) if kind_of(layer) in ("Linear", "Embedding") else (Add, Rescale)
    first = max((index + 1 for index, edit in enumerate(edits) if not isinstance(edit, beside)), default=0)
    # Where there is a copy anyway, it may as well hold all of it, unless no value of it does.
    if first and not any(isinstance(edit, Add) and edit.groups > 1 for edit in edits[first:]):
        return edits, ()
    return edits[:first], edits[first:]


def _has_plain_forward(layer: nn.Module, name: str) -> bool:
    """Tells whether the tensor is the weight of a layer whose forward is known and is nobody else's."""
    return (
        kind_of(layer) in KINDS
        and name.endswith(".weight")
        and "weight" in layer._parameters
        and "forward" not in vars(layer)
    )


def _composed(tensor: Tensor, edits: Sequence[Edit], name: str) -> Tensor:
    value = merged(tensor, edits, name=name)
    return nn.Parameter(value, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
