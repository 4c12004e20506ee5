"""Doctor: checks of the database, the blob store and this machine, one sentence each; nothing written stays."""

import os
import shutil
import stat
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, Engine, make_url

from loratree_migrations import HEAD, current
from loratree_registry.blobs.probe import Check, probe
from loratree_registry.core.times import now
from loratree_registry.database import queries
from loratree_registry.database.engine import open_engine, reading, trying
from loratree_registry.embedded.storage import open_store
from loratree_registry.errors import LoratreeError
from loratree_registry.settings import Settings

ROOM: Final = 1024**3  # bytes that should be free under HOME: about thirty adapters of 35 MB
SKEW_S: Final = 5.0
STALE: Final = timedelta(days=1)
_TOLERATED: Final = ("conditional writes", "checksums")
_NEEDED: Final = ("reachable", "writable", "listing")  # the search for leftovers needs these
_PINGS: Final = 5
_EXTRAS: Final = {"composer": "torch", "server": "fastapi", "s3": "boto3", "postgres": "psycopg", "demo": "peft"}


def diagnose(settings: Settings) -> Iterator[Check]:
    """Check everything that `settings` name, in order; a failed check skips only the checks that depend on it."""
    yield _check_release()
    yield from (_check_extra(extra, package) for extra, package in _EXTRAS.items())
    yield from _check_home(settings.home)
    if settings.url is not None:
        yield from _check_server(settings.url)
        return
    yield from _check_database(settings)
    yield from _check_blobs(settings)


def _check_release() -> Check:
    python = ".".join(map(str, sys.version_info[:3]))
    return Check("release", True, f"loratree {version('loratree')} on Python {python}, schema {HEAD}")


def _check_extra(extra: str, package: str) -> Check:
    try:
        return Check(f"part {extra}", True, f"{package} {version(package)}")
    except PackageNotFoundError:
        return Check(f"part {extra}", True, f"not installed; if you need it: pip install 'loratree[{extra}]'")


def _check_home(home: Path) -> Iterator[Check]:
    if home.exists() and not home.is_dir():
        yield Check("home", False, f"{home} is not a folder: set LORATREE_HOME to one")
        return
    if not home.exists():
        above = next(folder for folder in home.parents if folder.exists())
        if not _is_usable(above):
            yield Check("home", False, f"{home} cannot be made in {above}: set LORATREE_HOME to a folder that can")
            return
        yield Check("home", None, f"{home} does not exist yet: the first command that needs it creates it")
        return
    mode = stat.S_IMODE(home.stat().st_mode)
    private = not mode & 0o077
    remedy = "" if private else f", so other users may enter it: chmod 700 {home}"
    yield Check("home", True if private else None, f"{home} has mode {mode:04o}{remedy}")
    free = shutil.disk_usage(home).free
    remedy = "" if free >= ROOM else ": free some, or set LORATREE_HOME elsewhere"
    yield Check("home's disk", True if free >= ROOM else None, f"{free / 1e9:.1f} GB are free{remedy}")


def _is_usable(folder: Path) -> bool:
    """Return whether this process may create a file in `folder`."""
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def _check_server(url: str) -> Iterator[Check]:
    from loratree_registry.remote.http import HttpClient
    from loratree_registry.wire.bodies import Health

    try:
        client = HttpClient(url)
        try:
            client.get(Health, "health")  # opens the connection
            seconds = []
            for _ in range(_PINGS):
                begun = time.perf_counter()
                theirs = client.get(Health, "health").version
                seconds.append(time.perf_counter() - begun)
        finally:
            client.close()
    except LoratreeError as error:
        yield Check("server", False, str(error))
        return
    yield Check("server", True, f"{client.url} answers in {1000 * statistics.median(seconds):.1f} ms")
    ours = version("loratree")
    remedy = "" if theirs == ours else f", this is {ours}: install the same release if a request is refused as unknown"
    yield Check("server's release", True if theirs == ours else None, f"loratree {theirs}{remedy}")


def _check_database(settings: Settings) -> Iterator[Check]:
    file = _find_sqlite_file(settings)
    if file is not None and not file.exists():
        creatable = _is_usable(file.parent) or (file.parent == settings.home and not file.parent.exists())
        remedy = "the first command that needs it creates it"
        if not creatable:
            remedy = f"it cannot be made in {file.parent}, make that folder or set LORATREE_DATABASE to another file"
        yield Check("database", None if creatable else False, f"{file} does not exist yet: {remedy}")
        return
    try:
        engine = open_engine(settings.database)
        try:
            with reading(engine) as connection:
                revision = current(connection)
                yield _check_migrations(engine, revision)
                yield from _SETTINGS[engine.dialect.name](connection)
                if revision == HEAD:
                    yield _check_leftovers(connection)
            with trying(engine) as connection:  # takes the write lock of SQLite, and releases it
                current(connection)
            yield Check("database is writable", True, "a transaction that writes can begin")
        finally:
            engine.dispose()
    except LoratreeError as error:
        yield Check("database", False, str(error))


def _find_sqlite_file(settings: Settings) -> Path | None:
    """Return the file of an SQLite database, or None for another database."""
    if isinstance(settings.database, Path):
        return settings.database
    name = settings.database.removeprefix("sqlite:///")
    return Path(make_url(settings.database).database or name) if name != settings.database else None


def _check_migrations(engine: Engine, revision: str | None) -> Check:
    if revision == HEAD:
        return Check("migrations", True, f"the schema is at {revision}, this release's")
    if revision is not None and revision > HEAD:
        return Check("migrations", False, f"the schema is at {revision}, this release knows {HEAD}: upgrade loratree")
    automatic = engine.dialect.name == "sqlite"
    remedy = "the next command upgrades it" if automatic else "run `loratree db upgrade`"
    return Check(
        "migrations", None if automatic else False, f"the schema is at {revision or 'none'}, expected {HEAD}: {remedy}"
    )


def _check_sqlite(connection: Connection) -> Iterator[Check]:
    values = queries.diagnostics.sqlite_settings(connection)
    says = f"SQLite {values.pop('release')}, {', '.join(f'{name} {value}' for name, value in values.items())}"
    right = values["journal_mode"] == "wal" and values["synchronous"] == "FULL" and values["foreign_keys"] == "1"
    remedy = "" if right else ": expected wal, FULL and 1; move the file to a local disk, which SQLite's WAL needs"
    yield Check("database", right, says + remedy)


def _check_postgresql(connection: Connection) -> Iterator[Check]:
    values = queries.diagnostics.postgresql_settings(connection)
    safe = values["fsync"] == "on" and values["synchronous_commit"] != "off"
    says = f"PostgreSQL {values.pop('server_version')}, {', '.join(f'{key} {value}' for key, value in values.items())}"
    remedy = "" if safe else ": a power cut can lose committed data, set fsync and synchronous_commit on"
    yield Check("database", True if safe else None, says + remedy)
    if current(connection) != HEAD:
        return
    collation = queries.diagnostics.path_collation(connection)
    says = f"paths are ordered by the collation {collation or 'of the database'}"
    yield Check("path order", collation == "C", says if collation == "C" else f"{says}, expected C: restore the schema")
    yield _check_clock(connection)
    missing = queries.diagnostics.missing_rights(connection)
    says = f"this user may not {', '.join(missing[:5])}: GRANT it" if missing else "this user may read and write"
    yield Check("database permissions", not missing, says)


def _check_clock(connection: Connection) -> Check:
    before = now()
    theirs = queries.diagnostics.database_time(connection)
    skew = (theirs - before - (now() - before) / 2).total_seconds()
    right = abs(skew) <= SKEW_S
    remedy = "" if right else ": set both by NTP, otherwise grace periods and expiry use a wrong time"
    return Check("database clock", right, f"{skew:+.2f} s against this machine's{remedy}")


def _check_leftovers(connection: Connection) -> Check:
    counts = queries.diagnostics.leftovers(connection, before=now() - STALE)
    says = (
        f"{counts.expected} blobs expected for a day or more, {counts.condemned} condemned, "
        f"{counts.uploads} uploads open for a day or more"
    )
    clean = not (counts.expected or counts.condemned or counts.uploads)
    return Check("leftovers", True if clean else None, says if clean else f"{says}: run `loratree gc`")


def _is_tolerated(check: Check) -> bool:
    """Return whether `check` failed for a feature that loratree works without."""
    return check.ok is False and check.name in _TOLERATED


def _check_blobs(settings: Settings) -> Iterator[Check]:
    try:
        store = open_store(settings)
        try:
            checks = probe(store)
            for check in checks:
                yield Check(f"blobs: {check.name}", None if _is_tolerated(check) else check.ok, check.says)
            if any(check.ok is False and check.name in _NEEDED for check in checks):
                return
            files = store.sweep(before=now() - STALE, dry_run=True)
            says = f"{len(files)} unfinished files older than a day"
            yield Check("blobs: leftovers", None if files else True, f"{says}: run `loratree gc`" if files else says)
        finally:
            store.close()
    except LoratreeError as error:
        yield Check("blobs", False, str(error))


_SETTINGS: Final[dict[str, Callable[[Connection], Iterator[Check]]]] = {
    "sqlite": _check_sqlite,
    "postgresql": _check_postgresql,
}
