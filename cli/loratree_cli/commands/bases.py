"""loratree base add, base ls, base show, base set, base rm, base push, base pull."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from loratree_cli.options import a_path
from loratree_cli.output import (
    First,
    counted,
    echo,
    every,
    json_option,
    limit_option,
    print_json,
    print_json_list,
    say,
    short,
)
from loratree_cli.progress import at_out, working
from loratree_cli.screens.fields import draw_fields
from loratree_cli.screens.hints import say_no_base
from loratree_cli.screens.tables import Column, print_table
from loratree_cli.screens.terminal import terminal
from loratree_registry.connect import connected
from loratree_registry.core.manifest import BaseManifest
from loratree_registry.core.paths import parse_base_name
from loratree_registry.core.progress import Progress
from loratree_registry.core.records import Base
from loratree_registry.core.registry import MAX_PAGE, Registry
from loratree_registry.core.registry import list_bases as list_all_bases
from loratree_registry.errors import Invalid, listed
from loratree_registry.settings import Settings

if TYPE_CHECKING:
    from loratree_registry.workspace.base_transfer import Pushed

_COLUMNS: Final = (
    Column("name", kind="path"),
    Column("architecture", 4),
    Column("parameters", 3, "number"),
    Column("digest", 1),
    Column("stored", 5),
    Column("source", 2, "text"),
)

_STORED: Final = {True: "yes, its weights too", False: "no, its manifest alone"}


@click.group()
def base() -> None:
    """Manage base models, the roots of the trees."""


@base.command("add")
@click.argument("name")
@click.argument("directory", type=a_path)
@click.option("--source", help="Where it came from, such as a hub name; no code opens it.")
@click.option("--store", is_flag=True, help="Store its weights too, as `base push` does.")
@json_option
def add(name: str, directory: Path, source: str | None, store: bool, as_json: bool) -> None:
    """Record the model in DIRECTORY as the base NAME.

    Reads config.json and every tensor's bytes; stores the manifest and the digest, and the weights with --store. An
    adapter that names the source as its base is pinned to this base. Of a snapshot in the hub's cache, the source is
    the hub's name.

    \b
    loratree base add tiny ./tiny-llama
    loratree base add tiny ./tiny-llama --store
    loratree base add llama-3.1-8b /models/llama-3.1-8b --source meta-llama/Llama-3.1-8B
    """
    from loratree_registry.disk.plain_files import hub_id_of
    from loratree_registry.workspace.base_locations import base_directory, remember_base

    if not directory.exists() and Path(name).is_dir():
        raise click.UsageError(f"the name comes first: loratree base add {directory} {name}")
    parse_base_name(name)  # before the model is read
    hub_id, home = hub_id_of(directory) if source is None else None, Settings.from_environment().home
    with connected(begin=True) as opened:
        with working(f"reading {directory}", kept="nothing was recorded: run the same command again") as on_progress:
            manifest = _read(directory, on_progress)
        folder = None
        with suppress(Invalid):  # a record that cannot be read is replaced
            folder = base_directory(home, manifest.digest)
        # The folder is recorded first: if the disk is full, a folder without a base does no harm.
        remember_base(home, manifest.digest, directory, manifest.weight_files)
        known = {base.name: base for base in list_all_bases(opened)}
        added = opened.add_base(name, manifest, source=source or hub_id)
        if store:
            added = _push(opened, name, directory).base
    if as_json:
        print_json(added)
        return
    say(f"{added.name} is a {added.architecture} of {added.parameters:,} parameters")
    if (before := known.get(name)) is not None:
        say("it was recorded before" + (": nothing changed in the registry" if added == before else ""))
    if folder not in (None, directory.resolve()):
        say(f"its folder on this machine is now {directory}, no longer {folder}")
    _say_source(added, source, hub_id)
    if left := list(manifest.leftovers):
        say(f"left out, because the model has no place for them: {listed(left, limit=3)}")
    if others := [base.name for base in known.values() if base.digest == added.digest and base.name != name]:
        say(
            f"the same weights are recorded as {listed(others, limit=3)} too: an adapter belongs to one of the "
            "trees, and Composer(model) needs base=NAME"
        )
    echo(added.digest)


def _say_source(added: Base, given: str | None, hub_id: str | None) -> None:
    """Say where a base came from, and how to record that, if it is not what was `given`."""
    change = f"`loratree base set {added.name} --source {given or 'ORG/NAME'}`"
    if given is not None and added.source != given:
        say(f"its source is {added.source or 'not set'}, as before: {change} changes it")
    elif hub_id is not None and added.source == hub_id:
        say(f"its source is {hub_id}, the name of the folder in the hub's cache")
    elif added.source is None:
        say(f"it has no source: if adapters name it by a hub's name, {change}")


def _read(directory: Path, on_progress: Progress) -> BaseManifest:
    from loratree_composer.base.manifest import read_base
    from loratree_registry.tensor_files.checkpoint import open_checkpoint
    from loratree_registry.tensor_files.comparison import has_names

    manifest = read_base(directory, progress=on_progress)
    # Files are compared where tensors cannot be, so that an adapter that was trained on them finds its pin.
    if has_names(directory, manifest):
        return replace(manifest, weight_files=None)
    files = open_checkpoint(directory).telling(on_progress, f"hashing the files of {directory}").hash_files()
    return replace(manifest, weight_files=files)


@base.command("push")
@click.argument("name")
@click.argument("directory", type=a_path)
@json_option
def push(name: str, directory: Path, as_json: bool) -> None:
    """Store the weights of the base NAME from the model in DIRECTORY.

    The config, the tokenizer and the safetensors files are stored once. Run an interrupted command again: it sends only
    the missing files. The registry checks every tensor before it uses any file.

    \b
    loratree base push tiny ./tiny-llama
    """
    with connected() as opened:
        pushed = _push(opened, name, directory)
    if as_json:
        print_json(pushed)
    else:
        echo(pushed.base.digest)


@base.command("pull")
@click.argument("name")
@click.option("--out", type=a_path, required=True, help="The folder to write; new or empty.")
@json_option
def pull(name: str, out: Path, as_json: bool) -> None:
    """Download the stored weights of the base NAME, so that this machine can compose on it.

    \b
    loratree base pull tiny --out ./tiny-llama
    loratree compose tiny/medicine --mode merge --out ./medicine
    """
    from loratree_registry.workspace.base_transfer import pull_base

    kept = at_out(out, "the files that arrived whole are kept: the same command fetches the rest")
    with connected() as opened, working(f"pulling {name}", kept=kept) as on_progress:
        pulled = pull_base(opened, Settings.from_environment().home, name, out, progress=on_progress)
    if as_json:
        print_json(pulled)
        return
    say(f"the base {pulled.name} is in {out}")
    echo(pulled.digest)


@base.command("show")
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show one base, and whether its weights are stored.

    \b
    loratree base show tiny
    """
    with connected() as opened:
        shown = opened.base(name)
    if as_json:
        print_json(shown)
    else:
        print_base(shown)


@base.command("set")
@click.argument("name")
@click.option("--source", required=True, help="Where it came from, such as a hub name; an empty text removes it.")
@json_option
def set_(name: str, source: str, as_json: bool) -> None:
    """Set what is recorded of the base NAME beside its weights.

    \b
    loratree base set tiny --source example/tiny-llama
    """
    with connected() as opened:
        changed = opened.set_source(name, source or None)
    if as_json:
        print_json(changed)
    else:
        print_base(changed)


@base.command("rm")
@click.argument("name")
@json_option
def rm(name: str, as_json: bool) -> None:
    """Remove the base NAME and its tree, if the tree has no versions.

    Tombstones of deleted versions go too, unless one was quarantined. `loratree gc` removes stored weights.

    \b
    loratree base rm tiny
    """
    with connected() as opened:
        removed = opened.base(name) if as_json else None
        opened.remove_base(name)
    if removed is not None:
        print_json(removed)
    else:
        say(f"the base {name} is removed")


@base.command("ls")
@limit_option
@json_option
def ls(limit: int | None, as_json: bool) -> None:
    """List the bases."""
    list_bases(limit, as_json)


def list_bases(limit: int | None, as_json: bool) -> None:
    """Print every base, by name."""
    with connected() as opened:
        bases = First(every(lambda after: opened.bases(after=after, limit=MAX_PAGE)), limit)
        if as_json:
            print_json_list(bases)
        elif rows := [_cells(base) for base in bases]:
            print_table(_COLUMNS, rows)
        else:
            say_no_base()
    bases.say_more()


def print_base(base: Base) -> None:
    """Print all of one base: at a terminal as fields, in a pipe as a line under its names."""
    console, rows = terminal(), base_rows(base)
    if console is None:
        print_table([Column(name) for name, _ in rows], [[value for _, value in rows]])
    else:
        draw_fields(console, rows)


def base_rows(base: Base) -> list[tuple[str, object]]:
    """Return the fields of a base, with its whole digest and its folder on this machine."""
    from loratree_registry.workspace.base_locations import base_directory

    folder = base_directory(Settings.from_environment().home, base.digest)
    cells = dict(zip((column.name for column in _COLUMNS), _cells(base), strict=True))
    own = {"digest": base.digest, "stored": _STORED[base.stored]}
    vocabulary = None if base.vocabulary_size is None else f"{base.vocabulary_size:,}"
    here = {"vocabulary": vocabulary, "folder here": folder or "not known", "added": base.created_at}
    return [*(cells | own | here).items()]


def _cells(base: Base) -> tuple[object, ...]:
    stored = "yes" if base.stored else "no"
    return base.name, base.architecture, f"{base.parameters:,}", short(base.digest), stored, base.source


def _push(opened: Registry, name: str, directory: Path) -> "Pushed":
    from loratree_registry.workspace.base_transfer import push_base

    kept = f"the files and parts that arrived stay for a day: `loratree base push {name} {directory}` sends the rest"
    with working(f"storing {directory}", kept=kept) as on_progress:
        pushed = push_base(opened, name, directory, progress=on_progress)
    if pushed.not_stored:
        say(f"not stored: {', '.join(pushed.not_stored)}")
    sent = (
        f"{len(pushed.sent)} of {counted(len(pushed.files), 'file')} {'was' if len(pushed.sent) == 1 else 'were'} sent"
    )
    say(f"the weights of {name} are stored: {sent}")
    return pushed
