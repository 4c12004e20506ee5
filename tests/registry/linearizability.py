"""Whether what many clients saw of one register can have happened one thing after the other."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Operation:
    """What a client did between two moments: it found the register at `found` and left it at `left`.

    A read, and a compare-and-swap that was refused, leave what they find; one that was done finds what it expected.
    """

    began: int
    ended: int
    found: int
    left: int


def linearizable(history: Sequence[Operation], *, start: int) -> bool:
    """Tells whether there is an order of the operations, each at a moment between its ends, that a register can have.

    Wing and Gong's search (1993) with Lowe's memory of what was tried (2017): next may be any operation that began
    before all others that are left have ended; a set of operations done and a state are tried once.
    """
    operations = sorted(history, key=lambda operation: operation.began)
    tried: set[tuple[int, int]] = set()
    waiting = [(0, start)]  # the operations done, as bits, and where they left the register
    while waiting:
        done, state = waiting.pop()
        if done == (1 << len(operations)) - 1:
            return True
        if (done, state) not in tried:
            tried.add((done, state))
            waiting += [(done | 1 << place, operations[place].left) for place in _next(operations, done, state)]
    return False


def _next(operations: Sequence[Operation], done: int, state: int) -> list[int]:
    """The places of the operations that can come next; one is enough that changes nothing, as it is in nobody's way."""
    left = [place for place in range(len(operations)) if not done >> place & 1]
    first_end = min(operations[place].ended for place in left)
    able = [place for place in left if operations[place].began <= first_end and operations[place].found == state]
    idle = [place for place in able if operations[place].left == state]
    return idle[:1] or able
