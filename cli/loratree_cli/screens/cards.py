"""What a model card says: its lines without its fields for a hub, and without what the hub's template left in it."""

import re
from typing import Final

_FIELDS: Final = re.compile(r"\A---\r?\n.*?\n---\r?\n", re.DOTALL)  # YAML that a hub reads
_TAIL: Final = re.compile(r"\n#+ Framework versions\s+- PEFT [\w.]+\s*\Z")  # PEFT adds it to every card
_COMMENT: Final = re.compile(r"<!--.*?-->", re.DOTALL)
_HEADING: Final = re.compile(r"(#{1,6})\s")
# What huggingface_hub/templates/modelcard_template.md says where nobody wrote anything.
_TEMPLATE: Final = re.compile(
    r"\[More Information Needed\]\s*$"
    r"|^#{1,6} Model Card for Model ID$"
    r"|^Users \(both direct and downstream\) should be made aware of the risks, biases and limitations of the model\."
    r"|^Use the code below to get started with the model\.$"
    r"|^Carbon emissions can be estimated using the \[Machine Learning Impact calculator\]"
    r"|^\*\*(BibTeX|APA):\*\*$"
)


def telling_lines(text: str) -> list[str]:
    """Return the lines of a model card that say something, without empty lines and headings over nothing."""
    for left_out in (_FIELDS, _COMMENT, _TAIL):
        text = left_out.sub("", text)
    lines = text.splitlines()
    kept: list[str] = []
    deepest = 0  # the depth of the heading that was kept last, from below; 0: text
    for line in reversed([line.rstrip() for line in lines if line.strip() and not _TEMPLATE.search(line.strip())]):
        heading = _HEADING.match(line)
        if heading is None:
            kept.append(line)
            deepest = 0
        elif kept and (deepest == 0 or len(heading[1]) < deepest):
            kept.append(line)
            deepest = len(heading[1])
    return kept[::-1]
