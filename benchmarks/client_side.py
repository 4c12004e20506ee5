"""HTTP clients, the same for every server: connections that are kept, a thread each."""

import http.client
import threading

from benchmarks.side import each_ms, per_second, serve

_KEPT = threading.local()


def latencies(host: str, port: int, paths: list[str]) -> list[float]:
    """The milliseconds that one client waits for each path."""
    _KEPT.__dict__.clear()  # a server closes what was idle since the turn before
    return each_ms(_get, [[host, port, path] for path in paths])


def throughput(host: str, port: int, paths: list[str], clients: int) -> float:
    """The answers a second that as many clients get."""
    return per_second(_get, [[[host, port, path] for path in paths[client::clients]] for client in range(clients)])


def _get(host: str, port: int, path: str) -> None:
    connection = getattr(_KEPT, f"port{port}", None)
    if connection is None:
        connection = http.client.HTTPConnection(host, port, timeout=60)
        setattr(_KEPT, f"port{port}", connection)
    connection.request("GET", path)
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{path} was answered {answer.status}: {content[:200]!r}")


if __name__ == "__main__":
    serve({"latencies": latencies, "throughput": throughput})
