"""A checkpoint's headers and index with more tensors in them, each behind the one whose value it starts from."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from loratree_registry.checkpoint import Checkpoint, Shard

Added = Mapping[str, list[str]]  # stored tensor → the names behind it


def widened_head(shard: Shard, added: Added) -> bytes:
    """The shard up to its first tensor: its own header where nothing is added to it.

    An added tensor is as large as the one before it and of its dtype, so whatever follows stays aligned.
    """
    tensors = shard.header.tensors
    if added.keys().isdisjoint(tensors):
        return shard.head()
    document: dict[str, object] = {"__metadata__": shard.header.metadata} if shard.header.metadata else {}
    start = 0
    for stored, tensor in tensors.items():
        for name in (stored, *added.get(stored, ())):
            end = start + tensor.end - tensor.start
            document[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
            start = end
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def widen_index(path: Path, base: Checkpoint, added: Added) -> None:
    """Writes the index at `path` again with the added tensors in it, and in its totals."""
    document = json.loads(path.read_text(encoding="utf-8"))
    totals = document.get("metadata", {})
    for stored, names in added.items():
        shard = base.shard_of[stored]
        tensor = shard.header.tensors[stored]
        for name in names:
            document["weight_map"][name] = shard.path.name
            if "total_size" in totals:
                totals["total_size"] += tensor.end - tensor.start
            if "total_parameters" in totals:
                totals["total_parameters"] += math.prod(tensor.shape)
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
