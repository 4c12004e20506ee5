"""Answers that are kept until the database changes, and how a request learns whether it did."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol
from weakref import WeakKeyDictionary

_KEPT: Final = 2048  # answers from one database
_KEPT_BYTES: Final = 16 * 1024  # a larger answer is not kept
_STAMPS: Final = ThreadPoolExecutor(2, "stamp")

Answer = tuple[bytes, bytes]  # the ETag and the body


class Changes(Protocol):
    """A database's changes, as `EmbeddedRegistry.changes` tells them: two equal stamps mean that it did not change."""

    asks_server: bool  # a stamp may wait for another machine

    def stamp(self) -> object | None:
        """Return the stamp, or None if there is none now."""
        ...


class KeptAnswers:
    """The last answers from a database by path, each with the stamp of the database before it was computed."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[object, Answer]] = OrderedDict()

    def find(self, path: str, stamp: object) -> Answer | None:
        """Return the answer to a path if nothing has changed since it was computed."""
        known, answer = self._kept.get(path, (None, None))
        return answer if known is not None and known == stamp else None

    def keep(self, path: str, stamp: object, answer: Answer) -> None:
        """Keep an answer, if there is a stamp by which to know when it ends."""
        if stamp is not None and len(answer[1]) <= _KEPT_BYTES:
            self._kept[path] = (stamp, answer)
            self._kept.move_to_end(path)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)


class SharedStamps:
    """The stamps of a server for requests of one event loop: those that come while one is asked for share the next one.

    So each request gets a stamp that was asked for after the request came, and many requests cost one round trip.
    """

    def __init__(self, ask: Callable[[], object | None]) -> None:
        self._ask = ask
        self._asked: asyncio.Future[object | None] | None = None
        self._next: asyncio.Task[object | None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def stamp(self) -> object | None:
        """Return a stamp that is asked for from now on."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._asked, self._next = loop, None, None
        if self._next is None:
            self._next = loop.create_task(self._ask_after(self._asked))
        return await asyncio.shield(self._next)  # a client that leaves does not take the others' stamp away

    async def _ask_after(self, before: "asyncio.Future[object | None] | None") -> object | None:
        if before is not None and not before.done():
            await asyncio.wait([before])
        self._next = None
        self._asked = asyncio.get_running_loop().run_in_executor(_STAMPS, self._ask)
        return await self._asked


_ANSWERS: "WeakKeyDictionary[Changes, KeptAnswers]" = WeakKeyDictionary()
_SHARED: "WeakKeyDictionary[Changes, SharedStamps]" = WeakKeyDictionary()


def kept_answers(changes: Changes | None) -> KeptAnswers:
    """Return the answers that are kept of a database; none are if nothing tells its changes."""
    return KeptAnswers() if changes is None else _ANSWERS.setdefault(changes, KeptAnswers())


async def see(changes: Changes | None, keeps_s: float | None) -> object | None:
    """Return the stamp by which an answer is kept. The part of it that is a time needs no server."""
    if changes is None or (changes.asks_server and keeps_s is not None):
        seen = None
    elif changes.asks_server:
        seen = await _SHARED.setdefault(changes, SharedStamps(changes.stamp)).stamp()
    else:
        seen = changes.stamp()
    return seen if keeps_s is None else (seen, time.monotonic() // keeps_s)
