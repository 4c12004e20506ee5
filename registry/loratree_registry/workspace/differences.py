"""What differs between the composition that a folder holds and the one that is asked for."""

from typing import Final

from loratree_registry.core.chain import Chain, Limit, Mode, Step, form, weight_number
from loratree_registry.core.text import weight_text
from loratree_registry.errors import Conflict, listed
from loratree_registry.workspace.lockfile import Lockfile

_SHOWN: Final = 3  # versions that are named


def check_same(lockfile: Lockfile, chain: Chain, mode: Mode, limit: Limit | None) -> None:
    """Check that a lockfile is of this chain in this form. Raises Conflict, which names what differs.

    The digest of a composition names the sum; a child is pinned to the paths and numbers, which it leaves out.
    """
    held, artifact = lockfile.chain, lockfile.artifact
    if (held, artifact.mode, artifact.limit) == (chain, mode, limit):
        return
    if _leaf_of(held) != _leaf_of(chain):
        wanted = f"{_leaf_of(chain)} ({form(mode, limit)})"
        raise Conflict(f"it holds {_leaf_of(held)} ({artifact.form}), expected {wanted}")
    if held == chain:
        raise Conflict(f"it holds {_leaf_of(chain)} as {artifact.form}, expected {form(mode, limit)}")
    differences = _differences(held, chain)
    if artifact.form != form(mode, limit):
        differences.insert(0, f"{artifact.form} instead of {form(mode, limit)}")
    says = listed(differences, limit=_SHOWN, length=300)
    raise Conflict(f"it holds another composition of {_leaf_of(chain)}: {says}")


def _differences(held: Chain, wanted: Chain) -> list[str]:
    """Return a clause for each place where what the folder holds differs from what is asked for."""
    if (held.base, held.base_digest) != (wanted.base, wanted.base_digest):
        return [f"the base {held.base} ({held.base_digest}) instead of {wanted.base} ({wanted.base_digest})"]
    paths = sorted({step.path for step in (*held.steps, *wanted.steps)}, key=lambda path: (path.count("/"), path))
    ours, theirs = ({step.path: step for step in chain.steps} for chain in (held, wanted))
    return [_describe(ours.get(path), theirs.get(path)) for path in paths if ours.get(path) != theirs.get(path)]


def _describe(held: Step | None, wanted: Step | None) -> str:
    if held is None:
        assert wanted is not None
        return f"no {_ref(wanted)}"
    if wanted is None:
        return f"{_ref(held)} too"
    if held.version != wanted.version:
        return f"{_ref(held)} instead of @{wanted.version}"
    if held.weight != wanted.weight:
        return f"{_ref(held)} at the weight {_number(held)} instead of {_number(wanted)}"
    return f"{_ref(held)} ({held.digest}) instead of {wanted.digest}"


def _number(step: Step) -> str:
    return weight_text(weight_number(step.weight))


def _ref(step: Step) -> str:
    return f"{step.path}@{step.version}"


def _leaf_of(chain: Chain) -> str:
    return _ref(chain.steps[-1]) if chain.steps else chain.base
