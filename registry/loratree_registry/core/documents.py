"""Documents: the small texts beside an adapter's weights, such as its model card, that a version keeps."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from loratree_registry.core.records import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Version
from loratree_registry.errors import Invalid, listed

CARD: Final = "README.md"
ENDINGS: Final = (".md", ".txt", ".json", ".jinja", ".yaml", ".yml")
MAX_DOCUMENTS: Final = 16
MAX_DOCUMENT: Final = 64 * 1024  # bytes of UTF-8
MAX_BYTES: Final = 256 * 1024  # of all documents of a version
_OURS: Final = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, "loratree.json")
_NAME: Final = 120


@dataclass(frozen=True, slots=True)
class Document:
    """A document of a version: a plain file name and its text."""

    name: str
    text: str


def explain(name: str, text: str) -> str | None:
    """Return why a file cannot be kept as a document, or None if it can."""
    if not name.isprintable() or len(name) > _NAME or name.startswith(".") or {"/", "\\"} & set(name):
        return "expected a plain file name"
    if name.lower() in _OURS or not name.lower().endswith(ENDINGS):
        return f"expected the ending {', '.join(ENDINGS)}, and no name of the adapter's own files"
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return "expected text that can be written as UTF-8"
    if size > MAX_DOCUMENT:
        return f"it has {size} bytes, at most {MAX_DOCUMENT} are kept"
    return "it holds the character NUL" if "\0" in text else None


def check_documents(documents: Mapping[str, str]) -> None:
    """Check the documents of a version. Raises Invalid."""
    if len(documents) > MAX_DOCUMENTS:
        raise Invalid(f"{len(documents)} documents were sent, a version keeps at most {MAX_DOCUMENTS}")
    for name, text in documents.items():
        if reason := explain(name, text):
            raise Invalid(f"the document {name[:_NAME]!a} cannot be kept: {reason}")
    if (size := sum(len(text.encode()) for text in documents.values())) > MAX_BYTES:
        raise Invalid(f"the documents have {size} bytes, a version keeps at most {MAX_BYTES}")


def choose(documents: Iterable[Document]) -> dict[str, str]:
    """Return the documents that a version keeps, the card first: those that are alone too large or no text are left."""
    kept: dict[str, str] = {}
    for document in sorted(documents, key=lambda one: (one.name != CARD, one.name)):
        if explain(document.name, document.text) is None and len(kept) < MAX_DOCUMENTS:
            together = sum(len(text.encode()) for text in (*kept.values(), document.text))
            if together <= MAX_BYTES:
                kept[document.name] = document.text
    return kept


def say_kept(version: Version, kept: Mapping[str, str], given: Mapping[str, str], note: str | None) -> str | None:
    """Say which of the documents, and whether the note, given to publish a version again it does not have so.

    `kept` are the documents of the version. None if nothing differs; what is not given is no difference.
    """
    others = [name for name, text in given.items() if kept.get(name) != text]
    others += ["the note"] if note not in (None, version.note) else []
    differ = "differs here and is" if len(others) == 1 else "differ here and are"
    keeps = f"{version.path}@{version.number} keeps what it was published with, as a version never changes"
    return f"{keeps}: {listed(others, limit=5)} {differ} not stored" if others else None
