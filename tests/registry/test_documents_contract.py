"""Documents of a version, on every kind of registry: kept, listed, pulled again, and gone with the version."""

from dataclasses import replace
from pathlib import Path

import pytest

from loratree_registry.core.documents import Document
from loratree_registry.core.records import Published
from loratree_registry.core.registry import Registry
from loratree_registry.errors import Gone, Invalid, NotFound, Quarantined
from loratree_registry.workspace.fetch import pull
from loratree_registry.workspace.publish import publish_directory
from tests.registry.material import Material, publish

MED = "tiny/medicine"
CARD = "# Médicine\n\ttrained on [notes]\r\n\x1b[2J🙂\n"
TEXTS = {"notes.txt": "", "README.md": CARD}


def with_documents(registry: Registry, material: Material, documents: dict[str, str]) -> Published:
    return publish(
        registry, MED, material.rank4, "base", change=lambda submission: replace(submission, documents=documents)
    )


def test_documents_are_kept_as_they_were_sent(registry: Registry, material: Material) -> None:
    version = with_documents(registry, material, TEXTS).version
    plain = publish(registry, f"{MED}/x", material.rank4).version
    assert registry.documents(MED) == [Document("README.md", CARD), Document("notes.txt", "")]
    assert registry.documents(f"{MED}@{version.digest}") == registry.documents(f"{MED}@1")
    assert registry.documents(f"{MED}/x") == []
    assert version.content == plain.content  # no digest covers them
    again = with_documents(registry, material, {"other.md": "x"})
    keeps = f"{MED}@1 keeps what it was published with, as a version never changes"
    assert (again.created, again.warnings) == (False, [f"{keeps}: other.md differs here and is not stored"])
    assert with_documents(registry, material, {"README.md": CARD}).warnings == []
    noted = publish(registry, MED, material.rank4, "base", note="better")
    assert noted.warnings == [f"{keeps}: the note differs here and is not stored"]
    assert len(registry.documents(MED)) == 2


@pytest.mark.parametrize("wrong", [{"../x.md": "x"}, {"x.md": "\0"}, {"x.bin": "x"}, {"x.md": "x" * 70_000}])
def test_documents_that_cannot_be_kept_are_refused(
    registry: Registry, material: Material, wrong: dict[str, str]
) -> None:
    with pytest.raises(Invalid, match="cannot be kept"):
        with_documents(registry, material, wrong)
    with pytest.raises(NotFound):
        registry.node(MED)


def test_a_quarantine_covers_documents_and_a_delete_removes_them(registry: Registry, material: Material) -> None:
    with_documents(registry, material, TEXTS)
    registry.quarantine(f"{MED}@1", reason="it leaks")
    with pytest.raises(Quarantined):
        registry.documents(f"{MED}@1")
    registry.lift_quarantine(f"{MED}@1")
    assert registry.documents(f"{MED}@1")
    registry.delete(f"{MED}@1", reason="a mistake")
    with pytest.raises(Gone):
        registry.documents(f"{MED}@1")
    with pytest.raises(NotFound):
        registry.documents("tiny/nowhere")


def test_a_folders_texts_are_published_and_pulled_again(registry: Registry, material: Material, tmp_path: Path) -> None:
    folder = material.rank4.written(tmp_path / "adapter")
    (folder / "README.md").write_text(CARD, newline="")
    (folder / "training_args.bin").write_bytes(b"\x80")
    (folder / "broken.txt").write_bytes(b"\xff")
    (folder / "large.json").write_text("[" + "1," * 40_000 + "1]")
    (folder / "link.md").symlink_to(folder / "README.md")
    result = publish_directory(registry, folder, MED, parent="base", home=tmp_path / "home")
    assert result.not_published == ["broken.txt", "large.json", "link.md", "training_args.bin"]
    assert [one.name for one in registry.documents(MED)] == ["README.md"]
    pull(registry, tmp_path / "home", MED, tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_bytes() == CARD.encode()
    again = publish_directory(registry, tmp_path / "out", MED, parent="base", home=tmp_path / "home")
    assert again.published.created is False
