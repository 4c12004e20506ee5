"""`python -m tests.documents [--update] --demo FOLDER FILE…`: run every command of documents, and compare the output.

Each document is run from top to bottom in a new folder, by one bash at a terminal of 100 columns. `demo-out` there is a
copy of FOLDER, which `loratree demo` made. Of a document's fenced blocks:

- `console`: a line that begins with `$ ` is a command (`> ` continues it), and the lines below are what it prints.
  Numbers, digests and times may differ, and a line `…` stands for any lines. A command succeeds, or the comment
  `# refused` follows it. `--update` writes into the document what was printed.
- `sh`: the whole block is run, and must succeed. `loratree serve` runs until the document's end.
- `python`: the block is run as a program. After the comment `<!-- writes NAME -->`, any block is written to that file.
- Any other block is not run.

`<!-- runs COMMAND -->` runs what a reader has done already. `<!-- postgresql -->` and `<!-- s3 -->` start a server for
the blocks below, whose addresses replace those in the text.
"""

import argparse
import logging
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests import s3
from tests.postgresql import postgresql

COLUMNS: Final = 100
_LIMIT_S: Final = 400.0
_END: Final = re.compile(r"\x01(\d+)\x01")
_CONTROL: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_SHAPES: Final = (
    (re.compile(r"\d{4}-\d\d-\d\d(T[\d:.]+Z)?"), "TIME"),
    (re.compile(r"\b(?=[0-9a-f]*\d)[0-9a-f]{12,64}\b"), "DIGEST"),
    (re.compile(r"\d+([.,]\d+)*"), "N"),
    (re.compile(r"\bN (B|[KMGT]B)\b"), "SIZE"),
    (re.compile(r"[ ─━╭╮╰╯]+"), " "),
)
_ADDRESSES: Final = {"postgresql": "postgresql://loratree@db/loratree", "s3": "https://s3.example.org"}


@dataclass
class Block:
    """A fenced block: where it stands (lines of the document, without the fences), and the comments above it."""

    language: str
    first: int
    lines: list[str] = field(default_factory=list)
    writes: str | None = None
    before: list[str] = field(default_factory=list)  # servers to start, and commands to run


@dataclass
class Step:
    """A command of a console block and what it prints, as the document says; `end` is the line after it."""

    command: str
    printed: list[str]
    first: int
    end: int
    refused: bool = False


class Shell:
    """A bash at a terminal without colours, which keeps its folder and its variables between commands."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._master, terminal = pty.openpty()
        self._process = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)

    def run(self, command: str) -> tuple[int, list[str]]:
        """Run a command; return its status and the lines that it printed."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\nprintf '\\001%d\\001' $?\n".encode())
        self._process.stdin.flush()
        shown, end = "", time.monotonic() + _LIMIT_S
        while (match := _END.search(shown)) is None:
            if time.monotonic() > end or self._process.poll() is not None:
                return 124, [*shown.splitlines(), "(it did not end)"]
            if select.select([self._master], [], [], 1)[0]:
                shown += os.read(self._master, 65536).decode(errors="replace")
        text = _CONTROL.sub("", shown[: match.start()].replace("\r\n", "\n"))
        return int(match[1]), [line.rpartition("\r")[2].rstrip() for line in text.splitlines()]

    def close(self) -> None:
        """End the shell and all that it started."""
        with_children = os.getpgid(self._process.pid)
        os.killpg(with_children, 9)
        self._process.wait()
        os.close(self._master)


def blocks_of(text: str) -> Iterator[Block]:
    """Yield the fenced blocks of a document."""
    block: Block | None = None
    writes, before = None, list[str]()
    for number, line in enumerate(text.splitlines()):
        if comment := re.fullmatch(r"\s*<!-- (writes (?P<name>\S+)|(?P<other>postgresql|s3|runs .+)) -->", line):
            writes = comment["name"] or writes
            before += [comment["other"]] if comment["other"] else []
        elif line.startswith("```"):
            if block is None:
                block, writes = Block(line[3:].strip(), number + 1, writes=writes, before=before), None
                before = []
            else:
                yield block
                block = None
        elif block is not None:
            block.lines.append(line)


def steps_of(block: Block) -> list[Step]:
    """Return the commands of a console block."""
    steps: list[Step] = []
    for number, line in enumerate(block.lines, block.first):
        if line.startswith("$ "):
            command, _, comment = line[2:].partition("  #")
            steps.append(Step(command.rstrip(), [], number + 1, number + 1, refused=comment.strip() == "refused"))
        elif line.startswith("> ") and steps and not steps[-1].printed:
            steps[-1].command += "\n" + line[2:]
            steps[-1].first = steps[-1].end = number + 1
        elif steps:
            steps[-1].printed.append(line)
            steps[-1].end = number + 1
    return steps


def shape(line: str, folder: str) -> str:
    """Return a line without what differs from run to run."""
    line = line.replace(folder, "…")  # as --update writes it
    for pattern, word in _SHAPES:
        line = pattern.sub(word, line)
    return line.strip()


def is_like(said: list[str], printed: list[str], folder: str) -> bool:
    """Tell whether what was printed has the shape of what the document says."""
    if not said:
        return not printed
    if said[0].strip() == "…":
        return any(is_like(said[1:], printed[begin:], folder) for begin in range(len(printed) + 1))
    first = bool(printed) and shape(said[0], folder) == shape(printed[0], folder)
    return first and is_like(said[1:], printed[1:], folder)


class Run:
    """One document, run in a folder of its own."""

    def __init__(self, document: Path, demo: Path, folder: Path) -> None:
        self.document, self.folder, self.faults = document, folder, list[str]()
        self._lines = document.read_text(encoding="utf-8").splitlines()
        self._running = ExitStack()
        self._addresses: dict[str, str] = {}
        shutil.copytree(demo, folder / "demo-out", symlinks=True)
        shutil.copytree(Path(__file__).parent.parent, folder / "loratree", ignore=_IGNORED)
        environment = {key: text for key, text in os.environ.items() if not key.startswith("LORATREE_")}
        environment |= {"COLUMNS": str(COLUMNS), "TERM": "dumb", "NO_COLOR": "1", "LORATREE_CONFIG": os.devnull}
        environment |= {"PYTHONWARNINGS": "ignore", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        environment |= {"PYTHONPATH": str(folder / "loratree"), "HF_HUB_OFFLINE": "1"}
        environment["LORATREE_HOME"] = str(folder / "demo-out" / "home")
        self._shell = Shell(folder, environment)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self._shell.close()
        self._running.close()

    def all(self, *, update: bool) -> None:
        """Run every block; note what failed, or write what was printed into the document."""
        written: list[tuple[Step, list[str]]] = []
        for block in blocks_of("\n".join(self._lines)):
            self._prepare(block)
            if block.writes is not None:
                (self.folder / block.writes).write_text("\n".join(block.lines) + "\n", encoding="utf-8")
            elif block.language == "console":
                written += [(step, self._run_step(step, update=update)) for step in steps_of(block)]
            elif block.language in ("sh", "python"):
                self._run_whole(block)
        if update and not self.faults:
            for step, printed in reversed(written):
                self._lines[step.first : step.end] = printed
            self.document.write_text("\n".join(self._lines) + "\n", encoding="utf-8")

    def _run_step(self, step: Step, *, update: bool) -> list[str]:
        status, printed = self._shell.run(self._placed(step.command))
        if bool(status) != step.refused:
            self._fault(step.first, step.command, printed)
        elif not update and not is_like(step.printed, printed, str(self.folder)):
            self._fault(step.first, step.command, [*printed, "--- where the document says", *step.printed])
        return [line.replace(str(self.folder), "…") for line in printed]

    def _run_whole(self, block: Block) -> None:
        if block.language == "python":
            (self.folder / ".block.py").write_text("\n".join(block.lines), encoding="utf-8")
            commands = ["python .block.py"]
        else:
            commands = ["\n".join(block.lines)]
        for command in commands:
            status, printed = self._shell.run(self._placed(_serving_aside(command)))
            if status:
                self._fault(block.first, command, printed)

    def _placed(self, command: str) -> str:
        pinned = f"PIP_CONSTRAINT='{self.folder}/loratree/constraints.txt' "  # of loratree alone, not of other tools
        command = re.sub(r"^(?=pip install .*\./loratree)", pinned, command, flags=re.MULTILINE)
        for name, address in self._addresses.items():
            command = command.replace(_ADDRESSES[name], address)
        return command

    def _prepare(self, block: Block) -> None:
        for name in block.before:
            if name.startswith("runs "):
                status, printed = self._shell.run(name.removeprefix("runs "))
                if status:
                    self._fault(block.first, name, printed)
            elif name == "postgresql":
                running = self._running.enter_context(postgresql())
                self._addresses[name] = self._running.enter_context(running.empty())
            else:
                server = self._running.enter_context(s3.moto())
                client = server.client()
                client.create_bucket(Bucket="adapters")
                client.close()
                self._addresses[name] = server.endpoint
                for key, text in server.environment.items():
                    self._shell.run(f"export {key}={text}")

    def _fault(self, line: int, command: str, printed: list[str]) -> None:
        self.faults.append("\n    ".join([f"{self.document}:{line}: {command}", *printed]))


def _IGNORED(_folder: str, names: list[str]) -> list[str]:  # noqa: N802 - a function where a constant is expected
    return [name for name in names if name.startswith((".", "demo-out")) or name in ("__pycache__", "build")]


def _serving_aside(command: str) -> str:
    """Let servers run beside what follows, once they listen."""
    return re.sub(
        r"^(loratree serve[^#\n&]*)(#.*)?$",
        r"{ \1 > .serving 2>&1 & }; until grep -q http .serving; do kill -0 $! || break; sleep 0.1; done",
        command,
        flags=re.MULTILINE,
    )


def main() -> int:
    """Run the documents; print what is wrong and exit with 1 if anything is."""
    parser = argparse.ArgumentParser(prog="python -m tests.documents", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--demo", type=Path, required=True, help="what `loratree demo --out FOLDER` left")
    parser.add_argument("--update", action="store_true", help="write what is printed into the documents")
    given = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # moto's server, a line a request
    broken = 0
    for file in given.files:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder, Run(file, given.demo, Path(folder)) as run:
            run.all(update=given.update)
        print(f"{file}: {len(run.faults)} faults, {time.monotonic() - started:.0f} s", *run.faults, sep="\n  ")
        broken += len(run.faults)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
