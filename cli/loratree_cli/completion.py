"""What the shells complete: bases, paths of the tree and refs, asked of the registry, beside click's own options.

bash splits a word at `@`, as COMP_WORDBREAKS says, so it gets a script of ours that passes the whole line.
"""

import os
from collections.abc import Iterator
from itertools import dropwhile, islice, takewhile
from typing import Final

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class, split_arg_string
from typing_extensions import override

from loratree_cli.output import every
from loratree_registry.connect import connected
from loratree_registry.core.paths import HEAD
from loratree_registry.core.registry import MAX_PAGE, Registry, list_bases
from loratree_registry.errors import LoratreeError

_SHOWN: Final = 200
_OPEN: Final = "open"  # more may follow: no space
_BASH: Final = """\
%(complete_func)s() {
    local IFS=$'\\n' line
    COMPREPLY=()
    for line in $(env COMP_LINE="$COMP_LINE" COMP_POINT="$COMP_POINT" COMP_BREAKS="$COMP_WORDBREAKS" \\
            %(complete_var)s=bash_complete "$1"); do
        case ${line%%%%,*} in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            open) compopt -o nospace; COMPREPLY+=("${line#*,}") ;;
            *) COMPREPLY+=("${line#*,}") ;;
        esac
    done
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class BaseType(click.ParamType[str]):
    """The name of a base, given as text; shells complete it from the registry."""

    name = "text"

    @override
    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """List what may follow, at most 200; nothing if the registry cannot be asked."""
        try:
            with connected() as opened:
                return list(islice(self.complete(opened, incomplete), _SHOWN))
        except (LoratreeError, OSError):
            return []

    def complete(self, opened: Registry, incomplete: str) -> Iterator[CompletionItem[str]]:
        """Yield the bases whose names begin like `incomplete`."""
        for base in list_bases(opened):
            if base.name.startswith(incomplete):
                yield CompletionItem(base.name)


class PathType(BaseType):
    """The path of a node."""

    @override
    def complete(self, opened: Registry, incomplete: str) -> Iterator[CompletionItem[str]]:
        """Yield the nodes of the next level that begin like `incomplete`."""
        above, slash, begun = incomplete.rpartition("/")
        if not slash:
            yield from (CompletionItem(base.value, type=_OPEN) for base in super().complete(opened, incomplete))
            return
        first = incomplete[:-1] if begun[:-1].isalnum() else None  # a path, before the first child that is shown
        nodes = every(lambda after: opened.children(above, after=after or first, limit=MAX_PAGE))
        from_here = dropwhile(lambda node: node.path < incomplete, nodes)  # the children are sorted
        for node in takewhile(lambda node: node.path.startswith(incomplete), from_here):
            yield CompletionItem(node.path, type=_OPEN, help=node.level)


class RefType(PathType):
    """A path, or a version at one."""

    @override
    def complete(self, opened: Registry, incomplete: str) -> Iterator[CompletionItem[str]]:
        """Yield paths, and after `@` the aliases and numbers of the node."""
        path, at, selector = incomplete.partition("@")
        if not at:
            yield from super().complete(opened, incomplete)
            return
        aliases = [alias.name for alias in opened.aliases(path)]
        for name in (HEAD, *aliases, *(str(version.number) for version in opened.versions(path).items)):
            if name.startswith(selector):
                yield CompletionItem(f"{path}@{name}")


class _WholeLine(BashComplete):
    """bash, asked by the whole line up to the cursor."""

    source_template = _BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])]
        words = split_arg_string(line)
        incomplete = "" if not words or line[-1:].isspace() else words.pop()
        return words[1:], incomplete

    def format_completion(self, item: CompletionItem[str]) -> str:
        value = str(item.value)
        if "@" in value and "@" in os.environ.get("COMP_BREAKS", "@"):
            value = "@" + value.rpartition("@")[2]  # bash replaces what begins at the break
        return f"{item.type},{value}"


_TYPES: Final = {"path": PathType, "ref": RefType}  # by what commands call their arguments


def complete_from_registry(command: click.Command, within: str) -> None:
    """Let the arguments of a command, and of those in its group, be completed from the registry."""
    if isinstance(command, click.Group):
        for name, member in command.commands.items():
            complete_from_registry(member, f"{within} {name}")
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            if parameter.name == "name" and within.startswith("base ") and within != "base add":
                parameter.type = BaseType()
            elif parameter.name in _TYPES:
                parameter.type = _TYPES[parameter.name]()


add_completion_class(_WholeLine)
