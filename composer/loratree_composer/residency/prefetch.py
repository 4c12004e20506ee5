"""Loading versions before they are asked for, on threads of its own."""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Final

from loratree_composer.batch.composed import Ref
from loratree_registry.core.paths import parse_ref
from loratree_registry.core.registry import Registry, read_pages
from loratree_registry.errors import Invalid

_THREADS: Final = 4
_AHEAD: Final = 4  # refs that wait for each thread: a subtree may have a million


def refs_below(registry: Registry, path: str) -> Iterator[str]:
    """Yield the path of each version's node in a subtree, parents first. Raises Invalid if `path` names a version."""
    if parse_ref(path).selector is not None:
        raise Invalid(f"{path} names one version: give the path of a node, to load what lies below it")
    node = registry.node(path) if "/" in path else None
    if node is not None and node.head is not None:
        yield path
    for below in read_pages(lambda after: registry.descendants(path, after=after)):
        if below.head is not None:
            yield below.path


def load_all(refs: Iterable[Ref], load: Callable[[Ref], None], *, threads: int = _THREADS) -> "Future[int]":
    """Call `load` for each ref on a few threads, and return a future of how many refs there were.

    The first error ends it, and is the future's.
    """
    done: Future[int] = Future()
    done.set_running_or_notify_cancel()

    def run() -> None:
        try:
            done.set_result(_load_each(refs, load, threads))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="loratree prefetch", daemon=True).start()
    return done


def _load_each(refs: Iterable[Ref], load: Callable[[Ref], None], threads: int) -> int:
    count, waiting = 0, set[Future[None]]()
    with ThreadPoolExecutor(threads, thread_name_prefix="loratree prefetch") as pool:
        try:
            for ref in refs:
                if len(waiting) >= threads * _AHEAD:
                    finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for one in finished:
                        one.result()
                waiting.add(pool.submit(load, ref))
                count += 1
            for one in waiting:
                one.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return count
