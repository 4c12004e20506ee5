"""Where bytes are kept, by their digest."""

from loratree_registry.blobs.store import BlobStore

__all__ = ["BlobStore"]
