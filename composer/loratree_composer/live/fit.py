"""Checks that a chain's edits fit the tensors of a live module."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

from torch import Tensor, nn

from loratree_composer.arithmetic.edits import Add, Edit, Rescale, check_shape
from loratree_composer.arithmetic.program import Program
from loratree_composer.base.layer_kind import kind_of
from loratree_composer.base.sharing import tensors
from loratree_registry.errors import Invalid, listed

# For a delta made for one of these kinds, the layer must be of the same kind; for others, the shape alone must fit.
LAYERS: Final = ("Linear", "Conv1D", "Embedding", "Conv1d", "Conv2d", "Conv3d")


def check_targets(module: nn.Module, programs: Mapping[str, Program]) -> None:
    """Raise Invalid, listing every tensor of `programs` that is missing or of another kind or shape."""
    live, problems = tensors(module), []
    for name, program in programs.items():
        if name in live:
            problems += fit_problems(module, name, live[name], program.edits)
        else:
            problems.append(f"{name} is not in the model")
    check_fit(problems)


def fit_problems(module: nn.Module, name: str, tensor: Tensor, edits: Sequence[Edit]) -> list[str]:
    """Return why the edits do not fit the tensor `name` of a live module, one clause for each problem."""
    return [f"{name} {problem}" for problem in _find_problems(owner(module, name), tensor, edits)]


def shared_layers(module: nn.Module, names: Collection[str]) -> list[str]:
    """Return a clause for each edited layer that has several names: the edit would change it under every name."""
    paths = defaultdict(list)
    for path, layer in module.named_modules(remove_duplicate=False):
        paths[layer].append(path)
    owners = {name.rpartition(".")[0] for name in names}
    shared = [group for group in paths.values() if len(group) > 1 and owners & set(group)]
    return [f"{listed(group, limit=3)} are one layer" for group in shared]


def check_fit(problems: list[str]) -> None:
    """Raise Invalid if there are problems."""
    if problems:
        raise Invalid(f"the adapter does not fit the model: {listed(problems, limit=5)}")


def owner(module: nn.Module, name: str) -> nn.Module:
    """Return the module that holds the tensor `name`."""
    return module.get_submodule(name.rpartition(".")[0])


def _find_problems(layer: nn.Module, tensor: Tensor, edits: Sequence[Edit]) -> Iterator[str]:
    for edit in edits:
        kind = edit.kind if isinstance(edit, Add | Rescale) else None
        if kind in LAYERS and kind_of(layer) != kind:
            yield f"is of a {kind_of(layer)}, and the adapter was made for a {kind}"
        elif problem := check_shape(tuple(tensor.shape), edit):
            yield problem
