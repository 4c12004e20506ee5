"""A server that lies: every field of every answer to every client command, one at a time.

Whatever it says, the command ends by itself with its result or one sentence, prints nothing that moves the cursor, and
touches no file but those under its own home and the folder that it was told to write.
"""

import contextlib
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loratree_cli.main import main
from loratree_registry.api.app import create_app
from loratree_registry.embedded.registry import open_embedded
from loratree_registry.settings import Settings
from tests.cli.conftest import LEAF, Filled
from tests.registry.serving import running

SECONDS = 10.0  # for one command, whatever is answered
SAMPLE = 1 if os.environ.get("LORATREE_TEST_LONG") else 7  # of so many lies, one is told; .ci/run tells all
Pointer = tuple[str | int, ...]
Lie = tuple[str, Pointer, Any]  # the noun of the request, the place in the answer's JSON, and what stands there

MEDICINE = "tiny/medicine"
COMMANDS: dict[str, list[str]] = {
    "ls": ["ls", MEDICINE],
    "ls bases": ["ls"],
    "tree": ["tree", "tiny"],
    "tree of everything": ["tree"],
    "show": ["show", MEDICINE],
    "show a version": ["show", f"{MEDICINE}@1"],
    "show --json": ["show", MEDICINE, "--json"],
    "resolve": ["resolve", LEAF],
    "lineage": ["lineage", LEAF],
    "log": ["log", MEDICINE],
    "log everything": ["log"],
    "dependents": ["dependents", f"{MEDICINE}@1"],
    "alias ls": ["alias", "ls", MEDICINE],
    "alias set": ["alias", "set", MEDICINE, "stable", "1"],
    "base show": ["base", "show", "tiny"],
    "pull": ["pull", LEAF, "--out", "OUT"],
    "base pull": ["base", "pull", "tiny", "--out", "OUT"],
    "base push": ["base", "push", "tiny", "BASE"],
    "publish": ["publish", "ADAPTER", f"{MEDICINE}/law", "--parent", "base"],
    "retain": ["retain", MEDICINE, "--keep", "1", "--dry-run"],
    "withdraw": ["withdraw", f"{LEAF}@1", "--reason", "a test"],
    "compose": ["compose", MEDICINE, "--mode", "flatten", "--out", "OUT"],
}
BIDI = "\u202e"
TEXTS = ("../../outside/evil", "OUTSIDE/evil", f"\x1b]0;owned\x07{BIDI}\x9b2J", "x" * 5000, "", None, 7)
NUMBERS = (-1, 2**63, 0, 1.5, None, "7")


class Liar:
    """An application that changes one place in the answers of another, and notes the answers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app, self.lie, self.answers = app, None, dict[str, Any]()
        self.lie: Lie | None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        noun, start, body = scope["path"].split("/")[2], dict[str, Any](), bytearray()

        async def change(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
                return
            body.extend(message.get("body", b""))
            if message.get("more_body"):
                return
            content = self.changed(noun, start, bytes(body))
            headers = [(name, value) for name, value in start["headers"] if name != b"content-length"]
            headers.append((b"content-length", str(len(content)).encode()))
            await send(start | {"headers": headers})
            await send({"type": "http.response.body", "body": content})

        await self.app(scope, receive, change)

    def changed(self, noun: str, start: dict[str, Any], body: bytes) -> bytes:
        """The body with the lie in it, if it is an answer to lie about."""
        if b"json" not in dict(start["headers"]).get(b"content-type", b"") or not body:
            return body
        answer = json.loads(body)
        self.answers.setdefault(noun, json.loads(body))
        if self.lie is not None and self.lie[0] == noun:
            _, pointer, value = self.lie
            with contextlib.suppress(LookupError, TypeError):
                place = answer
                for step in pointer[:-1]:
                    place = place[step]
                if place[pointer[-1]] is not None or value is not None:
                    place[pointer[-1]] = value
        return json.dumps(answer).encode()


def places(answer: Any, pointer: Pointer = ()) -> Iterator[tuple[Pointer, Any]]:
    """Every field of an answer; of a list, the first item's."""
    if len(pointer) > 6:
        return
    children = answer.items() if isinstance(answer, dict) else enumerate(answer[:1]) if isinstance(answer, list) else ()
    for step, child in children:
        yield (*pointer, step), child
        yield from places(child, (*pointer, step))


def lies(answers: dict[str, Any], outside: Path) -> list[Lie]:
    """What is told instead of each field, by its type."""
    told: list[Lie] = []
    for noun, answer in answers.items():
        for pointer, value in places(answer):
            others = (
                NUMBERS if isinstance(value, int | float) else TEXTS if isinstance(value, str) else (None, [], "x", 3)
            )
            told += [(noun, pointer, _put(other, outside)) for other in others]
    return told


def _put(text: Any, outside: Path) -> Any:
    return text.replace("OUTSIDE", str(outside)) if isinstance(text, str) else text


class World:
    """A client's folders: its home, the folder that it writes, and what is outside of both."""

    def __init__(self, folder: Path, filled: Filled, liar: Liar, url: str) -> None:
        self.folder, self.filled, self.liar, self.url = folder, filled, liar, url
        self.home, self.out, self.outside = folder / "in" / "home", folder / "in" / "out", folder / "outside"
        self.outside.mkdir(parents=True)
        self.home.parent.mkdir()
        (self.outside / "evil").write_text("mine")

    def run(self, command: str, lie: Lie | None) -> tuple[object, str]:
        """Run a command while one lie is told; return its exit status and all that it prints."""
        for folder in (self.home, self.out):
            shutil.rmtree(folder, ignore_errors=True)
        self.liar.lie = lie
        adapter = str(self.filled.adapters[MEDICINE])
        named = {"OUT": str(self.out), "BASE": str(self.filled.base), "ADAPTER": adapter}
        arguments = ["loratree", *(named.get(word, word) for word in COMMANDS[command])]
        environment = {"LORATREE_URL": self.url, "LORATREE_HOME": str(self.home), "PATH": os.environ["PATH"]}
        printed, status = io.StringIO(), 0
        with (
            mock.patch.dict(os.environ, environment, clear=True),
            mock.patch.object(sys, "argv", arguments),
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(printed),
        ):
            try:
                main()
            except SystemExit as end:
                status = end.code or 0  # type: ignore[assignment]
        return status, printed.getvalue()


@pytest.fixture
def world(filled: Filled, tmp_path: Path) -> Iterator[World]:
    home = Path(shutil.copytree(filled.home, tmp_path / "server"))
    registry = open_embedded(Settings.from_environment({"LORATREE_HOME": str(home)}))
    base = filled.base
    from loratree_registry.workspace.base_transfer import push_base

    push_base(registry, "tiny", base)
    registry.set_alias(MEDICINE, "canary", version=1, expected=None)
    liar = Liar(create_app(registry, staging=home / "uploads"))
    with running(liar) as url:
        yield World(tmp_path / "client", filled, liar, url)
    registry.close()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", COMMANDS)
def test_no_lie_of_a_server_reaches_a_file_or_the_terminal(command: str, world: World, tmp_path: Path) -> None:
    status, _ = world.run(command, None)
    assert status == 0
    told = lies(world.liar.answers, world.outside)
    assert told
    at = list(COMMANDS).index(command) % SAMPLE  # another part of the lies for each command
    wrong = []
    for lie in told[at::SAMPLE]:
        begun = time.monotonic()
        try:
            status, printed = world.run(command, lie)
        except Exception as error:
            wrong.append(f"{lie!r:.200}: {type(error).__name__}: {error!s:.200}")
            continue
        moved = {character for character in printed if not character.isprintable()} - {"\n", "\t"}
        if status not in (0, 1) or moved or time.monotonic() - begun > SECONDS or "Traceback" in printed:
            wrong.append(f"{lie!r:.200}: status {status}, {time.monotonic() - begun:.1f} s, {moved}: {printed[-300:]}")
        if [(path.name, path.read_text()) for path in world.outside.iterdir()] != [("evil", "mine")]:
            wrong.append(f"{lie!r:.200}: wrote outside")
            (world.outside / "evil").write_text("mine")
        extra = {path.name for path in (world.folder / "in").iterdir()} - {"home", "out"}
        if extra:
            wrong.append(f"{lie!r:.200}: left {extra}")
    print(f"measured: {command}: {len(told[at::SAMPLE])} lies, {len(wrong)} wrong")
    assert not wrong, "\n".join(wrong[:20])
