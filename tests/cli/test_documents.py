"""A model card goes with its adapter: published, shown, pulled again."""

import json
import shutil
from pathlib import Path

from loratree_cli.screens.cards import telling_lines
from tests import tiny
from tests.cli.conftest import Filled, Shell
from tests.terminals import on_terminal

CARD = "---\nlicense: apache-2.0\n---\n\n# Law\n\nTrained on contracts.\x1b[2J\n" + "".join(
    f"line {n}\n" for n in range(40)
)


def test_a_card_is_published_shown_and_pulled_again(shell: Shell, filled: Filled, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(next(iter(filled.adapters.values())), adapter)
    (adapter / "README.md").write_text(CARD)
    (adapter / "notes.bin").write_bytes(b"\0")
    published = shell("publish", adapter, "tiny/law", "--parent", "base")
    assert "not published: notes.bin" in published.stderr
    shown = shell("show", "tiny/law@1").stdout
    assert "documents\tREADME.md" in shown
    assert "card\t# Law Trained on contracts. [2J line 0 line 1 line 2 line 3 line 4 line 5\n" in shown
    assert json.loads(shell("show", "tiny/law@1", "--json").stdout)["documents"] == [
        {"name": "README.md", "text": CARD}
    ]
    screen = on_terminal(shell.home, "show", "tiny/law@1")
    assert "# Law" in screen
    assert "license" not in screen
    assert "\x1b[2J" not in screen
    ways = "`loratree show tiny/law@1 --json` and `loratree pull tiny/law@1 --out DIR` give the whole README.md"
    assert f"… 34 more lines: {ways}" in " ".join(screen.split())
    shell("pull", "tiny/law", "--out", tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text() == CARD


def test_a_version_without_a_card_has_no_row_for_it(shell: Shell, filled: Filled) -> None:
    shell("publish", filled.adapters["tiny/medicine"], "tiny/plain", "--parent", "base")
    shown = shell("show", "tiny/plain@1").stdout
    assert "\ndocuments\t" in shown
    assert "\ncard" not in shown


def test_a_card_that_changed_since_is_not_dropped_unseen(shell: Shell, filled: Filled, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(next(iter(filled.adapters.values())), adapter)
    (adapter / "README.md").write_text(CARD)
    shell("publish", adapter, "tiny/law", "--parent", "base")
    assert "keeps what" not in shell("publish", adapter, "tiny/law", "--parent", "base").stderr
    (adapter / "README.md").write_text("# Law, again\n")
    keeps = "warning: tiny/law@1 keeps what it was published with, as a version never changes:"
    done = shell("publish", adapter, "tiny/law", "--parent", "base")
    assert done.stderr.splitlines()[:2] == [
        f"{keeps} README.md differs here and is not stored",
        "tiny/law@1: already published, nothing stored; it is pinned to tiny",
    ]
    noted = shell("publish", adapter, "tiny/law", "--parent", "base", "--note", "better").stderr
    assert noted.startswith(f"{keeps} README.md; the note differ here and are not stored\n")
    (adapter / "notes.txt").write_text("more")
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(json.dumps({"directory": "adapter", "path": "tiny/law", "parent": "base"}))
    bulk = shell("publish", "--manifest", manifest)
    both = f"{keeps} README.md; notes.txt differ here and are not stored".replace("warning:", "warning: 1 line (1):")
    assert (bulk.stderr, bulk.stdout) == (f"{both}\n", "0 published, 1 already there, 0 refused\n")
    for name in ("README.md", "notes.txt"):
        (adapter / name).unlink()
    assert "keeps what" not in shell("publish", adapter, "tiny/law", "--parent", "base").stderr
    assert json.loads(shell("show", "tiny/law@1", "--json").stdout)["documents"][0]["text"] == CARD


def test_of_a_card_that_nobody_wrote_nothing_is_shown(shell: Shell, filled: Filled, tmp_path: Path) -> None:
    adapter = tiny.adapter(filled.base, tmp_path / "adapter", seed=9)  # PEFT writes the hub's template beside it
    template = (adapter / "README.md").read_text()
    assert template.count("[More Information Needed]") > 20
    assert telling_lines(template) == []
    shell("publish", adapter, "tiny/law", "--parent", "base")
    screen = on_terminal(shell.home, "show", "tiny/law@1")
    assert "documents     README.md" in screen
    assert "#" not in screen
    assert "more lines" not in screen


def test_of_a_card_is_shown_what_somebody_wrote_into_it(filled: Filled) -> None:
    template = (next(iter(filled.adapters.values())) / "README.md").read_text()
    written = template.replace(
        "### Direct Use\n\n<!-- This section is for the model use without fine-tuning or plugging into a larger "
        "ecosystem/app. -->\n\n[More Information Needed]",
        "### Direct Use\n\nAnswers questions about hearts.",
    ).replace("- **License:** [More Information Needed]", "- **License:** MIT")
    assert telling_lines(written) == [
        *("## Model Details", "### Model Description", "- **License:** MIT"),
        *("## Uses", "### Direct Use", "Answers questions about hearts."),
    ]
    card = "# Law\r\n\r\n## Empty\r\n\r\n## Data\r\n\r\ncontracts\r\n"
    assert telling_lines(card) == ["# Law", "## Data", "contracts"]
