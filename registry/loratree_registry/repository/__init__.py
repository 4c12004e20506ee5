"""Every query, one function each, over a connection; none commits. No other package writes SQL."""

from loratree_registry.repository.aliases import aliases_of, delete_alias, insert_alias, list_aliases, move_alias
from loratree_registry.repository.base_files import files_of_base, insert_base_files
from loratree_registry.repository.bases import find_base, find_manifest, insert_base, list_bases
from loratree_registry.repository.blobs import blob_sizes, hold_blobs, lease_blob, record_stored
from loratree_registry.repository.collecting import (
    condemn,
    condemn_orphans,
    delete_blob,
    hold_condemned,
    list_condemned,
    list_idle,
    without_row,
)
from loratree_registry.repository.events import insert_event, list_events
from loratree_registry.repository.nodes import (
    count_descendants,
    insert_node,
    list_children,
    list_descendants,
    lock_node,
    nodes_on_path,
    nodes_with_children,
)
from loratree_registry.repository.publishing import insert_published, same_content
from loratree_registry.repository.tombstones import (
    bury_versions,
    expendable_versions,
    find_tombstone,
    list_tombstones,
)
from loratree_registry.repository.uploads import (
    delete_upload,
    find_resumable,
    find_upload,
    insert_upload,
    list_uploads,
)
from loratree_registry.repository.versions import (
    Selector,
    count_dependents,
    count_versions,
    files_of,
    find_version,
    list_dependents,
    list_versions,
    mark_version,
    pinned_chain,
    quarantined_above,
    versions_at_alias,
)

__all__ = [
    "Selector",
    "aliases_of",
    "blob_sizes",
    "bury_versions",
    "condemn",
    "condemn_orphans",
    "count_dependents",
    "count_descendants",
    "count_versions",
    "delete_alias",
    "delete_blob",
    "delete_upload",
    "expendable_versions",
    "files_of",
    "files_of_base",
    "find_base",
    "find_manifest",
    "find_resumable",
    "find_tombstone",
    "find_upload",
    "find_version",
    "hold_blobs",
    "hold_condemned",
    "insert_alias",
    "insert_base",
    "insert_base_files",
    "insert_event",
    "insert_node",
    "insert_published",
    "insert_upload",
    "lease_blob",
    "list_aliases",
    "list_bases",
    "list_children",
    "list_condemned",
    "list_dependents",
    "list_descendants",
    "list_events",
    "list_idle",
    "list_tombstones",
    "list_uploads",
    "list_versions",
    "lock_node",
    "mark_version",
    "move_alias",
    "nodes_on_path",
    "nodes_with_children",
    "pinned_chain",
    "quarantined_above",
    "record_stored",
    "same_content",
    "versions_at_alias",
    "without_row",
]
