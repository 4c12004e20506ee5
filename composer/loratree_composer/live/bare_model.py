"""The plain model under a torch.compile wrapper; other wrappers, and sharded or offloaded models, are refused."""

import sys
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from loratree_composer.base.sharing import is_sharded
from loratree_composer.live.stack import is_stacked
from loratree_registry.errors import Conflict, Invalid, listed


def bare_model(model: nn.Module) -> nn.Module:
    """Return the module inside a torch.compile wrapper, or `model` itself if it has no wrapper.

    Raises Invalid if the model, or a part of it, has another wrapper that changes the names or values of its tensors,
    or if its weights are sharded or offloaded, and Conflict if it carries a stacked composition.
    """
    optimized = _find_wrapper_classes()
    while isinstance(model, optimized):
        inner = model._orig_mod
        assert isinstance(inner, nn.Module)
        model = inner
    wrapped = [
        f"{name or 'the model'} is a {type(layer).__name__}"
        for name, layer in model.named_modules()
        if isinstance(layer, (DataParallel, DistributedDataParallel, *optimized))
    ]
    if wrapped:
        raise Invalid(
            f"the model is not the base itself ({listed(wrapped, limit=3)}): give the inner model (.module of a "
            "parallel model), and compile a part of it with the compile() of that part, which keeps the tensors' names"
        )
    _check_plain(model)
    return model


def _find_wrapper_classes() -> tuple[type[nn.Module], ...]:
    """Return the class of torch.compile's wrappers, or () if torch has not loaded it and so has wrapped no module."""
    module = sys.modules.get("torch._dynamo.eval_frame")
    return (module.OptimizedModule,) if module is not None else ()


def _check_plain(model: nn.Module) -> None:
    peft = sorted({type(layer).__name__ for layer in model.modules() if type(layer).__module__.startswith("peft.")})
    if peft:
        raise Invalid(
            f"the model carries PEFT's layers ({listed(peft, limit=3)}): give the base model itself, or the model "
            "that its unload() returns"
        )
    for problem in _find_unusable_weights(model):
        raise Invalid(problem)
    if is_stacked(model):
        raise Conflict(
            "the model, or the one that it was copied from, carries a composition: call its Composer's restore(), or "
            "Composer.reset(model)"
        )


def _find_unusable_weights(model: nn.Module) -> Iterator[str]:
    """Yield a sentence for each reason why the model's weights are not the base's plain tensors."""
    own: list[tuple[str, Tensor]] = [*model.named_parameters(), *model.named_buffers()]
    if (sharded := next(_find_shards(model, own), None)) is not None:
        yield (
            f"the model is sharded ({sharded}), and each process holds a part of a weight: load the whole model on one "
            "device, or compose to files first and shard the result"
        )
    hooked = [name for name, layer in model.named_modules() if hasattr(layer, "_hf_hook")]
    if hooked and (offloaded := [name for name, tensor in own if tensor.is_meta]):
        yield (
            f"the model is offloaded by accelerate ({listed(offloaded, limit=1)} is on the meta device between "
            "passes): load it with a device_map of devices that hold all of it"
        )


def _find_shards(model: nn.Module, own: list[tuple[str, Tensor]]) -> Iterator[str]:
    for name, layer in model.named_modules():
        if type(layer).__module__.startswith("torch.distributed.fsdp") and isinstance(layer, nn.Module):
            yield f"{name or 'it'} is a {type(layer).__name__}"
    for name, tensor in own:
        if is_sharded(tensor):
            yield f"{name} is a DTensor, as FSDP2 and tensor parallelism make it"
        elif hasattr(tensor, "ds_id") or hasattr(tensor, "ds_shape"):
            yield f"{name} is a parameter of DeepSpeed ZeRO-3"
