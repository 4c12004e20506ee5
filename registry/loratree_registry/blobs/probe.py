"""What a blob store honours, found out by trying; everything that is written for that is removed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from loratree_registry.blobs import probe_local, probe_s3
from loratree_registry.blobs.local import LocalBlobStore
from loratree_registry.blobs.s3 import S3BlobStore
from loratree_registry.blobs.store import BlobStore
from loratree_registry.errors import Invalid, LoratreeError

Tried = TypeVar("Tried")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried, whether the store does it (None: that cannot be told), and a sentence about it."""

    name: str
    ok: bool | None
    says: str


def probe(store: BlobStore) -> list[Check]:
    """Tries everything that the store is asked to do; where it cannot be written to, that is the only check.

    Raises Invalid for a store of another kind than the two that there are.
    """
    if isinstance(store, LocalBlobStore):
        with probe_local.trial(store.root, store.setting) as folder:
            return _asked(probe_local.LOCAL_QUESTIONS, folder)
    if isinstance(store, S3BlobStore):
        with probe_s3.trial(store.bucket) as bucket:
            return _asked(probe_s3.S3_QUESTIONS, bucket)
    raise Invalid(f"{store} is no folder and no bucket: nothing is known of what to try")


def _asked(questions: Mapping[str, Callable[[Tried], tuple[bool | None, str]]], tried: Tried) -> list[Check]:
    checks: list[Check] = []
    for name, question in questions.items():
        try:
            ok, says = question(tried)
        except LoratreeError as error:
            ok, says = False, str(error)
        checks.append(Check(name, ok, says))
        if not checks[0].ok:
            break
    return checks
