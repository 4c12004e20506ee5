"""Resolving: from a ref to the chain of versions that it stands for."""

from collections.abc import Mapping
from typing import Literal

from sqlalchemy import Connection

from loratree_registry.catalog.level_weights import level_weights
from loratree_registry.catalog.marks import check_above, check_chain, check_strict
from loratree_registry.catalog.nodes import trail
from loratree_registry.catalog.versions import choose, emptied, no_version
from loratree_registry.core.chain import Chain, Step
from loratree_registry.core.digests import FileDigest
from loratree_registry.core.paths import HEAD, Ref, parse_alias, parse_ref
from loratree_registry.core.records import BaseRef, Link, Resolution
from loratree_registry.database import queries
from loratree_registry.database.rows import NodeRow, VersionRow
from loratree_registry.errors import Conflict, listed

Followed = Literal["alias", "pin"]
ChosenVersion = tuple[VersionRow, Followed | None]


def resolve(
    connection: Connection, ref: str, *, follow: str | None, weights: Mapping[str, float] | None, strict: bool = False
) -> Resolution:
    """Return the chain of `ref` by its pins, or with each ancestor at the alias `follow` if the alias is set there.

    Three queries at any depth, two more if `follow` leads away from the pins; `resolve_pinned` needs one. Raises
    NotFound, Invalid, Quarantined, and with `strict` Conflict if a version of the chain was withdrawn.
    """
    parsed, alias = parse_ref(ref), _parse_follow(follow)
    found = queries.versions.pinned_chain_at(connection, parsed.path, parsed.selector)
    pinned, files = [row for row, _ in found.values()], {key: held for key, (_, held) in found.items()}
    nodes = trail(connection, parsed.path)
    if not pinned:
        pinned = _find_pinned(connection, nodes, parsed)
    chosen: list[ChosenVersion] = [(row, None) for row in pinned]
    if follow is not None and pinned:
        chosen = _follow_alias(connection, nodes, pinned, alias)
        known = {row.id for row in pinned}
        # A version at an alias has pins of its own, which `pinned` does not hold.
        check_above(connection, str(parsed), [row for row, how in chosen if how == "alias" and row.id not in known])
        _check_ties(str(parsed), [row for row, _ in chosen])
    check_chain(str(parsed), pinned)
    if strict:
        check_strict(str(parsed), [row for row, _ in chosen])
    weighted = level_weights(str(parsed), [row for row, _ in chosen], weights)
    if others := [row.id for row, _ in chosen if row.id not in files]:
        files |= queries.versions.files_of(connection, others)
    links = [_to_link(row, how, weight, files[row.id]) for (row, how), weight in zip(chosen, weighted, strict=True)]
    return _to_resolution(str(parsed), nodes[0].base_ref(), links)


def resolve_pinned(
    connection: Connection, ref: str, *, weights: Mapping[str, float] | None, strict: bool
) -> Resolution | None:
    """Return what `resolve` returns without `follow`, by one query; None if it takes more, or if there is nothing."""
    parsed = parse_ref(ref)
    found = queries.versions.pinned_chain_at(connection, parsed.path, parsed.selector)
    if not found:
        return None
    chain = [row for row, _ in found.values()]
    check_chain(str(parsed), chain)
    if strict:
        check_strict(str(parsed), chain)
    weighted = level_weights(str(parsed), chain, weights)
    links = [_to_link(row, None, weight, files) for (row, files), weight in zip(found.values(), weighted, strict=True)]
    return _to_resolution(str(parsed), BaseRef(name=chain[0].base, digest=chain[0].base_digest), links)


def _parse_follow(follow: str | None) -> str | None:
    """Return the alias to follow, or None for the head."""
    return None if follow in (None, HEAD) else parse_alias(follow)


def _find_pinned(connection: Connection, nodes: list[NodeRow], ref: Ref) -> list[VersionRow]:
    """Return the leaf's chain by its pins. A grouping adds nothing, so its nearest ancestor with a head is the leaf.

    A node whose versions are all withdrawn or deleted is no grouping: who asks for it would get another function.
    """
    node = nodes[-1]
    if ref.selector is None:
        while node.head is None:
            if node.level == "base":
                return []
            if (error := emptied(connection, node, asked=ref.path)) is not None:
                raise error
            node = nodes[nodes.index(node) - 1]
    selector = choose(connection, node, ref.selector)
    chain = queries.versions.pinned_chain(connection, node.id, selector)
    if not chain:
        raise no_version(connection, node, selector)
    return chain


def _follow_alias(
    connection: Connection, nodes: list[NodeRow], pinned: list[VersionRow], alias: str | None
) -> list[ChosenVersion]:
    """Return each ancestor at the alias, else at its pin, and then the leaf. An ancestor with neither adds nothing."""
    leaf = pinned[-1]
    above = [node.id for node in nodes if len(node.path) < len(leaf.path)]
    by_alias: dict[int, ChosenVersion] = {
        row.node_id: (row, "alias") for row in queries.versions.versions_at_alias(connection, above, alias)
    }
    by_pin: dict[int, ChosenVersion] = {row.node_id: (row, "pin") for row in pinned[:-1]}
    ancestors = by_pin | by_alias
    return [*(ancestors[node_id] for node_id in above if node_id in ancestors), (leaf, None)]


def _check_ties(ref: str, chain: list[VersionRow]) -> None:
    """Raise Conflict if a version would mean another function than in training, because of ties of the base.

    Some parts of an adapter, such as token rows, change an embedding and the head that is tied to it, or the embedding
    alone if an ancestor had taken the two apart. An ancestor that is followed may have done otherwise.
    """
    untying: list[str] = []
    for row in chain:
        summary = row.adapter()
        if summary.trained_tied is not None and summary.trained_tied == bool(untying):
            were, now = ("one tensor", "apart") if summary.trained_tied else ("apart", "one tensor")
            cause = f" after {listed(untying)}" if untying else ""
            raise Conflict(
                f"{ref} cannot follow these ancestors: {row.ref} was trained where names that the base ties were "
                f"{were}, and{cause} they are {now}, so it would be another function; resolve it by its pins, or train "
                f"{row.path} again on these ancestors"
            )
        untying += [row.ref] if summary.unties else []


def _to_link(row: VersionRow, followed: Followed | None, weight: float, files: list[FileDigest]) -> Link:
    summary = row.adapter()
    return Link(
        path=row.path,
        level=row.level,
        version=row.number,
        digest=row.digest,
        weight=weight,
        ranks=summary.ranks,
        scales=summary.scales,
        pin=row.pin(),
        head=row.head,
        stale=row.stale,
        withdrawn=row.withdrawn(),
        follow=followed,
        files=files,
    )


def _to_resolution(ref: str, base: BaseRef, links: list[Link]) -> Resolution:
    steps = tuple(Step(link.path, link.version, link.digest, link.weight) for link in links)
    return Resolution(
        ref=ref,
        base=base,
        chain=links,
        stale=any(link.stale for link in links),
        composition=Chain(base.name, base.digest, steps).digest,
    )
