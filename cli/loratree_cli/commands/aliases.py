"""loratree alias set, ls, rm."""

from contextlib import suppress

import click

from loratree_cli.output import json_option, print_json, say
from loratree_cli.screens.hints import say_no_alias
from loratree_cli.screens.tables import Column, print_table
from loratree_registry.connect import connected
from loratree_registry.core.records import Alias
from loratree_registry.core.registry import Registry
from loratree_registry.errors import LoratreeError, NotFound


@click.group()
def alias() -> None:
    """Manage movable names of versions at a node, such as stable or canary.

    \b
    loratree alias set tiny/medicine stable 2
    loratree resolve tiny/medicine@stable
    """


@alias.command("set")
@click.argument("path")
@click.argument("name")
@click.argument("version", metavar="VERSION", required=False)
@click.option("--expected", type=click.IntRange(min=0), help="Move it only if it names this version now; 0: not set.")
@json_option
def set_(path: str, name: str, version: str | None, expected: int | None, as_json: bool) -> None:
    """Point the alias NAME at VERSION of PATH: a number such as 2 or @2, another alias, or latest.

    Without --expected it is moved from any version; a move by somebody else at the same moment is refused.

    \b
    loratree alias set tiny/medicine stable 2
    loratree alias set tiny/medicine stable 3 --expected 2
    loratree alias set tiny/medicine stable latest
    """
    if version is None:
        raise _two_words(path, name)
    if "/" in name and "/" not in path:
        raise click.UsageError(f"the path comes first: loratree alias set {name} {path} {version}")
    if name.isdecimal() and not version.isdecimal():
        raise click.UsageError(f"the alias comes before the version: loratree alias set {path} {version} {name}")
    version = version.removeprefix(path).removeprefix("@")
    with connected() as opened:
        number = int(version) if version.isdecimal() else opened.version(f"{path}@{version}").number
        now = _current(opened, path, name) if expected is None else None
        moved = opened.set_alias(path, name, version=number, expected=now.version if now else expected or None)
    if as_json:
        print_json(moved)
    else:
        say(f"{moved.path}@{moved.name} is version {moved.version}")


def _two_words(path: str, name: str) -> click.UsageError:
    """Return the error for two words where a path, an alias and a version are needed, with the command to type."""
    if "/" in name and "/" not in path:
        path, name = name, path
    path, _, version = path.partition("@")
    if version and name.isdecimal() and not version.isdecimal():  # PATH@NAME NUMBER
        version, name = name, version
    if version:
        return click.UsageError(f"the version is a word of its own: loratree alias set {path} {name} {version}")
    if (number := name.removeprefix(path).removeprefix("@")).isdecimal():
        return click.UsageError(f"the alias is missing, such as stable: loratree alias set {path} stable {number}")
    return click.UsageError(f"the version is missing: loratree alias set {path} {name} {_head(path) or 'NUMBER'}")


def _head(path: str) -> int | None:
    """Return the number of a node's head, or None if it has none or the registry does not say so."""
    with suppress(LoratreeError), connected() as opened:
        return opened.node(path).head
    return None


@alias.command("ls")
@click.argument("path")
@json_option
def ls(path: str, as_json: bool) -> None:
    """List the aliases at PATH.

    \b
    loratree alias ls tiny/medicine
    """
    with connected() as opened:
        aliases = opened.aliases(path)
        node = None if aliases or as_json else opened.node(path)
    if as_json:
        print_json(aliases)
    elif node is not None:
        say_no_alias(node)
    else:
        columns = (Column("alias", kind="path"), Column("version", kind="number"), Column("updated", 1))
        print_table(columns, ((a.name, a.version, a.updated_at) for a in aliases))


@alias.command("rm")
@click.argument("path")
@click.argument("name", metavar="NAME", required=False)
@json_option
def rm(path: str, name: str | None, as_json: bool) -> None:
    """Remove the alias NAME at PATH; the version stays.

    \b
    loratree alias rm tiny/medicine stable
    """
    if name is None:
        node, _, alias = path.partition("@")
        what = "a word of its own" if alias else "missing"
        raise click.UsageError(f"the alias is {what}: loratree alias rm {node} {alias or 'NAME'}")
    if "/" in name and "/" not in path:
        raise click.UsageError(f"the path comes first: loratree alias rm {name} {path}")
    with connected() as opened:
        now = _current(opened, path, name)
        if now is None:
            raise NotFound(f"{path} has no alias {name!r}: see `loratree alias ls {path}`")
        opened.delete_alias(path, name, expected=now.version)
    if as_json:
        print_json(now)
    else:
        say(f"{path} has no alias {name} any more")


def _current(opened: Registry, path: str, name: str) -> Alias | None:
    return next((alias for alias in opened.aliases(path) if alias.name == name), None)
