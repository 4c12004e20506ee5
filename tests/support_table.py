"""docs/adapters.md: what is composed of all that PEFT writes, from the rows that the tests run.

Print it with `python -m tests.support_table > docs/adapters.md`.
"""

from typing import Final

from loratree_registry.peft_format import rules
from loratree_registry.peft_format.config import PEFT_VERSION
from loratree_registry.peft_format.findings import Refusal
from tests.peft_adapters import ACCEPTED, Row
from tests.refused_adapters import BY_CONFIG, REFUSED

TESTS: Final = "tests/registry/peft_format/test_peft_adapters.py"
COMPOSED: Final = f"{TESTS}::test_the_spec_and_the_file_alone_compose_what_peft_computes"
FORMS: Final = (
    "tests/composer/test_stack_against_peft.py::test_an_adapter_stacked_or_merged_is_pefts_forward_and_leaves_no_trace"
)
FLAT: Final = "tests/composer/test_flatten_against_peft.py"
NAMED: Final = f"{TESTS}::test_what_is_not_composed_is_refused_by_name_and_nothing_else_is_said"

HEAD: Final = f"""# Which adapters are composed

What PEFT {PEFT_VERSION} can write, and what becomes of it in a chain. Each row is an adapter that PEFT itself writes
over a tiny base, and a test. `python -m tests.support_table` prints this page, and a test holds it to what is printed.

- **additive**: a low-rank delta, which adds to what lies above; a level weight multiplies it.
- **override**: a whole value, or whole rows: the deepest replaces what lay above, deeper deltas add to it.
- **ordered**: DoRA, which rescales the running result; applied root to leaf.

An adapter with an override or an ordered part takes a level weight of 0 or 1 only. What counts as right is what PEFT's
forward computes, where its merge differs: of tied weights only the one that an adapter names changes, and the delta of
a MultiheadAttention's out_proj counts twice.

The [forms](composing.md) are those that a chain of two such adapters takes.
"""


def page() -> str:
    """The page, ended by a newline."""
    composed = [
        f"| {row.meaning} | {', '.join(row.rules)} | {', '.join(row.forms)} | `{row.name}` |" for row in ACCEPTED
    ]
    refused = [f"| {row.meaning} | {_said(row.reason)} | `{row.name}` |" for row in REFUSED]
    by_config = [f"| {meaning} | {_said(reason)} | `{test}` |" for meaning, reason, test in BY_CONFIG]
    parts = [
        HEAD,
        f"## Composed\n\nThe tests are `{COMPOSED}[…]`\nand, merged and stacked, `{FORMS}[…]`;\nflattened, `{FLAT}`.\n",
        "\n".join(["| adapter | rules | forms | test |", "|---|---|---|---|", *composed]) + "\n",
        f"## Refused by name\n\nThe test is `{NAMED}[…]`,\nor the one that is named.\n",
        "\n".join(["| adapter | what publishing says | test |", "|---|---|---|", *refused, *by_config]) + "\n",
    ]
    return "\n".join(parts)


def _said(reason: str) -> str:
    """What a person reads, without the place where it shows."""
    why = next((refusal.why for refusal in refusals() if refusal.name in reason), "")
    return reason.partition(" (")[0] + (f": {why}" if why else "")


def refusals() -> list[Refusal]:
    """Every feature that is refused by its name."""
    return [refusal for refusal in vars(rules).values() if isinstance(refusal, Refusal)]


def rows() -> tuple[Row, ...]:
    """Every row that the page has a line for."""
    return (*ACCEPTED, *REFUSED)


if __name__ == "__main__":
    print(page(), end="")
