"""Doctor's checks of the database. Each opens a connection of its own, so that one that fails ends no other."""

from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, Engine, make_url

from loratree_migrations import HEAD, current
from loratree_registry.blobs.probe import Check, attempt, run_check
from loratree_registry.core.times import now
from loratree_registry.database import queries
from loratree_registry.database.engine import open_engine, reading, trying
from loratree_registry.disk.private import exists, is_usable
from loratree_registry.settings import Settings

STALE: Final = timedelta(days=1)
_SKEW_S: Final = 5.0
_REMEDY: Final = "check LORATREE_DATABASE and what it names"

Answer = tuple[bool | None, str]


def check_database(settings: Settings) -> Iterator[Check]:
    """Check the database: first whether it can be opened, and then each of its parts."""
    engine = attempt("database", lambda: open_engine(settings.database), remedy=_REMEDY)
    if isinstance(engine, Check):
        yield engine
        return
    try:
        absent = attempt("database", lambda: _check_absent(settings), remedy=_REMEDY)
        if absent is not None:
            yield absent
            return
        revision = attempt("database", lambda: _read_revision(engine), remedy=_REMEDY)
        if isinstance(revision, Check):
            yield revision
            return
        name = engine.dialect.name
        yield run_check("migrations", lambda: _check_migrations(name, revision), remedy=_REMEDY)
        for check, question in (_OF_SETTINGS[name] | (_OF_SCHEMA[name] if revision == HEAD else {})).items():
            yield run_check(check, partial(_ask, engine, question), remedy=_REMEDY)
        yield run_check("database is writable", lambda: _check_writable(engine), remedy=_REMEDY)
    finally:
        engine.dispose()


def _check_absent(settings: Settings) -> Check | None:
    """Return the check of an SQLite file that is not there yet, or None if there is a database to ask."""
    file = _find_sqlite_file(settings)
    if file is None or exists(file):
        return None
    creatable = is_usable(file.parent) or (file.parent == settings.home and not exists(file.parent))
    remedy = "the first command that needs it creates it"
    if not creatable:
        remedy = f"it cannot be made in {file.parent}, make that folder or set LORATREE_DATABASE to another file"
    return Check("database", None if creatable else False, f"{file} does not exist yet: {remedy}")


def _find_sqlite_file(settings: Settings) -> Path | None:
    """Return the file of an SQLite database, or None for another database."""
    if isinstance(settings.database, Path):
        return settings.database
    name = settings.database.removeprefix("sqlite:///")
    return Path(make_url(settings.database).database or name) if name != settings.database else None


def _read_revision(engine: Engine) -> str | None:
    with reading(engine) as connection:
        return current(connection)


def _ask(engine: Engine, question: Callable[[Connection], Answer]) -> Answer:
    with reading(engine) as connection:
        return question(connection)


def _check_migrations(database: str, revision: str | None) -> Answer:
    if revision == HEAD:
        return True, f"the schema is at {revision}, this release's"
    if revision is not None and revision > HEAD:
        return False, f"the schema is at {revision}, this release knows {HEAD}: upgrade loratree"
    is_automatic = database == "sqlite"
    remedy = "the next command upgrades it" if is_automatic else "run `loratree db upgrade`"
    return None if is_automatic else False, f"the schema is at {revision or 'none'}, expected {HEAD}: {remedy}"


def _check_writable(engine: Engine) -> Answer:
    with trying(engine) as connection:  # takes the write lock of SQLite, and releases it
        current(connection)
    return True, "a transaction that writes can begin"


def _check_sqlite(connection: Connection) -> Answer:
    values = queries.diagnostics.sqlite_settings(connection)
    says = f"SQLite {values.pop('release')}, {', '.join(f'{name} {value}' for name, value in values.items())}"
    right = values["journal_mode"] == "wal" and values["synchronous"] == "FULL" and values["foreign_keys"] == "1"
    remedy = "" if right else ": expected wal, FULL and 1; move the file to a local disk, which SQLite's WAL needs"
    return right, says + remedy


def _check_postgresql(connection: Connection) -> Answer:
    values = queries.diagnostics.postgresql_settings(connection)
    safe = values["fsync"] == "on" and values["synchronous_commit"] != "off"
    says = f"PostgreSQL {values.pop('server_version')}, {', '.join(f'{key} {value}' for key, value in values.items())}"
    remedy = "" if safe else ": a power cut can lose committed data, set fsync and synchronous_commit on"
    return True if safe else None, says + remedy


def _check_path_order(connection: Connection) -> Answer:
    collation = queries.diagnostics.path_collation(connection)
    says = f"paths are ordered by the collation {collation or 'of the database'}"
    return collation == "C", says if collation == "C" else f"{says}, expected C: restore the schema"


def _check_clock(connection: Connection) -> Answer:
    before = now()
    theirs = queries.diagnostics.database_time(connection)
    skew = (theirs - before - (now() - before) / 2).total_seconds()
    right = abs(skew) <= _SKEW_S
    remedy = "" if right else ": set both by NTP, otherwise grace periods and expiry use a wrong time"
    return right, f"{skew:+.2f} s against this machine's{remedy}"


def _check_rights(connection: Connection) -> Answer:
    missing = queries.diagnostics.missing_rights(connection)
    says = f"this user may not {', '.join(missing[:5])}: GRANT it" if missing else "this user may read and write"
    return not missing, says


def _check_leftovers(connection: Connection) -> Answer:
    counts = queries.diagnostics.leftovers(connection, before=now() - STALE)
    says = (
        f"{counts.expected} blobs expected for a day or more, {counts.condemned} condemned, "
        f"{counts.uploads} uploads open for a day or more"
    )
    clean = not (counts.expected or counts.condemned or counts.uploads)
    return True if clean else None, says if clean else f"{says}: run `loratree gc`"


_Questions = Mapping[str, dict[str, Callable[[Connection], Answer]]]
_OF_SETTINGS: Final[_Questions] = {
    "sqlite": {"database": _check_sqlite},
    "postgresql": {"database": _check_postgresql},
}
_OF_SCHEMA: Final[_Questions] = {  # of a schema at this release's revision
    "sqlite": {"leftovers": _check_leftovers},
    "postgresql": {
        "path order": _check_path_order,
        "database clock": _check_clock,
        "database permissions": _check_rights,
        "leftovers": _check_leftovers,
    },
}
