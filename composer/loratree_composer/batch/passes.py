"""A model's passes while each row or request takes a path of its own: as many rows as paths, also for `generate`."""

from collections.abc import Mapping, Sequence
from functools import wraps
from typing import Any, Final

import torch
from torch import Tensor, nn

from loratree_composer.batch.mix import Mix
from loratree_composer.batch.requests import Requests
from loratree_registry.core.text import counted
from loratree_registry.errors import Invalid

_INPUTS: Final = ("input_ids", "inputs_embeds", "decoder_input_ids", "inputs")


class Passes:
    """A model's own call and what generates with it, which refuse inputs that the batch has no path for.

    `generate` makes several rows of one for beams and for num_return_sequences; each keeps the path of its row. So
    inside it, and only there, a pass may have a multiple of the batch's rows. `generate_batch`, transformers'
    continuous batching, gives each prompt the path of its row, and a manager gives each request its own.
    """

    def __init__(self, model: nn.Module, mix: Mix, requests: Requests) -> None:
        self._model, self._mix, self._requests, self._is_generating = model, mix, requests, False
        self._hook = model.register_forward_pre_hook(self._check_pass, with_kwargs=True)
        self._own: dict[str, Any] = {}  # what the model itself had in the place of a wrapper
        self._wrapped: list[str] = []
        for name, wrap in (
            ("generate", self._wrap_generate),
            ("generate_batch", self._wrap_generate_batch),
            ("init_continuous_batching", self._wrap_init),
        ):
            if callable(method := getattr(model, name, None)):
                self._wrapped.append(name)
                if name in vars(model):
                    self._own[name] = vars(model)[name]
                vars(model)[name] = wrap(method)

    def remove(self) -> None:
        """Give the model its own call and its own methods back, and stop what still generates."""
        self._requests.stop()
        self._hook.remove()
        for name in self._wrapped:
            del vars(self._model)[name]
        vars(self._model).update(self._own)

    def _wrap_generate(self, generate: Any) -> Any:
        @wraps(generate)
        def checked(*args: Any, **kwargs: Any) -> Any:
            self._check(args, kwargs, is_expanded=False)
            self._is_generating = True
            try:
                return generate(*args, **kwargs)
            finally:
                self._is_generating = False

        return checked

    def _wrap_generate_batch(self, generate_batch: Any) -> Any:
        @wraps(generate_batch)
        def checked(inputs: Sequence[Sequence[int]], *args: Any, **kwargs: Any) -> Any:
            with self._requests.of_rows(inputs):
                return generate_batch(inputs, *args, **kwargs)

        return checked

    def _wrap_init(self, init: Any) -> Any:
        @wraps(init)
        def start(*args: Any, **kwargs: Any) -> Any:
            return self._requests.start(init, self._model, args, kwargs)

        return start

    def _check_pass(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            return  # compiled code must not depend on this batch's paths; StaticRows checks the shapes
        if not self._requests.prepare(kwargs):
            self._requests.leave()
            self._check(args, kwargs, is_expanded=self._is_generating)

    def _check(self, args: Sequence[Any], kwargs: Mapping[str, Any], *, is_expanded: bool) -> None:
        work, given = self._mix.work, _find_input(args, kwargs)
        if given is None:
            return
        if work is None:
            raise Invalid(
                "this block gives a path to each request of continuous batching, and to no other input: add requests "
                "to a manager of model.continuous_batching_context_manager()"
            )
        plan = work.plan
        if plan.is_rows:
            rows, paths = given.shape[0], len(plan.paths)
            if rows != paths and not (is_expanded and rows % paths == 0):
                raise Invalid(
                    f"the model got {counted(rows, 'row')} for a batch of {counted(paths, 'path')}: give one path for "
                    "each row of its input"
                )
        elif (tokens := given.shape[: 2 if given.ndim > 1 else 1].numel()) != plan.tokens:
            raise Invalid(
                f"the model got {counted(tokens, 'token')} for segments of {counted(plan.tokens, 'token')}: "
                "the lengths must add up to the tokens of its input"
            )


def _find_input(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return what a model reads: its tokens, their embeddings, or else its first tensor."""
    named = [kwargs[name] for name in _INPUTS if name in kwargs]
    tensors = [value for value in (*args, *named, *kwargs.values()) if isinstance(value, Tensor) and value.ndim]
    return next(iter(tensors), None)
