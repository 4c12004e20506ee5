"""loratree alias set, ls, rm."""

import click

from loratree_cli.output import json_option, print_json, print_table, say
from loratree_cli.registry import registry
from loratree_registry.core.registry import Registry
from loratree_registry.errors import NotFound


@click.group()
def alias() -> None:
    """Movable names of versions at a node, such as stable or canary.

    \b
    loratree alias set tiny/medicine stable 2
    loratree resolve tiny/medicine@stable
    """


@alias.command("set")
@click.argument("path")
@click.argument("name")
@click.argument("version", type=click.IntRange(min=1))
@click.option("--expected", type=click.IntRange(min=0), help="Move it only if it is at this version now; 0: not set.")
@json_option
def set_(path: str, name: str, version: int, expected: int | None, as_json: bool) -> None:
    """Point the alias NAME at VERSION of PATH.

    Without --expected it is moved from wherever it is; a move by somebody else in between is refused.

    \b
    loratree alias set tiny/medicine stable 2
    loratree alias set tiny/medicine stable 3 --expected 2
    """
    with registry() as opened:
        now = _current(opened, path, name) if expected is None else expected or None
        moved = opened.set_alias(path, name, version=version, expected=now)
    if as_json:
        print_json(moved)
    else:
        say(f"{moved.path}@{moved.name} is version {moved.version}")


@alias.command("ls")
@click.argument("path")
@json_option
def ls(path: str, as_json: bool) -> None:
    """List the aliases at PATH.

    \b
    loratree alias ls tiny/medicine
    """
    with registry() as opened:
        found = opened.aliases(path)
    if as_json:
        print_json(found)
    else:
        print_table(("alias", "version", "updated"), ((a.name, a.version, a.updated_at) for a in found))


@alias.command("rm")
@click.argument("path")
@click.argument("name")
def rm(path: str, name: str) -> None:
    """Remove the alias NAME at PATH; the version stays.

    \b
    loratree alias rm tiny/medicine stable
    """
    with registry() as opened:
        now = _current(opened, path, name)
        if now is None:
            raise NotFound(f"{path} has no alias {name!r}: see `loratree alias ls {path}`")
        opened.delete_alias(path, name, expected=now)
    say(f"{path} has no alias {name} any more")


def _current(opened: Registry, path: str, name: str) -> int | None:
    return next((found.version for found in opened.aliases(path) if found.name == name), None)
