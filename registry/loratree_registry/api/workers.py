"""The worker processes of `loratree serve`, and the process that replaces those that die."""

import socket

from uvicorn.config import STARTUP_FAILURE, Config
from uvicorn.supervisors import Multiprocess

from loratree_registry.errors import Unavailable


class _Supervisor(Multiprocess):
    """Replaces a worker as soon as it is dead.

    uvicorn holds both ends of the pipe on which it asks a worker whether it is well. If the worker dies while it is
    asked, no end closes, and the supervisor waits for the whole timeout of the check and serves no other worker.
    """

    def keep_subprocess_alive(self) -> None:
        for process in self.processes:
            process.child_conn.close()  # the worker has its own copy, which closes when it dies
        super().keep_subprocess_alive()


def serve_by_many(config: Config, listening: socket.socket) -> None:
    """Serve on `listening` by `config.workers` processes until interrupted or terminated.

    Raises Unavailable if a worker cannot start.
    """
    supervisor = _Supervisor(config, sockets=[listening])
    supervisor.run()
    if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes):
        raise Unavailable("a worker could not start, so the server stopped: see the worker's own message above")
