"""Doctor: checks of the database, the blob store and this machine, one sentence each; nothing written stays.

Each check fails alone: whatever goes wrong in it becomes its sentence, and the others still run.
"""

import os
import shutil
import stat
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from loratree_migrations import HEAD
from loratree_registry.blobs.probe import Check, attempt, probe, run_check
from loratree_registry.blobs.store import BlobStore
from loratree_registry.core.text import counted
from loratree_registry.core.times import now
from loratree_registry.disk.private import exists, is_usable
from loratree_registry.embedded.storage import open_store
from loratree_registry.housekeeping.database_checks import STALE, Answer, check_database
from loratree_registry.settings import Settings

ROOM: Final = 1024**3  # bytes that should be free under HOME: about thirty adapters of 35 MB
_WITHOUT_FILE: Final = {"LORATREE_CONFIG": os.devnull}
_TOLERATED: Final = ("conditional writes", "checksums")
_NEEDED: Final = ("reachable", "writable", "listing")  # the search for leftovers needs these
_PINGS: Final = 5
_EXTRAS: Final = {"composer": "torch", "server": "fastapi", "s3": "boto3", "postgres": "psycopg", "demo": "peft"}
_OF_HOME: Final = "set LORATREE_HOME to a folder that this user may use"
_OF_BLOBS: Final = "check LORATREE_BLOBS and what it names"
_OF_SERVER: Final = "check LORATREE_URL, and that a loratree server is there"
_OF_INSTALLATION: Final = "install loratree again"


def diagnose_environment(environment: Mapping[str, str] = os.environ) -> Iterator[Check]:
    """Check everything that the environment's settings name; a setting that cannot be read counts as not set."""
    readable = dict(environment)
    for name, value in environment.items():
        if name.startswith("LORATREE_"):
            read = attempt(
                f"setting {name}", partial(Settings.from_environment, {name: value}), remedy=f"correct {name}"
            )
            if isinstance(read, Check):
                yield read
                del readable[name]
                if name == "LORATREE_CONFIG":
                    readable |= _WITHOUT_FILE  # not the default file either, which may name another registry
    settings = attempt("settings", partial(Settings.from_environment, readable), remedy="set HOME or LORATREE_HOME")
    if isinstance(settings, Check) and "LORATREE_CONFIG" not in readable:
        yield settings  # the default file's fault, if the others can be read without it
        readable |= _WITHOUT_FILE
        settings = attempt("settings", partial(Settings.from_environment, readable), remedy="set HOME or LORATREE_HOME")
    yield from [settings] if isinstance(settings, Check) else diagnose(settings)


def diagnose(settings: Settings) -> Iterator[Check]:
    """Check everything that `settings` name, in order; a failed check skips only the checks that depend on it."""
    yield run_check("release", _check_release, remedy=_OF_INSTALLATION)
    for extra, package in _EXTRAS.items():
        yield run_check(f"part {extra}", partial(_check_extra, extra, package), remedy=_OF_INSTALLATION)
    yield from _check_home(settings.home)
    if settings.url is not None:
        yield from _check_server(settings.url)
        return
    yield from check_database(settings)
    yield from _check_blobs(settings)


def _check_release() -> Answer:
    python = ".".join(map(str, sys.version_info[:3]))
    return True, f"loratree {version('loratree')} on Python {python}, schema {HEAD}"


def _check_extra(extra: str, package: str) -> Answer:
    try:
        return True, f"{package} {version(package)}"
    except PackageNotFoundError:
        return True, f"not installed; if you need it: pip install 'loratree[{extra}]'"


def _check_home(home: Path) -> Iterator[Check]:
    is_there = attempt("home", partial(exists, home), remedy=_OF_HOME)
    if isinstance(is_there, Check):
        yield is_there
        return
    if not is_there:
        yield run_check("home", partial(_check_creatable, home), remedy=_OF_HOME)
        return
    usable = run_check("home", partial(_check_private, home), remedy=_OF_HOME)
    yield usable
    if usable.ok is not False:
        yield run_check("home's disk", partial(_check_room, home), remedy=_OF_HOME)


def _check_creatable(home: Path) -> Answer:
    above = next(folder for folder in home.parents if exists(folder))
    if not is_usable(above):
        return False, f"{home} cannot be made in {above}: set LORATREE_HOME to a folder that can"
    return None, f"{home} does not exist yet: the first command that needs it creates it"


def _check_private(home: Path) -> Answer:
    if not home.is_dir():
        return False, f"{home} is not a folder: set LORATREE_HOME to one"
    if not is_usable(home):
        return False, f"{home} cannot be written to by this user: correct its owner and its mode, or {_OF_HOME}"
    mode = stat.S_IMODE(home.stat().st_mode)
    is_private = not mode & 0o077
    remedy = "" if is_private else f", so other users may enter it: chmod 700 {home}"
    return True if is_private else None, f"{home} has mode {mode:04o}{remedy}"


def _check_room(home: Path) -> Answer:
    free = shutil.disk_usage(home).free
    remedy = "" if free >= ROOM else ": free some, or set LORATREE_HOME elsewhere"
    return True if free >= ROOM else None, f"{free / 1e9:.1f} GB are free{remedy}"


def _check_server(url: str) -> Iterator[Check]:
    asked = attempt("server", partial(_ask_server, url), remedy=_OF_SERVER)
    if isinstance(asked, Check):
        yield asked
        return
    at, theirs, seconds = asked
    yield Check("server", True, f"{at} answers in {1000 * seconds:.1f} ms")
    yield run_check("server's release", partial(_compare_releases, theirs), remedy=_OF_INSTALLATION)


def _ask_server(url: str) -> tuple[str, str, float]:
    """Return the server's address, its release, and the seconds that it takes to tell its health."""
    from loratree_registry.remote.http import HttpClient
    from loratree_registry.wire.bodies import Health

    client = HttpClient(url)
    try:
        theirs = client.get(Health, "health").version  # opens the connection
        seconds = []
        for _ in range(_PINGS):
            begun = time.perf_counter()
            client.get(Health, "health")
            seconds.append(time.perf_counter() - begun)
    finally:
        client.close()
    return client.url, theirs, statistics.median(seconds)


def _compare_releases(theirs: str) -> Answer:
    ours = version("loratree")
    remedy = "" if theirs == ours else f", this is {ours}: install the same release if a request is refused as unknown"
    return True if theirs == ours else None, f"loratree {theirs}{remedy}"


def _check_blobs(settings: Settings) -> Iterator[Check]:
    store = attempt("blobs", partial(open_store, settings), remedy=_OF_BLOBS)
    if isinstance(store, Check):
        yield store
        return
    try:
        checks = attempt("blobs", partial(probe, store), remedy=_OF_BLOBS)
        if isinstance(checks, Check):
            yield checks
            return
        for check in checks:
            ok = None if check.ok is False and check.name in _TOLERATED else check.ok  # loratree works without these
            yield Check(f"blobs: {check.name}", ok, check.says)
        if not any(check.ok is False and check.name in _NEEDED for check in checks):
            yield run_check("blobs: leftovers", partial(_check_unfinished, store), remedy=_OF_BLOBS)
    finally:
        store.close()


def _check_unfinished(store: BlobStore) -> Answer:
    files = store.sweep(before=now() - STALE, dry_run=True)
    says = f"{counted(len(files), 'unfinished file')} older than a day"
    return None if files else True, f"{says}: run `loratree gc`" if files else says
