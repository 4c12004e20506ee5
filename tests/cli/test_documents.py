"""A model card goes with its adapter: published, shown, pulled again."""

import json
import shutil
from pathlib import Path

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
    assert "Trained on" not in shown  # a pipe gets fields alone
    assert json.loads(shell("show", "tiny/law@1", "--json").stdout)["documents"] == [
        {"name": "README.md", "text": CARD}
    ]
    screen = on_terminal(shell.home, "show", "tiny/law@1")
    assert "# Law" in screen
    assert "license" not in screen
    assert "\x1b[2J" not in screen
    assert "… 23 more lines: --json and `loratree pull` have them" in screen
    shell("pull", "tiny/law", "--out", tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text() == CARD
