"""transformers' continuous batching with a path for each request: whose tokens a pass has, as its manager says."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from inspect import signature
from itertools import count
from typing import Any, Final, Protocol

from torch import nn

from loratree_composer.adapters.adapter import WeightedChain
from loratree_registry.core.text import counted
from loratree_registry.errors import Conflict, Invalid

_KEPT: Final = "_cached_continuous_batching_manager"  # where a model keeps a manager for another run
_CHILD: Final = "__child#"  # in the id of a request's further sequence; what stands before it is the request's own id

ReadRow = Callable[[str], WeightedChain]


class Rows(Protocol):
    """The paths of a batch, and how the paths of one pass are put on the model."""

    @property
    def rows(self) -> Sequence[WeightedChain]:
        """The chain of each row; none if only requests take paths, or segments of packed sequences."""
        ...

    def read(self, ref: str) -> WeightedChain:
        """Return the chain of a ref, with the batch's level weights. Raises Invalid if it is not of this base."""
        ...

    def check(self, chains: Sequence[WeightedChain]) -> None:
        """Raise Invalid if the chains cannot be in one pass."""
        ...

    def put_rows(self) -> None:
        """Let the next pass take the batch's own rows again."""
        ...

    def set_pass(self, chains: Sequence[WeightedChain], lengths: Sequence[int], kept: Sequence[int]) -> None:
        """Let the next pass take these chains, for segments of so many tokens; `kept` are segments with an output."""
        ...


class Requests:
    """The requests of a model's continuous-batching managers, each with its path until it is finished.

    A manager is wrapped when the model makes it: `add_request` takes a `path`, or the batch's next row. The manager
    runs the model on a thread of its own, so what both use is locked. Blocks of the KV cache are not shared, because
    the manager knows them by their tokens alone, and equal tokens of two paths have different keys and values.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows, self._lock = rows, threading.RLock()
        self._managers: list[_Manager] = []
        self._next_row = 0
        self._put: object = None  # what names the paths of the last pass, if a manager ran it

    @contextmanager
    def of_rows(self, inputs: Sequence[Sequence[int]]) -> Iterator[None]:
        """Give the requests of the block, one for each prompt, the batch's rows, and raise what ended their manager.

        Raises Invalid if the batch has another number of rows, or if a prompt is empty.
        """
        if len(inputs) != len(self._rows.rows):
            prompts, rows = counted(len(inputs), "prompt"), counted(len(self._rows.rows), "row")
            raise Invalid(f"generate_batch got {prompts} for a batch of {rows}: give each a path")
        for prompt in inputs:  # here, because generate_batch logs what add_request raises, and goes on
            _check_prompt(prompt)
        self._next_row, before = 0, len(self._managers)
        try:
            yield
        finally:
            self.leave()
        started, self._managers[before:] = self._managers[before:], []
        for manager in started:
            raise_what_ended(manager.found)

    def leave(self) -> None:
        """Let a pass that is no manager's have the batch's own rows."""
        with self._lock:
            if self._put is not None:
                self._put = None
                self._rows.put_rows()

    def start(self, make: Callable[..., Any], model: nn.Module, args: Sequence[Any], options: dict[str, Any]) -> Any:
        """Return the manager that `make`, the model's init_continuous_batching, makes, with requests that take paths.

        Raises Conflict if the model keeps a manager of before, and Invalid if the settings capture or compile passes.
        """
        if getattr(model, _KEPT, None) is not None:
            raise Conflict(
                "the model keeps a continuous-batching manager of before, which gives no request a path: call "
                "model.destroy_cached_continuous_batching_manager() first"
            )
        manager = _Manager(_start(make, model, args, options))
        manager.found.add_request = self._wrap(manager)
        self._managers.append(manager)
        return manager.found

    def prepare(self, given: Mapping[str, Any]) -> bool:
        """Put the paths of a manager's pass on the model; return False if the pass is not a manager's."""
        cache = given.get("cache")
        manager = next((one for one in self._managers if cache is not None and one.has(cache)), None)
        if manager is None:
            return False
        with self._lock:
            turn = manager.read_turn()
            if (manager, turn) != self._put:
                chains = [manager.chain_of(request_id) for request_id in turn.ids]
                self._rows.set_pass(chains, turn.lengths, turn.kept)
                self._put = manager, turn
        return True

    def stop(self) -> None:
        """Stop every manager: its requests fail, because their paths are taken off the model."""
        for manager in self._managers:
            manager.stop()
        self._managers, self._put = [], None

    def _wrap(self, manager: "_Manager") -> Callable[..., str | None]:
        add: Callable[..., str | None] = manager.found.add_request

        @wraps(add)
        def add_request(
            input_ids: list[int], request_id: str | None = None, *args: Any, path: str | None = None, **kwargs: Any
        ) -> str | None:
            _check_prompt(input_ids)
            chain = None if path is None else self._read(path)
            with self._lock:
                request_id = request_id or f"path_{next(manager.numbers)}"
                if request_id in manager.chains:
                    raise Invalid(f"there is a request {request_id!r} already: give the new one another id")
                if chain is not None:
                    self._rows.check([*manager.chains.values(), chain])
                manager.chains[request_id] = self._take_row(request_id) if chain is None else chain
            try:
                return add(input_ids, request_id, *args, **kwargs)
            except BaseException:
                manager.chains.pop(request_id, None)
                raise

        return add_request

    def _read(self, path: str) -> WeightedChain:
        """Load the chain of a path, without the lock: meanwhile, other requests go on. Raises Invalid."""
        chain = self._rows.read(path)
        self._rows.check([chain])
        return chain

    def _take_row(self, request_id: str) -> WeightedChain:
        """Return the chain of the batch's next row."""
        if self._next_row >= len(self._rows.rows):
            rows = len(self._rows.rows)
            after = f": the batch has {counted(rows, 'path')}, and it comes after the last" if rows else ""
            raise Invalid(f"request {request_id!r} has no path{after}: call add_request(…, path=…)")
        self._next_row += 1
        return self._rows.rows[self._next_row - 1]


@dataclass(frozen=True, slots=True)
class _Turn:
    """One pass of a manager: the ids of its requests, their tokens in it, and the segments whose output is used."""

    ids: tuple[str, ...]
    lengths: tuple[int, ...]
    kept: tuple[int, ...]


class _Manager:
    """A manager, `found`, and the chains of its requests; the ids of `started` requests were in a pass."""

    def __init__(self, found: Any) -> None:
        self.found: Any = found
        self.chains: dict[str, WeightedChain] = {}
        self.numbers = count()
        self._started = set[str]()

    def has(self, cache: object) -> bool:
        """Return whether the manager runs passes with this cache."""
        processor = self.found.batch_processor
        return processor is not None and processor.cache is cache

    def read_turn(self) -> _Turn:
        """Return what the next pass is, and forget the requests that are finished."""
        batch = self.found.batch_processor.inputs_and_outputs.requests_in_batch
        ids = tuple(request.state.request_id for request in batch)
        # The manager asks for one output a request: first of those that have a new token, and then of any other.
        kept = [at for at, request in enumerate(batch) if request.has_new_token]
        kept += [0] * (len(batch) - len(kept))
        self._forget_finished(ids)
        return _Turn(ids, tuple(request.query_length for request in batch), tuple(kept))

    def chain_of(self, request_id: str) -> WeightedChain:
        """Return the chain of a request, or of the request that it is a further sequence of."""
        if request_id not in self.chains:
            parent = request_id.partition(_CHILD)[0]
            if parent not in self.chains:
                raise Invalid(f"request {request_id!r} has no path: add it inside the block that gives paths")
            self.chains[request_id] = self.chains[parent]
        return self.chains[request_id]

    def stop(self) -> None:
        """Stop the manager at once, and give it its own `add_request` back."""
        if self.found.is_running():
            self.found.stop(block=True, hard_stop=True)
        del self.found.add_request
        model = self.found.model
        if getattr(model, _KEPT, None) is self.found:
            model.destroy_cached_continuous_batching_manager()

    def _forget_finished(self, ids: Sequence[str]) -> None:
        """Drop the chains of requests that were in a pass and that the manager knows no longer."""
        scheduler = self.found.batch_processor.scheduler
        known = {*scheduler.active_requests, *scheduler.waiting_requests, *ids}
        known |= {request_id.partition(_CHILD)[0] for request_id in known}
        for request_id in self._started - known:
            self.chains.pop(request_id, None)
        self._started = (self._started & known) | set(ids)


def _check_prompt(prompt: Sequence[int]) -> None:
    if not len(prompt):
        raise Invalid("a request takes at least one token, got none: give its prompt, or a token to begin with")


def raise_what_ended(manager: Any) -> None:
    """Raise the error of a pass that ended a manager's thread, after which its requests wait for ever."""
    if (error := manager.background_thread_status.fatal_error) is not None:
        raise error


def _start(make: Callable[..., Any], model: nn.Module, args: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """Return a manager that calls the model at each pass and shares no block of the KV cache."""
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    given = signature(make).bind(*args, **options)
    name = "continuous_batching_config"
    of_generation = given.arguments.get("generation_config") or getattr(model, "generation_config", None)
    settings = given.arguments.get(name) or getattr(of_generation, name, None) or ContinuousBatchingConfig()
    if settings.use_cuda_graph not in (None, False, (False, False)):
        raise Invalid("requests that take paths run without CUDA graphs: leave use_cuda_graph out of the settings")
    given.arguments[name] = replace(settings, allow_block_sharing=False, use_async_batching=False, use_cuda_graph=False)
    attention = model.config._attn_implementation  # type: ignore[union-attr]
    manager = make(*given.args, **given.kwargs)
    resolved = manager.continuous_batching_config
    if resolved.varlen_compile_config or resolved.decode_compile_config:
        model.set_attn_implementation(attention)  # type: ignore[operator]
        raise Invalid("requests that take paths run without torch.compile: leave it out of the settings and the config")
    return manager
