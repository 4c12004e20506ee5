"""Checks of a model's passes while each row takes a path of its own: as many rows as paths, also for `generate`."""

from collections.abc import Mapping, Sequence
from functools import wraps
from typing import Any, Final

import torch
from torch import Tensor, nn

from loratree_composer.batch.mix import Mix
from loratree_registry.errors import Invalid

_INPUTS: Final = ("input_ids", "inputs_embeds", "decoder_input_ids", "inputs")


class Passes:
    """A model's own call and its `generate`, which refuse inputs that the batch has no path for.

    `generate` makes several rows of one for beams and for num_return_sequences; each keeps the path of its row. So
    inside it, and only there, a pass may have a multiple of the batch's rows.
    """

    def __init__(self, model: nn.Module, mix: Mix) -> None:
        self._model, self._mix, self._is_generating = model, mix, False
        self._hook = model.register_forward_pre_hook(self._check_pass, with_kwargs=True)
        self._own_generate = vars(model).get("generate")
        generate = getattr(model, "generate", None)
        self._has_generate = callable(generate)
        if self._has_generate:
            vars(model)["generate"] = self._wrap(generate)

    def remove(self) -> None:
        """Give the model its own call and its own `generate` back."""
        self._hook.remove()
        if self._has_generate:
            del vars(self._model)["generate"]
        if self._own_generate is not None:
            vars(self._model)["generate"] = self._own_generate

    def _wrap(self, generate: Any) -> Any:
        @wraps(generate)
        def checked(*args: Any, **kwargs: Any) -> Any:
            self._check(args, kwargs, is_expanded=False)
            self._is_generating = True
            try:
                return generate(*args, **kwargs)
            finally:
                self._is_generating = False

        return checked

    def _check_pass(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            return  # compiled code must not depend on this batch's paths; StaticRows checks the shapes
        self._check(args, kwargs, is_expanded=self._is_generating)

    def _check(self, args: Sequence[Any], kwargs: Mapping[str, Any], *, is_expanded: bool) -> None:
        work, given = self._mix.work, _find_input(args, kwargs)
        if work is None or given is None:
            return
        plan = work.plan
        if plan.is_rows:
            rows, paths = given.shape[0], len(plan.paths)
            if rows != paths and not (is_expanded and rows % paths == 0):
                raise Invalid(
                    f"the model got {rows} rows for a batch of {paths} paths: give one path for each row of its input"
                )
        elif (tokens := given.shape[: 2 if given.ndim > 1 else 1].numel()) != plan.tokens:
            raise Invalid(
                f"the model got {tokens} tokens for segments of {plan.tokens} tokens: the lengths must add up to the "
                "tokens of its input"
            )


def _find_input(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return what a model reads: its tokens, their embeddings, or else its first tensor."""
    named = [kwargs[name] for name in _INPUTS if name in kwargs]
    tensors = [value for value in (*args, *named, *kwargs.values()) if isinstance(value, Tensor) and value.ndim]
    return next(iter(tensors), None)
