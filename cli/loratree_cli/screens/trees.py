"""A tree as it is drawn: what is hidden is counted by its level, and lines fit the terminal."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import click

from loratree_cli.screens.kinds import remarkable
from loratree_cli.screens.states import STYLES, State
from loratree_cli.screens.terminal import FAINT, terminal, write_line, write_words
from loratree_registry.core.paths import LEVELS
from loratree_registry.core.records import Node
from loratree_registry.core.text import counted, one_line
from loratree_registry.errors import Unavailable

if TYPE_CHECKING:
    from rich.text import Text

LINES: Final = 60  # of a drawing whose depth is chosen here; a screen or two
_MANY_LEAVES, _LEAVES = 8, 3  # of more leaves than the first at one node, the second are drawn
_LINES: Final = ["├── ", "└── ", "│   ", "    "]  # before a node, the last one, and what is beside and below them
_ASCII: Final = ["+-- ", "`-- ", "|   ", "    "]
_MANY_INNER, _INNER = 30, 20  # the same for nodes with others below them


@dataclass(slots=True)
class Branch:
    """A node, the nodes directly below it, and how many of each level and with each mark are below it at any depth.

    `above` is the path of the nearest node above that has a head; None if there is none.
    """

    node: Node
    above: str | None = None
    below: "list[Branch]" = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def with_own(self) -> Counter[str]:
        """Count the nodes below and the node itself."""
        return self.counts + Counter([self.node.level, *self.node.marks])


@dataclass(frozen=True, slots=True)
class Shape:
    """How much of a tree is drawn: `depth` levels below its root, and of many siblings a few."""

    depth: int
    is_whole: bool

    def split(self, branches: Sequence[Branch]) -> tuple[list[Branch], Counter[str]]:
        """Return the siblings that are drawn, and the count of what is hidden of the others, by level."""
        if self.is_whole:
            return list(branches), Counter()
        drawn: list[Branch] = []
        for group, many, few in (
            ([branch for branch in branches if branch.below], _MANY_INNER, _INNER),
            ([branch for branch in branches if not branch.below], _MANY_LEAVES, _LEAVES),
        ):
            drawn += group if len(group) <= many else sorted(group, key=lambda branch: not branch.node.marks)[:few]
        hidden: Counter[str] = Counter()
        chosen = set(map(id, drawn))
        for branch in branches:
            if id(branch) not in chosen:
                hidden.update(branch.with_own())
        return [branch for branch in branches if id(branch) in chosen], hidden

    def lines(self, branch: Branch, at: int = 0) -> int:
        """Count the lines that a branch takes."""
        if at == self.depth:
            return 1
        drawn, hidden = self.split(branch.below)
        return 1 + sum(self.lines(below, at + 1) for below in drawn) + bool(hidden)


def print_trees(trees: Sequence[Branch], depth: int | None, *, is_whole: bool, has_more: bool) -> None:
    """Print trees: at a terminal as much as fits and is asked for, in a pipe each node down to `depth`.

    `has_more` says that the registry has more nodes than `trees`.
    """
    from rich.console import Console

    known = terminal()
    drawn = trees if is_whole or known is None else [without_deleted(tree) for tree in trees]
    hidden, trees = sum(_size(tree) for tree in trees) - sum(_size(tree) for tree in drawn), drawn
    ascii_only = (known or Console()).options.ascii_only
    shape = choose_shape(trees, depth, is_whole=is_whole or known is None)
    width = sys.maxsize if known is None else known.width
    for tree in trees:
        for line in draw_tree(tree, shape, width, ascii_only=ascii_only):
            # In a pipe nothing is styled, and rich is slow for the many lines of a large tree.
            click.echo(line.plain.rstrip()) if known is None else write_line(known, line)
    counts = sum((tree.counts for tree in trees), Counter[str]())
    if known is not None and sum(map(shape.lines, trees)) < len(trees) + sum(counts[level] for level in LEVELS):
        draws = "--all draws every node, a path or --depth another part"
        write_words(known, f"{'more than ' * has_more}{_count_levels(counts)} in all; {draws}", FAINT)
    if known is not None and hidden:
        be, them = ("is", "it") if hidden == 1 else ("are", "them")
        write_words(known, f"{counted(hidden, 'deleted node')} {be} hidden; --all draws {them}", FAINT)


def grow(root: Node, nodes: Iterable[Node], above_root: str | None = None) -> Branch:
    """Return the tree of a node and all nodes below it, parents first. Raises Unavailable if one has no parent.

    `above_root` is the path of the nearest node above the root that has a head.
    """
    branches = {root.path: Branch(root, above_root)}
    for node in nodes:
        above = branches.get(node.path.rpartition("/")[0])
        if above is None:
            raise Unavailable(f"the registry lists {node.path[:200]!a} below {root.path[:200]!a}: check the server")
        branches[node.path] = Branch(node, above.above if above.node.head is None else above.node.path)
        above.below.append(branches[node.path])
    for path, branch in reversed(branches.items()):
        if path != root.path:
            branches[path.rpartition("/")[0]].counts.update(branch.with_own())
    return branches[root.path]


def without_deleted(tree: Branch) -> Branch:
    """Return a tree without the branches of which nothing is left but tombstones; its root stays."""
    below = [without_deleted(branch) for branch in tree.below if not _is_deleted(branch)]
    return Branch(tree.node, tree.above, below, sum((branch.with_own() for branch in below), Counter[str]()))


def _is_deleted(branch: Branch) -> bool:
    """Return whether nothing is left of a node and of what is below it: versions that were deleted, and no others."""
    if not branch.below:
        return "deleted" in branch.node.marks and not branch.node.has_children
    return branch.node.head is None and set(branch.node.marks) <= {"deleted"} and all(map(_is_deleted, branch.below))


def _size(tree: Branch) -> int:
    return 1 + sum(tree.counts[level] for level in LEVELS)


def choose_shape(trees: Sequence[Branch], depth: int | None, *, is_whole: bool) -> Shape:
    """Return the shape for `depth`; for None, the deepest with at most LINES lines, but at least one level."""
    deepest = max(map(_depth_of, trees), default=0)
    whole = Shape(deepest if depth is None else depth, is_whole=True)
    if is_whole or sum(map(whole.lines, trees)) <= LINES:
        return whole
    if depth is not None:
        return Shape(depth, is_whole=False)
    shapes = [Shape(levels, is_whole=False) for levels in range(deepest, 0, -1)]
    return next((shape for shape in shapes if sum(map(shape.lines, trees)) <= LINES), shapes[-1])


def draw_tree(tree: Branch, shape: Shape, width: int, *, ascii_only: bool = False) -> "Iterator[Text]":
    """Yield the lines of a tree, each of at most `width` cells if the names allow it."""
    guides = _ASCII if ascii_only else _LINES
    if 4 * min(shape.depth, _depth_of(tree)) > width // 2:
        guides = [guide[0] + guide[-1] for guide in guides]
    yield from _draw(tree, shape, width, guides, ("", ""), at=0)


def hidden_counts(counts: Counter[str], more: str = "") -> str:
    """Format what is hidden for people: `… 3 more tasks, 197 users (1 stale)`; `more` goes with the first."""
    return f"… {_count_levels(counts, more)}"


def _count_levels(counts: Counter[str], more: str = "") -> str:
    levels = [level for level in LEVELS if counts[level]]
    marks = ", ".join(f"{counts[mark]:,} {mark}" for mark in STYLES if counts[mark])
    return ", ".join(
        f"{counts[level]:,}{'' if place else more} {level}{'' if counts[level] == 1 else 's'}"
        for place, level in enumerate(levels)
    ) + (f" ({marks})" if marks else "")


def node_state(node: Node) -> State:
    """Return the state of a node's head; nothing is said if nothing is to be known."""
    marks = (mark in node.marks for mark in ("stale", "withdrawn", "quarantined", "deleted"))
    stale, withdrawn, quarantined, deleted = marks
    return State(stale=stale, withdrawn=withdrawn, quarantined=quarantined, deleted=deleted, sound="")


def aliases_text(node: Node) -> str:
    """Format the aliases of a node for people: `canary=3, stable=2`."""
    return ", ".join(f"{name}={number}" for name, number in sorted(node.aliases.items()))


def _draw(
    branch: Branch, shape: Shape, width: int, guides: list[str], before: tuple[str, str], at: int
) -> "Iterator[Text]":
    """Yield the lines of a branch; `before` is what stands before its first line, and before the others."""
    drawn, hidden = shape.split(branch.below) if at < shape.depth else ([], Counter[str]())
    cut = hidden_counts(branch.counts) if at == shape.depth and branch.below else ""
    yield from _label(branch, before, guides[2 if drawn else 3], width, cut)
    others = before[1]
    for place, below in enumerate(drawn, start=1):
        is_last = place == len(drawn) and not hidden
        beside = (others + guides[is_last], others + guides[2 + is_last])
        yield from _draw(below, shape, width, guides, beside, at + 1)
    if hidden:
        from rich.text import Text

        yield Text.assemble(others + guides[1], (hidden_counts(hidden, " more"), FAINT))


def _label(branch: Branch, before: tuple[str, str], going_on: str, width: int, cut: str) -> "Iterator[Text]":
    """Yield a node's line: its name, level, head, aliases and what is hidden; more lines if one is too short."""
    from rich.cells import cell_len
    from rich.text import Text

    node, (first, others) = branch.node, before
    is_root = not first
    name = one_line(node.path if is_root else node.path.rpartition("/")[2])
    parts: list[tuple[str, str]] = [(node.level, FAINT)]
    if node.head is not None:
        parts.append((f"@{node.head}", ""))
    if state := str(node_state(node)):
        parts.append((state, node_state(node).style))
    elif node.head is None and node.level != "base" and not node.has_children:
        parts.append(("no head", STYLES["withdrawn"]))  # nothing was published
    parts += [(one_line(word), FAINT) for word in remarkable(node, branch.above)]
    if node.head is not None and node.aliases:
        parts += [(word, "") for word in f"({one_line(aliases_text(node))})".split()]
    if cut:
        parts.append((cut, FAINT))
    lines = [Text.assemble(first, (name, "bold" if is_root else ""))]
    for text, style in parts:
        if cell_len(lines[-1].plain) + 1 + cell_len(text) > width:
            lines.append(Text(others + going_on))
        lines[-1].append(" ").append(text, style)
    yield from lines


def _depth_of(branch: Branch) -> int:
    return max((1 + _depth_of(below) for below in branch.below), default=0)
