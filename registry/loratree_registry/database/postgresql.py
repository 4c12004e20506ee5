"""PostgreSQL's engine, and when its connections are asked whether they still work."""

import logging
import select
import time
from functools import partial
from typing import Any, Final

from sqlalchemy import URL, Dialect, Engine, create_engine, event
from sqlalchemy.exc import InvalidatePoolError

from loratree_registry.database.json_text import serialize

_FRESH_S: Final = 1.0

# The driver logs what it does while a lost connection is given up. Without a handler, Python would print that beside
# our own sentence; a program that sets up logging gets it as before.
logging.getLogger("psycopg").addHandler(logging.NullHandler())


def open_postgresql(url: URL, *, lock_timeout_s: int) -> Engine:
    """Make an engine for a server. It does not connect yet; ModuleNotFoundError says that the driver is missing."""
    # The server's default may be another level. With READ COMMITTED, a transaction that waited for a node's lock sees
    # what the transaction before it wrote.
    engine = create_engine(
        url,
        pool_size=16,
        isolation_level="READ COMMITTED",
        connect_args={"connect_timeout": 10},
        json_serializer=serialize,
    )
    event.listen(engine, "connect", partial(_limit_lock_waits, lock_timeout_s))
    event.listen(engine, "checkin", _note_use)
    event.listen(engine, "checkout", partial(_ping_if_idle, engine.dialect))
    return engine


def _note_use(_connection: Any, record: Any) -> None:
    record.info["used"] = time.monotonic()


def _ping_if_idle(dialect: Dialect, connection: Any, record: Any, _fairy: Any) -> None:
    """Ask whether the server still knows a connection: asking takes as long as a query.

    Do not ask if the connection was just used and the server has sent nothing since; it says so if it ends one.
    """
    try:
        if time.monotonic() - record.info.get("used", 0.0) > _FRESH_S or _has_news(connection.fileno()):
            dialect.do_ping(connection)
    except dialect.loaded_dbapi.Error as error:
        raise InvalidatePoolError from error  # opens a new connection, and closes all that are as old


def _has_news(socket: int) -> bool:
    """Return whether there is something to read, or the other end is closed."""
    poll = select.poll()
    poll.register(socket, select.POLLIN)
    return bool(poll.poll(0))


def _limit_lock_waits(seconds: int, connection: Any, _record: Any) -> None:
    """Limit the wait for another transaction's lock: PostgreSQL by default waits without limit."""
    connection.execute(f"SET lock_timeout = '{seconds}s'")
    connection.commit()
