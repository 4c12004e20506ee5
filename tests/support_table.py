"""docs/adapters.md: which of PEFT's adapters loratree composes, from the rows that the tests run.

Print it with `python -m tests.support_table > docs/adapters.md`.
"""

from typing import Final

from loratree_registry.peft_format import rules
from loratree_registry.peft_format.config import PEFT_VERSION
from loratree_registry.peft_format.findings import Refusal
from tests.cli.test_causes import CAUSES
from tests.composer.test_expert_layers import EXPERT_LAYERS
from tests.composer.test_older_names import OLDER_NAMES
from tests.hub_layouts import LAYOUTS
from tests.peft_adapters import ACCEPTED, Row
from tests.refused_adapters import BY_CONFIG, REFUSED
from tests.tool_adapters import WRITTEN

TESTS: Final = "tests/registry/peft_format/test_peft_adapters.py"
COMPOSED: Final = f"{TESTS}::test_the_spec_and_the_file_alone_compose_what_peft_computes"
FORMS: Final = (
    "tests/composer/test_stack_against_peft.py::test_an_adapter_stacked_or_merged_is_pefts_forward_and_leaves_no_trace"
)
FLAT: Final = "tests/composer/test_flatten_against_peft.py"
NAMED: Final = f"{TESTS}::test_what_is_not_composed_is_refused_by_name_and_nothing_else_is_said"

HEAD: Final = f"""# Which adapters are composed

This page lists what PEFT {PEFT_VERSION} can write, and what loratree does with it in a chain. Each row is a test of an
adapter that PEFT itself writes over a tiny base, or, for some refusals, of a config. `python -m tests.support_table`
prints this page, and a test compares this page with the output.

- **additive**: a low-rank delta. It adds to the levels above; a level weight multiplies it.
- **override**: a whole value, or whole rows. The deepest one replaces the levels above; deeper deltas add to it.
- **ordered**: DoRA, which rescales the running result. loratree applies these parts from root to leaf.

An adapter with an override or an ordered part takes a level weight of 0 or 1 only. If PEFT's forward and PEFT's merge
differ, loratree computes what the forward computes:

- Of two tied weights, only the weight that an adapter names changes.
- The delta of a MultiheadAttention's out_proj counts twice.

The column "forms" lists the [forms](composing.md) of a chain of two such adapters.
"""

BASES: Final = """## Bases as they lie on the hub

A base is what transformers loads from a checkpoint: `base add` follows its renamings, and leaves out what no model
reads. Each row is a case of `tests/composer/test_hub_layouts.py`, which composes two levels in every form and compares
them with PEFT's merge in float64 (1e-5).
"""
WRITTEN_HEAD: Final = """## Adapters as tools wrote them

Each row is a case of `tests/composer/test_tool_adapters.py`, `tests/composer/test_older_names.py` or
`tests/composer/test_expert_layers.py`.
"""
CAUSES_HEAD: Final = """## Mistakes that are named by their cause

Each row is a case of `tests/cli/test_causes.py`: the command's one sentence, and nothing is written.
"""


def page() -> str:
    """Return the page, with a newline at its end."""
    composed = [
        f"| {row.meaning} | {', '.join(row.rules)} | {', '.join(row.forms)} | `{row.name}` |" for row in ACCEPTED
    ]
    refused = [f"| {row.meaning} | {_said(row.reason)} | `{row.name}` |" for row in REFUSED]
    by_config = [f"| {meaning} | {_said(reason)} | `{test}` |" for meaning, reason, test in BY_CONFIG]
    parts = [
        HEAD,
        f"## Composed\n\nEach row is a case of three tests:\n\n- from the file alone: `{COMPOSED}[…]`\n"
        f"- merged and stacked: `{FORMS}[…]`\n- flattened: `{FLAT}`\n",
        "\n".join(["| adapter | rules | forms | test |", "|---|---|---|---|", *composed]) + "\n",
        "## Refused by name\n\n`publish` refuses each adapter in this table. A short test name is a case of\n"
        f"`{NAMED}[…]`.\n",
        "\n".join(["| adapter | what publishing says | test |", "|---|---|---|", *refused, *by_config]) + "\n",
    ]
    return "\n".join([*parts, *_tools()])


def _tools() -> list[str]:
    """Return the sections on checkpoints and adapters as they lie on the hub and as tools wrote them."""
    bases = [f"| {name} | {layout.says()} |" for name, layout in LAYOUTS.items()]
    written = [f"| {name} | composed as PEFT loads it |" for name in WRITTEN]
    written += [f"| {name} | {said} |" for name, said in (*OLDER_NAMES, *EXPERT_LAYERS)]
    causes = [f"| {name} | … {sentence} |" for name, (_, sentence) in CAUSES.items()]
    return [
        BASES,
        "\n".join(["| checkpoint | what its files hold otherwise |", "|---|---|", *bases]) + "\n",
        WRITTEN_HEAD,
        "\n".join(["| adapter | |", "|---|---|", *written]) + "\n",
        CAUSES_HEAD,
        "\n".join(["| what was given | what is said |", "|---|---|", *causes]) + "\n",
    ]


def _said(reason: str) -> str:
    """Return the message for a person, without the place in the adapter."""
    why = next((refusal.why for refusal in refusals() if refusal.name in reason), "")
    return reason.partition(" (")[0] + (f": {why}" if why else "")


def refusals() -> list[Refusal]:
    """Return every feature that is refused by its name."""
    return [refusal for refusal in vars(rules).values() if isinstance(refusal, Refusal)]


def rows() -> tuple[Row, ...]:
    """Return every row that the page has a line for."""
    return (*ACCEPTED, *REFUSED)


if __name__ == "__main__":
    print(page(), end="")
