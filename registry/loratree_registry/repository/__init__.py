"""Every query, one function each, over a connection; none commits. No other package writes SQL."""

from loratree_registry.repository.aliases import delete_alias, insert_alias, list_aliases, move_alias
from loratree_registry.repository.bases import find_base, find_manifest, insert_base, list_bases
from loratree_registry.repository.blobs import blob_sizes, hold_blobs, lease_blob, record_stored
from loratree_registry.repository.events import insert_event, list_events
from loratree_registry.repository.nodes import (
    count_descendants,
    insert_node,
    list_children,
    list_descendants,
    lock_node,
    next_number,
    nodes_on_path,
    nodes_with_children,
)
from loratree_registry.repository.versions import (
    Selector,
    files_of,
    find_version,
    insert_version,
    list_dependents,
    list_versions,
    pinned_chain,
    versions_at_alias,
)

__all__ = [
    "Selector",
    "blob_sizes",
    "count_descendants",
    "delete_alias",
    "files_of",
    "find_base",
    "find_manifest",
    "find_version",
    "hold_blobs",
    "insert_alias",
    "insert_base",
    "insert_event",
    "insert_node",
    "insert_version",
    "lease_blob",
    "list_aliases",
    "list_bases",
    "list_children",
    "list_dependents",
    "list_descendants",
    "list_events",
    "list_versions",
    "lock_node",
    "move_alias",
    "next_number",
    "nodes_on_path",
    "nodes_with_children",
    "pinned_chain",
    "record_stored",
    "versions_at_alias",
]
