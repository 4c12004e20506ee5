"""The entry point: the table of commands, and the only place that turns errors into a sentence and an exit status."""

import atexit
import gc
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any, Final

# A command runs for a third of a second, and most of this time is imports. The garbage collector would scan the new
# objects again and again, and once more at exit, although none is garbage: `loratree ls` took 0.52 s with these scans,
# and takes 0.31 s without (`python -m tests.bare_install` prints the time).
gc.set_threshold(100_000, 50, 50)
atexit.register(gc.freeze)

import click  # noqa: E402  # after the collector is set up

from loratree_cli.early_end import (  # noqa: E402
    INTERRUPTED,
    WHOLE,
    Interrupted,
    Unread,
    end_at_sigterm,
    end_unread,
    ignore_signals,
)
from loratree_cli.speech import speech_options, with_speech  # noqa: E402
from loratree_registry.errors import LoratreeError, listed  # noqa: E402
from loratree_registry.settings import check_variables  # noqa: E402

# Each command's module and help text: listing the commands imports no module, and calling a command imports its own.
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "alias": ("aliases:alias", "Set, list and remove movable names of versions."),
    "base": ("bases:base", "Record base models, list them, store and fetch their weights."),
    "cache": ("cache:cache", "Show and free what this machine fetched from a registry."),
    "compose": ("compose:compose", "Make a merged model or a flattened adapter from a path."),
    "db": ("database:db", "Bring the database's schema up to date."),
    "delete": ("deleting:delete", "Delete a version, leaving a tombstone."),
    "demo": ("demo:demo", "Grow a small tree of real adapters, from nothing to a composed model."),
    "dependents": ("history:dependents", "List the versions that were trained on a version."),
    "doctor": ("doctor:doctor", "Check the database, the blob store and this machine."),
    "export": ("exports:export_", "Write a subtree or everything to a folder or a tar file."),
    "gc": ("collecting:gc", "Remove stored bytes that nothing needs."),
    "import": ("exports:import_", "Add an export to this registry."),
    "lineage": ("resolve:lineage", "Show what a version was trained on, up to the base."),
    "log": ("history:log", "Show what happened at a path and below it."),
    "ls": ("browse:ls", "List the nodes below a path, or the bases."),
    "publish": ("publish:publish", "Publish a PEFT adapter directory at a path."),
    "pull": ("pull:pull", "Download one version as a PEFT directory."),
    "quarantine": ("marks:quarantine", "Stop every chain through a version."),
    "resolve": ("resolve:resolve", "Show the chain of versions that a path composes."),
    "retain": ("deleting:retain", "Delete all but the newest versions of nodes."),
    "rm": ("deleting:rm", "Remove an empty node."),
    "serve": ("serve:serve", "Serve the registry over HTTP on this machine."),
    "show": ("show:show", "Show a node and its versions, a base, or a version."),
    "tree": ("browse:tree", "Draw the tree below a path, or every tree."),
    "verify": ("verify:verify", "Read and hash the stored files, and list the damaged ones."),
    "withdraw": ("marks:withdraw", "Withdraw a version from the heads; versions trained on it still resolve."),
}


COMPLETE: Final = "_LORATREE_COMPLETE"  # a shell sets this variable to ask what may follow

# The packages of the extra `composer`. The code that needs another optional package names it in its own error.
COMPOSER: Final = ("torch", "transformers", "safetensors")


class LazyGroup(click.Group):
    """A group that lists its commands from COMMANDS and imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands, sorted."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command `cmd_name`, or return None if there is none."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(f"loratree_cli.commands.{module}"), attribute)
        if COMPLETE in os.environ:
            from loratree_cli.completion import complete_from_registry

            complete_from_registry(command, cmd_name)
        return with_speech(command)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Parse the arguments, or print the help."""
        with _explaining():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; Ctrl-C, which click would answer with `Aborted!`, becomes Interrupted."""
        try:
            with _explaining():
                return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted(WHOLE) from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that `args` names, or name the most similar one. Raises NoSuchCommand."""
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:
            raise click.NoSuchCommand(error.command_name, possibilities=COMMANDS, ctx=ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@contextmanager
def _explaining() -> Iterator[None]:
    """Say of a wrong usage what to write, and raise Unread for a broken pipe, which click would call a refusal."""
    try:
        yield
    except click.UsageError as error:
        from loratree_cli.guesses import answered

        raise answered(error) from None
    except BrokenPipeError as error:
        raise Unread from error


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@speech_options
@click.version_option(package_name="loratree", prog_name="loratree")
def cli() -> None:
    """Publish and compose trees of LoRA adapters.

    \b
    loratree base add tiny ./base-model
    loratree publish ./my-adapter tiny/medicine
    loratree compose tiny/medicine --mode merge --out ./merged

    The registry is a database and a folder under LORATREE_HOME, or the server that LORATREE_URL names.

    Other variables: LORATREE_DATABASE, LORATREE_BLOBS, LORATREE_S3_ENDPOINT, LORATREE_S3_PUBLIC_ENDPOINT and
    LORATREE_DIRECT. LORATREE_CONFIG names a file that sets any of them (home = "…", url = "…"), by default
    ~/.config/loratree/loratree.toml; a variable comes before the file.
    """


def main() -> None:
    """Run `loratree`.

    Exit status: 0 done, 1 refused or failed with one sentence, 2 wrong usage, 130 after Ctrl-C, 141 if the reader of
    its output has gone, 143 after SIGTERM.
    """
    end_at_sigterm()
    try:
        _run()
    except (Unread, BrokenPipeError):  # the second one, while a refusal is printed
        end_unread()


def _run() -> None:
    try:
        _name_unknown_variables()
        if COMPLETE in os.environ:
            import_module("loratree_cli.completion")  # adds the script for bash
        cli(prog_name="loratree", complete_var=COMPLETE)
    except LoratreeError as error:
        fail(str(error), error.details)
    except Interrupted as error:
        fail(f"interrupted: {error}", status=INTERRUPTED)
    except KeyboardInterrupt:  # a second one, during the cleaning after the first
        fail("interrupted twice: the next command removes what this one left", status=INTERRUPTED)
    except ModuleNotFoundError as error:
        if error.name not in COMPOSER:
            raise
        fail(f"this command needs {error.name}, which is not installed: pip install 'loratree[composer]'")
    except BrokenPipeError:
        raise
    except OSError as error:
        fail(f"{error.filename or 'the output or a file'} cannot be used: {error.strerror or error}")


def _name_unknown_variables() -> None:
    unknown = [] if "doctor" in sys.argv[1:] else check_variables(os.environ)  # doctor tells it as a check
    if unknown and "--quiet" not in sys.argv:
        from loratree_cli.output import say

        say(f"warning: loratree has no variable {listed(unknown, limit=3)}: `loratree --help` names those that it has")


def fail(sentence: str, details: tuple[str, ...] = (), *, status: int = 1) -> None:
    """Print one sentence to stderr and exit with `status`.

    --verbose prints each detail on a line of its own, and --json prints all to stdout.
    """
    if status == INTERRUPTED:
        ignore_signals()
    from loratree_cli.output import say_refused

    if "--json" in sys.argv:
        with suppress(OSError):  # a full disk takes no record either
            click.echo(json.dumps({"error": sentence, "details": details}))
    say_refused(f"loratree: {sentence}", details)
    sys.exit(status)
