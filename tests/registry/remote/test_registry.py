"""What the network and strange servers do to a remote registry: one sentence, always ours."""

import base64
import io
import json
import logging
import os
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loratree_registry.connect import connect
from loratree_registry.core.records import Submission
from loratree_registry.core.registry import Registry
from loratree_registry.embedded.registry import EmbeddedRegistry
from loratree_registry.errors import Conflict, Corrupt, Invalid, LoratreeError, NotFound, Unavailable
from loratree_registry.remote.http import quoted
from loratree_registry.remote.registry import RemoteRegistry
from tests.registry.conftest import Storage, embedded_sqlite
from tests.registry.material import WEIGHTS, Material, publish, sha256
from tests.registry.serving import running

MED = "tiny/medicine"
Application = Callable[[dict[str, Any], Any, Any], Awaitable[None]]


@pytest.fixture
def behind(storage: Storage, material: Material) -> Iterator[EmbeddedRegistry]:
    with embedded_sqlite(storage) as registry:
        registry.add_base("tiny", material.base)
        publish(registry, MED, material.rank4)
        registry.set_alias(MED, "stable", version=1, expected=None)
        yield registry


@pytest.fixture
def remote(behind: EmbeddedRegistry, storage: Storage) -> Iterator[RemoteRegistry]:
    registry = RemoteRegistry(storage.served().over(behind, storage.folder))
    yield registry
    registry.close()


def test_every_record_equals_the_one_of_the_registry_behind(behind: EmbeddedRegistry, remote: RemoteRegistry) -> None:
    asks: list[Callable[[Registry], object]] = [
        lambda registry: registry.bases(),
        lambda registry: registry.base("tiny"),
        lambda registry: registry.base_manifest("tiny"),
        lambda registry: registry.node(MED),
        lambda registry: registry.children("tiny"),
        lambda registry: registry.descendants("tiny"),
        lambda registry: registry.count("tiny"),
        lambda registry: registry.versions(MED),
        lambda registry: registry.version(f"{MED}@stable"),
        lambda registry: registry.resolve(MED, follow="stable"),
        lambda registry: registry.resolve(MED, follow="stable", weights={MED: 2}),
        lambda registry: registry.lineage(MED),
        lambda registry: registry.ancestry(MED),
        lambda registry: registry.dependents("tiny"),
        lambda registry: registry.aliases(MED),
        lambda registry: registry.events("tiny"),
    ]
    for ask in asks:
        here, there = ask(behind), ask(remote)
        assert here == there
        assert repr(here) == repr(there)  # == takes 1 for 1.0 and True


def refusal(ask: Callable[[], object]) -> tuple[type[LoratreeError], str]:
    with pytest.raises(LoratreeError) as caught:
        ask()
    return type(caught.value), str(caught.value)


STRANGE = [
    "",
    "/",
    "..",
    "tiny/../tiny",
    "./tiny",
    "tiny?x=1",
    "tiny#x",
    "tiny%2Fx",
    "tiny\\x",
    "tiny\n",
    "tiny\0",
    "ä",
    "🌳",
]
STRANGE += ["tiny//x", "tiny/", "tiny@", "tiny@@", "tiny@1/x", "tiny@..", "http://evil.example/", "tiny/" + "x" * 200]


@pytest.mark.parametrize("text", STRANGE)
def test_a_strange_path_is_refused_with_the_sentence_of_the_registry_behind(
    behind: EmbeddedRegistry, remote: RemoteRegistry, text: str
) -> None:
    for verb in (
        "base",
        "node",
        "children",
        "versions",
        "version",
        "resolve",
        "lineage",
        "ancestry",
        "aliases",
        "events",
    ):
        there, here = (refusal(partial(getattr(registry, verb), text)) for registry in (remote, behind))
        assert there == here, verb


@pytest.mark.parametrize("text", ["\udc80", "x" * 100_000])
def test_what_no_url_can_hold_is_invalid_here_as_there(
    behind: EmbeddedRegistry, remote: RemoteRegistry, text: str
) -> None:
    asks: list[Callable[[Registry], object]] = [
        lambda registry: registry.node(text),
        lambda registry: registry.resolve(MED, follow=text),
        lambda registry: registry.resolve(MED, weights={text: 1.0}),
        lambda registry: registry.set_alias(MED, text, version=1, expected=None),
        lambda registry: registry.create_node(text),
    ]
    for ask in asks:
        assert refusal(lambda: ask(behind))[0] is refusal(lambda: ask(remote))[0] is Invalid  # noqa: B023


@pytest.mark.parametrize("config", [{"r": float("nan")}, {"r": {1, 2}}, {"r": Path("x")}, {"note": "\udc80"}])
def test_a_config_that_json_cannot_hold_is_invalid(
    behind: EmbeddedRegistry, remote: RemoteRegistry, material: Material, config: dict[str, Any]
) -> None:
    submission = Submission(
        config=material.rank4.config | config, files=[material.rank4.file], parent=None, found="assumed"
    )
    for registry in (behind, remote):
        assert refusal(lambda: registry.publish("tiny/x", submission))[0] is Invalid  # noqa: B023
    assert behind.children("tiny").items[1:] == []


def test_a_config_too_large_is_refused_by_the_registry_itself(
    behind: EmbeddedRegistry, remote: RemoteRegistry, material: Material
) -> None:
    config = material.rank4.config | {"target_modules": [f"model.layers.{number}.q_proj" for number in range(100_000)]}
    submission = Submission(config=config, files=[material.rank4.file], parent=None, found="assumed")
    there, here = (refusal(partial(registry.publish, "tiny/x", submission)) for registry in (remote, behind))
    assert there == here
    assert "at most 1048576 are allowed" in here[1]


def test_a_config_too_deep_for_json_is_invalid(remote: RemoteRegistry, material: Material) -> None:
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    submission = Submission(config={"r": deep}, files=[material.rank4.file], parent=None, found="assumed")
    assert refusal(lambda: remote.publish("tiny/x", submission))[0] is Invalid


def test_a_conflict_is_the_same_conflict(behind: EmbeddedRegistry, remote: RemoteRegistry) -> None:
    asks: list[Callable[[Registry], object]] = [
        lambda registry: registry.set_alias(MED, "stable", version=1, expected=None),
        lambda registry: registry.delete_alias(MED, "canary", expected=1),
        lambda registry: registry.create_node(MED, level="task"),
    ]
    for ask in asks:
        here = refusal(lambda: ask(behind))  # noqa: B023
        assert here == refusal(lambda: ask(remote))  # noqa: B023
        assert here[0] is Conflict


def test_a_conflict_over_an_alias_carries_where_it_is_now(behind: EmbeddedRegistry, remote: RemoteRegistry) -> None:
    for registry in (behind, remote):
        for name, current in (("stable", 1), ("canary", 0)):
            with pytest.raises(Conflict) as error:
                registry.set_alias(MED, name, version=1, expected=2)
            assert error.value.current == current
        with pytest.raises(Conflict) as error:
            registry.create_node(MED, level="task")
        assert error.value.current is None


def test_any_level_weights_give_the_resolution_or_the_refusal_of_the_registry_behind(
    behind: EmbeddedRegistry, remote: RemoteRegistry, material: Material
) -> None:
    publish(behind, "tiny/medicine/cardiology", material.rank2)
    paths = st.sampled_from([MED, "tiny/medicine/cardiology", "tiny/law", "tiny", f"{MED}@1", "a&weight=b", "", "ä"])
    values = st.floats() | st.integers() | st.booleans() | st.none() | st.text(max_size=5)

    def outcome(registry: Registry, weights: dict[str, Any]) -> str:
        try:
            return repr(registry.resolve("tiny/medicine/cardiology", weights=weights))
        except Invalid as error:
            return f"refused: {error}"

    @settings(max_examples=60, suppress_health_check=list(HealthCheck), database=None, deadline=None)
    @given(weights=st.dictionaries(paths, values, max_size=3) | st.fixed_dictionaries({MED: st.floats()}))
    def every_outcome(weights: dict[str, Any]) -> None:
        assert outcome(remote, weights) == outcome(behind, weights)

    every_outcome()


def cut(blob: Path) -> None:
    os.truncate(blob, 100)


def lengthen(blob: Path) -> None:
    blob.write_bytes(blob.read_bytes() + b"more")


@pytest.mark.parametrize("damage", [Path.unlink, cut, lengthen])
def test_lost_cut_and_longer_bytes_are_corrupt_on_both_sides(
    behind: EmbeddedRegistry, remote: RemoteRegistry, storage: Storage, damage: Callable[[Path], None]
) -> None:
    for blob in Path(storage.settings().blobs).rglob("sha256/*/*"):
        damage(blob)
    here, there = (refusal(lambda: registry.open_file(MED, WEIGHTS).__enter__()) for registry in (behind, remote))  # noqa: B023
    assert here[0] is there[0] is Corrupt
    assert re.fullmatch(re.escape(here[1]) + r" \(request [0-9a-f]{8}-[0-9a-f]+, see the server's log\)", there[1])


@pytest.mark.parametrize(
    ("sent", "size"), [(b"other bytes", 11), (b"short", 11), (b"longer than it was", 11), (b"", 11), (b"x", 0)]
)
def test_a_stream_of_other_bytes_is_refused_with_the_same_sentence(
    behind: EmbeddedRegistry, remote: RemoteRegistry, sent: bytes, size: int
) -> None:
    digest = sha256(b"these bytes")
    here, there = (
        refusal(lambda: registry.upload(io.BytesIO(sent), sha256=digest, size=size))  # noqa: B023
        for registry in (behind, remote)
    )
    assert here == there
    assert here[0] is Invalid


def test_nothing_listening_is_told_with_the_url_and_the_remedy() -> None:
    registry = RemoteRegistry("http://127.0.0.1:9")
    for ask in (
        registry.bases,
        lambda: registry.create_node("tiny/x"),
        lambda: registry.open_file(MED, "x").__enter__(),
    ):
        kind, sentence = refusal(ask)
        assert kind is Unavailable
        assert sentence.startswith(
            "the registry at http://127.0.0.1:9 cannot be reached ([Errno 111] Connection refused)"
        )
        assert "check LORATREE_URL, and that `loratree serve` is running there" in sentence
    registry.close()


@pytest.mark.parametrize(
    "url",
    [
        "http:/127.0.0.1:8321",
        "http:127.0.0.1:8321",
        "http//127.0.0.1:8321",
        "htp://127.0.0.1:8321",
        " http://127.0.0.1:8321",
        "/srv/registry",
        "file:///srv/registry",
        "nonsense",
        "ftp://host",
        "http://",
        "http://[::1",
        "http://host:99999",
        "http://host/?x=1",
        "127.0.0.1:8321",
    ],
)
def test_a_url_that_http_cannot_reach_is_refused(url: str) -> None:
    with pytest.raises(Invalid, match=r"LORATREE_URL is .*: expected a URL such as http://127\.0\.0\.1:8321"):
        RemoteRegistry(url)


def test_a_password_in_the_url_is_never_shown() -> None:
    registry = RemoteRegistry("http://user:secret@127.0.0.1:9")
    assert "secret" not in refusal(registry.bases)[1]
    registry.close()


def test_a_password_is_sent_as_a_header_and_stands_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        seen.append(dict(scope["headers"])[b"authorization"].decode())
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": b'{"items": [], "next": null}'})

    with caplog.at_level(logging.DEBUG), running(answer) as url:
        registry = RemoteRegistry(url.replace("http://", "http://user:sek%40ret@"))
        assert registry.bases().items == []
        registry.close()
    assert seen == ["Basic " + base64.b64encode(b"user:sek@ret").decode()]
    assert "HTTP Request: GET" in caplog.text
    assert "ret@" not in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        "http:/u:sekret@host",
        "http:///u:sekret@host",
        "//u:sekret@host",
        "ftp://u:sekret@host",
        "http://u:sekret@h?x=1",
        "u:sekret@h",
        "http://u:se?kret@h",
    ],
)
def test_a_password_in_a_url_that_is_refused_is_never_shown(url: str) -> None:
    with pytest.raises(Invalid, match="LORATREE_URL is") as error:
        RemoteRegistry(url)
    assert "kret" not in str(error.value)


STRANGE_BASE = b"""{"items": [{"name": "x", "digest": "", "architecture": null, "parameters": "7",
    "vocabulary_size": true, "source": null, "created_at": ""}]}"""


@contextmanager
def stranger(status: int, body: bytes, media_type: str = "text/html") -> Iterator[RemoteRegistry]:
    """A registry whose URL leads to another program, which always answers the same."""

    async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
        headers = [(b"content-type", media_type.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    with running(application) as url:
        registry = RemoteRegistry(url)
        yield registry
        registry.close()


@pytest.mark.parametrize(
    ("status", "body", "media_type"),
    [
        (200, b"<html>a router's login page</html>", "text/html"),
        (200, b"{}", "application/json"),
        (200, b'{"items": [{"name": 1}]}', "application/json"),
        (200, b'{"items": [], "next": 7}', "application/json"),
        (200, STRANGE_BASE, "application/json"),
        (200, b"[" * 100_000, "application/json"),
        (200, b"\xff", "application/json"),
        (301, b"", "text/html"),
        (404, b'{"detail": "Not Found"}', "application/json"),
        (404, b"{", "application/problem+json"),
        (404, b'{"type": "about:blank"}', "application/problem+json"),
        (502, b"<html>Bad Gateway</html>", "text/html"),
    ],
)
def test_a_server_that_is_not_loratrees_is_told_in_one_sentence(status: int, body: bytes, media_type: str) -> None:
    with stranger(status, body, media_type) as registry:
        kind, sentence = refusal(registry.bases)
    assert kind is Unavailable
    assert f"answered {status} and not as a loratree registry does: check LORATREE_URL" in sentence


@pytest.mark.parametrize(
    ("slug", "status", "kind"),
    [
        ("not-found", 404, NotFound),
        ("conflict", 409, Conflict),
        ("invalid-input", 422, Invalid),
        ("corrupt-data", 500, Corrupt),
        ("unavailable", 503, Unavailable),
        ("no-route", 404, Unavailable),
        ("internal-error", 500, Unavailable),
        ("from-the-future", 418, Invalid),
        ("from-the-future", 507, Unavailable),
    ],
)
def test_every_problem_becomes_the_error_that_it_tells_of(slug: str, status: int, kind: type[LoratreeError]) -> None:
    document = {
        "type": f"urn:loratree:problem:{slug}",
        "title": "T",
        "status": status,
        "detail": "why",
        "instance": "/",
    }
    with stranger(status, json.dumps(document).encode(), "application/problem+json") as registry:
        assert refusal(registry.bases) == (kind, "why")


@pytest.mark.parametrize("detail", ["a\nb", "a\x1b]0;title\x07b", "a\u202eb", "a\r\x9bb"])
def test_a_servers_sentence_reaches_no_terminal_raw(detail: str) -> None:
    document = {"type": "urn:loratree:problem:conflict", "title": "", "status": 409, "detail": detail, "instance": ""}
    with stranger(409, json.dumps(document).encode(), "application/problem+json") as registry:
        _, sentence = refusal(registry.bases)
    assert sentence.isprintable()
    assert (sentence[0], sentence[-1]) == ("a", "b")


@contextmanager
def scripted(*answers: bytes) -> Iterator[tuple[RemoteRegistry, list[bytes]]]:
    """A server that gives each connection one of `answers`, cut off where it ends, and notes the requests."""
    requests: list[bytes] = []

    def serve(listening: socket.socket) -> None:
        for answer in answers:
            connection, _ = listening.accept()
            with connection:
                requests.append(connection.recv(65536))
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,))
        thread.start()
        registry = RemoteRegistry(f"http://127.0.0.1:{listening.getsockname()[1]}")
        yield registry, requests
        registry.close()
        thread.join(10)
        assert not thread.is_alive()


EMPTY_PAGE = b'HTTP/1.1 200 OK\r\nContent-Length: 26\r\n\r\n{"items":[],"next": null}\n'


def test_a_read_is_sent_again_where_the_connection_broke() -> None:
    with scripted(b"", b"", EMPTY_PAGE) as (registry, requests):
        assert registry.bases().items == []
    assert len(requests) == 3


def test_a_write_is_never_sent_twice() -> None:
    with scripted(b"", EMPTY_PAGE) as (registry, requests):
        assert "cannot be reached" in refusal(lambda: registry.create_node("tiny/x"))[1]
        assert registry.bases().items == []
    assert [request.split()[0] for request in requests] == [b"POST", b"GET"]


def test_a_file_that_is_cut_off_is_told_and_never_taken_for_whole() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly some"
    with scripted(answer) as (registry, _), registry.open_file(MED, WEIGHTS) as stream:
        assert stream.read(4) == b"only"
        with pytest.raises(Unavailable, match="cannot be reached"):
            stream.read()


def test_a_server_that_does_not_answer_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        registry = RemoteRegistry(f"http://127.0.0.1:{silent.getsockname()[1]}", answer_s=0.2)
        with pytest.raises(Unavailable, match="did not answer in time: try again when it is less busy"):
            registry.bases()
        registry.close()


@pytest.mark.parametrize(
    ("path", "encoded"),
    [
        ("tiny/a-b_c.d@sha256:0", "tiny/a-b_c.d@sha256:0"),
        ("a?b#c%d", "a%3Fb%23c%25d"),
        ("../x/./..", "%2E%2E/x/%2E/%2E%2E"),
        ("a b\n\\é", "a%20b%0A%5C%C3%A9"),
        (".hidden/..x", ".hidden/..x"),
    ],
)
def test_values_that_would_break_out_of_the_path_are_percent_encoded(path: str, encoded: str) -> None:
    assert quoted(path) == encoded


def test_connect_takes_the_url_given_then_the_environments_then_the_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LORATREE_HOME", str(tmp_path))
    monkeypatch.delenv("LORATREE_URL", raising=False)
    kinds = []
    for url, environment in (("http://127.0.0.1:9", ""), (None, "http://127.0.0.1:9"), (None, "")):
        monkeypatch.setenv("LORATREE_URL", environment)
        registry = connect(url)
        kinds.append(type(registry))
        registry.close()
    assert kinds == [RemoteRegistry, RemoteRegistry, EmbeddedRegistry]
