"""Do docstrings begin as the style asks? `python -m tests.plain_words [--check] [FOLDER…]` lists those that do not."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
FOLDERS: Final = ("cli", "composer", "migrations", "registry")
# A function does something, so its docstring begins with a verb: "Return the size", not "The size".
NOT_VERBS: Final = frozenset(
    {
        "a",
        "all",
        "an",
        "and",
        "any",
        "at",
        "both",
        "by",
        "each",
        "every",
        "for",
        "from",
        "how",
        "if",
        "in",
        "its",
        "no",
        "none",
        "of",
        "on",
        "one",
        "only",
        "some",
        "that",
        "the",
        "their",
        "them",
        "these",
        "this",
        "those",
        "to",
        "under",
        "was",
        "what",
        "when",
        "where",
        "whether",
        "which",
        "who",
        "whose",
        "why",
        "with",
    }
)
NOUNS: Final = frozenset({"property", "cached_property"})  # an attribute is a noun


def problems(file: Path) -> Iterator[str]:
    """Yield a line for each function whose docstring does not begin with a verb in the imperative."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("__"):
            continue
        text = ast.get_docstring(node)
        if text is None or any(getattr(mark, "id", "") in NOUNS for mark in node.decorator_list):
            continue
        word = text.split()[0].strip("`.,:;").lower()
        if word in NOT_VERBS or (word.endswith("s") and not word.endswith("ss")):
            yield f"{file.relative_to(ROOT)}:{node.lineno}: {node.name} begins with {text.split()[0]!r}"


def all_problems(folders: list[Path]) -> list[str]:
    """Return the problems of every Python file in `folders`."""
    return [problem for folder in folders for file in sorted(folder.rglob("*.py")) for problem in problems(file)]


if __name__ == "__main__":
    folders = [Path(name).resolve() for name in sys.argv[1:] if name != "--check"]
    listed = all_problems(folders or [ROOT / name for name in FOLDERS])
    print(*listed, sep="\n", end="\n" if listed else "")
    sys.exit(bool(listed) and "--check" in sys.argv)
