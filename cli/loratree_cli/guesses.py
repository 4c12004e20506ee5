"""What people type who know other tools better than this one, and what to write instead."""

import re
import shlex
from collections.abc import Mapping
from typing import Final

import click

_SHOW: Final = "`loratree show REF` shows a base, a node or a version"
_REMOVE: Final = (
    "`loratree rm PATH` removes an empty node, `loratree delete PATH@NUMBER` a version, `loratree base rm NAME` a base"
)
_LIST: Final = "`loratree ls` lists the bases, `loratree ls PATH` what is below a path, `loratree tree` all"
_PULL: Final = "`loratree pull REF --out DIR` downloads an adapter, `loratree base pull NAME --out DIR` a base"
_PUSH: Final = "`loratree publish DIR PATH` sends an adapter, `loratree base push NAME DIR` the weights of a base"
_ADD: Final = "`loratree base add NAME DIR` records a base, `loratree publish DIR PATH` publishes an adapter"
_CLEAN: Final = (
    "`loratree gc` removes stored bytes that nothing needs, `loratree cache prune` what this machine fetched"
)
_STACK: Final = (
    "adapters are stacked on a live model, in Python: `loratree.Composer(model).use(REF)` (docs/composing.md)"
)
_BACK: Final = (
    "`loratree withdraw PATH@NUMBER --reason TEXT` makes the version before it the head, `loratree import DIR` "
    "restores an export"
)

# By the group of commands, and by the word.
COMMANDS: Final[Mapping[str, Mapping[str, str]]] = {
    "": {
        **dict.fromkeys(("list", "dir", "nodes", "search", "find"), _LIST),
        **dict.fromkeys(("info", "describe", "inspect", "get", "cat", "versions", "card"), _SHOW),
        **dict.fromkeys(("remove", "del", "destroy", "drop", "unpublish"), _REMOVE),
        **dict.fromkeys(("download", "fetch", "clone", "checkout", "install"), _PULL),
        **dict.fromkeys(("push", "upload", "send"), _PUSH),
        **dict.fromkeys(("add", "create", "new", "register"), _ADD),
        **dict.fromkeys(("init", "setup", "login"), f"there is nothing to set up: {_ADD}"),
        **dict.fromkeys(("clean", "prune", "purge"), _CLEAN),
        **dict.fromkeys(("stack", "use", "load"), _STACK),
        "merge": "`loratree compose REF --mode merge --out DIR` writes a merged model",
        "flatten": "`loratree compose REF --mode flatten --out DIR` writes one adapter of a chain",
        **dict.fromkeys(("diff", "compare"), "`loratree show PATH@NUMBER` shows all of one version, also with --json"),
        "stale": "`loratree tree` marks what is stale, and `loratree lineage REF` says why",
        "status": "`loratree tree` shows what there is and what is stale, `loratree doctor` checks the registry",
        "help": "`loratree --help` lists the commands, and `loratree COMMAND --help` explains one",
        "version": "`loratree --version` prints the release, `loratree show PATH@NUMBER` a version of a node",
        **dict.fromkeys(("bases", "models"), "`loratree base ls` lists the bases"),
        **dict.fromkeys(("aliases", "tag", "tags"), "`loratree alias set PATH NAME NUMBER`, `loratree alias ls PATH`"),
        **dict.fromkeys(("history", "events"), "`loratree log PATH` shows what happened"),
        **dict.fromkeys(("server", "start", "run"), "`loratree serve` serves the registry over HTTP"),
        **dict.fromkeys(("config", "settings", "env"), "settings are variables and a file, see `loratree --help`"),
        **dict.fromkeys(("ancestors", "parents", "chain"), "`loratree lineage REF`, or `loratree resolve REF`"),
        **dict.fromkeys(("children", "descendants"), "`loratree ls PATH`, or `loratree tree PATH`"),
        **dict.fromkeys(
            ("check", "fsck", "test"), "`loratree verify` checks what is stored, `loratree doctor` the rest"
        ),
        **dict.fromkeys(("backup", "dump"), "`loratree export --out DIR` writes all"),
        **dict.fromkeys(("restore", "rollback", "revert", "undo"), _BACK),
    },
    "alias": {
        **dict.fromkeys(("add", "create", "move", "new"), "`loratree alias set PATH NAME NUMBER`"),
        **dict.fromkeys(("remove", "delete", "unset", "del"), "`loratree alias rm PATH NAME`"),
        **dict.fromkeys(("list", "show"), "`loratree alias ls PATH`"),
    },
    "base": {
        **dict.fromkeys(("create", "new", "register", "import"), "`loratree base add NAME DIR`"),
        **dict.fromkeys(("remove", "delete", "del"), "`loratree base rm NAME`"),
        **dict.fromkeys(("update", "edit"), "`loratree base set NAME --source TEXT`"),
        **dict.fromkeys(("download", "fetch", "get"), "`loratree base pull NAME --out DIR`"),
        **dict.fromkeys(("upload", "store"), "`loratree base push NAME DIR`"),
        **dict.fromkeys(("info", "describe"), "`loratree base show NAME`"),
        "list": "`loratree base ls`",
    },
    "cache": {
        **dict.fromkeys(("clear", "clean", "rm", "purge", "gc"), "`loratree cache prune --keep 0` removes all"),
        **dict.fromkeys(("list", "show"), "`loratree cache ls`"),
    },
    "db": dict.fromkeys(("migrate", "init", "update"), "`loratree db upgrade`"),
}
_EXTRA: Final = re.compile(r"Got unexpected extra arguments? \((.*)\)", re.DOTALL)
_NUMBER: Final = re.compile(r"(?:@|v|#)?([1-9][0-9]{0,8})")
_STACKS: Final = ("stack", "stacked", "runtime", "live", "use", "dynamic", "unmerged", "lora", "batch")


class ModeType(click.Choice[str]):
    """A choice of what `compose` writes. Whoever asks for a stack is told that it is no file."""

    def get_invalid_choice_message(self, value: object, ctx: click.Context | None) -> str:
        """Return why the value is none of the choices."""
        usual = super().get_invalid_choice_message(value, ctx)
        return f"{usual} {_STACK[0].upper()}{_STACK[1:]}." if str(value).lower() in _STACKS else usual


def answered(error: click.UsageError) -> click.UsageError:
    """Return a wrong usage with what to write instead, if that can be guessed; else the error as it is."""
    context = error.ctx
    remedy = None if context is None else _find_remedy(error, context)
    return error if remedy is None else click.UsageError(f"{error.message.rstrip('.')}: {remedy}", context)


def _find_remedy(error: click.UsageError, context: click.Context) -> str | None:
    if isinstance(error, click.NoSuchCommand):
        return _command(context.command, error.command_name)
    if isinstance(error, click.NoSuchOption) and error.option_name == "--json":
        return "it goes after a command, as in `loratree ls --json`"
    if isinstance(error, click.NoSuchOption):
        is_version = error.option_name in ("--version", "--number") and _takes(context.command, "ref")
        return f"a version is written at its path, as in {context.command_path} PATH@2" if is_version else None
    extra = _EXTRA.fullmatch(error.message)
    return None if extra is None else _extra(context, extra[1])


def _command(group: click.Command, word: str) -> str | None:
    """Return what to write for a word that is no command of a group."""
    within = "" if group.name in (None, "cli") else str(group.name)
    known = COMMANDS.get(within, {}).get(word.lower())
    if known is None and within and isinstance(group, click.Group):
        return f"`loratree {within}` has {', '.join(group.commands)}"
    return known


def _extra(context: click.Context, words: str) -> str | None:
    """Return what to write for arguments beyond those that a command takes."""
    ref, number = context.params.get("ref"), _NUMBER.fullmatch(words)
    if isinstance(ref, str) and "@" not in ref and number is not None:
        return f"a version is written at its path, as in `{context.command_path} {ref}@{number[1]}`"
    if _takes(context.command, "reason") and not context.params.get("reason"):
        return f"a reason is an option, as in --reason {shlex.quote(words)}"
    return None


def _takes(command: click.Command, name: str) -> bool:
    return any(parameter.name == name for parameter in command.params)
