"""The commands that the demo types: each one is shown and then run in its own process."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import click

from loratree_registry.errors import LoratreeError


class Shell:
    """A shell that runs `loratree` with the demo's own LORATREE_HOME, without the user's LORATREE settings."""

    def __init__(self, home: Path) -> None:
        self.home = home
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("LORATREE_")}
        self._environment = inherited | {"LORATREE_HOME": str(home), "HF_HUB_OFFLINE": "1"}

    def run(self, *arguments: str | Path) -> None:
        """Show a command and run it, with its output on the demo's own stdout. Raises LoratreeError."""
        self._run(arguments, stdout=None)

    def read(self, *arguments: str | Path) -> str:
        """Show a command, run it, show its output and return the output. Raises LoratreeError."""
        output = self._run(arguments, stdout=subprocess.PIPE)
        click.echo(output, nl=False)
        return output

    def _run(self, arguments: tuple[str | Path, ...], *, stdout: int | None) -> str:
        words = [str(argument) for argument in arguments]
        command = shlex.join(["loratree", *words])
        click.echo(f"\n$ {command}")
        sys.stdout.flush()
        done = subprocess.run(  # noqa: S603 - our own command line
            [sys.executable, "-m", "loratree_cli", *words], env=self._environment, stdout=stdout, text=True, check=False
        )
        if done.returncode:
            raise LoratreeError(f"the demo's `{command}` failed with exit status {done.returncode}: see above")
        return done.stdout or ""
