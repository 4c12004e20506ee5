"""How documents are read that tests.documents runs, and that none of them names a command that does not exist."""

import re
from pathlib import Path

import pytest

from loratree_cli.main import COMMANDS
from tests.documents import blocks_of, is_like, steps_of

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = """
<!-- s3 -->
<!-- writes a.py -->
```python
x = 1
```

<!-- runs true -->
```console
$ loratree ls  # refused
no
$ cat <<X
> y
> X
y
```

```json
{}
```
"""


def test_blocks_and_steps_are_read() -> None:
    python, console, other = blocks_of(TEXT)
    assert (python.language, python.writes, python.before, python.lines) == ("python", "a.py", ["s3"], ["x = 1"])
    assert (console.language, console.before, other.language) == ("console", ["runs true"], "json")
    first, second = steps_of(console)
    assert (first.command, first.refused, first.printed) == ("loratree ls", True, ["no"])
    assert (second.command, second.refused, second.printed) == ("cat <<X\ny\nX", False, ["y"])
    lines = TEXT.splitlines()
    assert [lines[step.first : step.end] for step in (first, second)] == [["no"], ["y"]]


@pytest.mark.parametrize(
    ("said", "printed", "like"),
    [
        (["tiny@1  12.5 MB  abcdef012345"], ["tiny@23 900 B 0123456789ab"], True),
        (["sha256:" + "a1" * 32], ["sha256:" + "b2" * 32], True),
        (["2026-01-31T09:30:00Z"], ["2027-12-01T10:00:59.000001Z"], True),
        (["a", "…", "z"], ["a", "b", "c", "z"], True),
        (["a", "…"], ["a"], True),
        (["in …/out"], ["in /folder/out"], True),
        (["a"], ["a", "b"], False),
        (["a", "b"], ["a"], False),
        (["stale"], ["current"], False),
        ([], ["anything"], False),
    ],
)
def test_only_numbers_digests_and_times_may_differ(said: list[str], printed: list[str], like: bool) -> None:
    assert is_like(said, printed, "/folder") == like


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_each_command_that_a_document_names_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    named = set(re.findall(r"(?:`|\$ |^    )loratree ([a-z][a-z-]*)", text, flags=re.MULTILINE))
    assert named <= {*COMMANDS}, named - {*COMMANDS}


def test_each_console_block_says_what_is_printed() -> None:
    for document in DOCUMENTS:
        for block in blocks_of(document.read_text(encoding="utf-8")):
            if block.language == "console":
                assert steps_of(block), f"{document.name}:{block.first}"
