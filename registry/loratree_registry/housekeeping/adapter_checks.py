"""A check of versions that are recorded: would publish take them today, as they are recorded?"""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from loratree_registry.blobs.store import BlobStore
from loratree_registry.catalog.examining import Examiner
from loratree_registry.catalog.inspection import Inspections
from loratree_registry.core.digests import FileDigest
from loratree_registry.core.manifest import BaseManifest
from loratree_registry.core.paths import BASE, base_of
from loratree_registry.core.records import AdapterSummary, PinSource, Submission
from loratree_registry.core.text import shortened
from loratree_registry.errors import Invalid, LoratreeError
from loratree_registry.housekeeping.exports.format import VersionLine

_THREADS = 4
_AHEAD = 32  # versions that are read at the same time or wait for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What a registry or an export records of a version. `pin` is the pin's path and number, None for the base."""

    path: str
    number: int
    content: str
    pin: tuple[str, int] | None
    found: PinSource
    config: dict[str, Any]
    summary: AdapterSummary
    files: list[FileDigest]

    @classmethod
    def of_line(cls, line: VersionLine) -> "Recorded":
        """Return what a line of an export records."""
        return cls(
            path=line.path,
            number=line.number,
            content=line.content,
            pin=(line.pin.path, line.pin.number) if line.pin else None,
            found=line.found,
            config=line.config,
            summary=line.summary,
            files=[FileDigest(file.name, file.size, file.sha256) for file in line.files],
        )

    @property
    def key(self) -> tuple[str, int]:
        """The version's path and number."""
        return self.path, self.number

    @property
    def ref(self) -> str:
        """The version's ref, PATH@NUMBER."""
        return f"{self.path}@{self.number}"

    def to_submission(self) -> Submission:
        """Return the submission that publishes this version."""
        parent = f"{self.pin[0]}@{self.pin[1]}" if self.pin else BASE
        assumed = self.found == "assumed"
        return Submission(
            config=self.config, files=self.files, parent=None if assumed else parent, found=self.found, level=None
        )


class AdapterChecks:
    """The check of many versions, against the manifests of their bases, by the bytes that are stored.

    Each weights file is read once for each of its versions: that every value is finite, that config and tensors are an
    adapter of the base, and that content digest and summary are those that publish would record.
    """

    def __init__(self, blobs: BlobStore, manifests: Mapping[str, BaseManifest]) -> None:
        self._blobs = blobs
        self._examiners = {name: Examiner(manifest) for name, manifest in manifests.items()}
        self._inspections = Inspections()
        self._untied: set[tuple[str, int]] = set()  # versions whose chain takes ties of the base apart

    def problems(self, versions: Iterable[Recorded]) -> Iterator[tuple[Recorded, LoratreeError | None]]:
        """Yield each version with what is wrong with it, or None. A version comes after the version it is pinned to."""
        waiting = []
        with ThreadPoolExecutor(_THREADS) as threads:
            for version in versions:
                untied = version.pin in self._untied
                if untied or version.summary.unties:
                    self._untied.add(version.key)
                waiting.append((version, threads.submit(self._problem_of, version, untied=untied)))
                if len(waiting) >= _AHEAD:
                    first, result = waiting.pop(0)
                    yield first, result.result()
            for version, result in waiting:
                yield version, result.result()

    def take_apart(self, version: tuple[str, int]) -> None:
        """Note that the chain of a version, which is not checked itself, takes ties of the base apart."""
        self._untied.add(version)

    def _problem_of(self, version: Recorded, *, untied: bool) -> LoratreeError | None:
        try:
            examiner = self._examiners[base_of(version.path)]
            submission = version.to_submission()
            if len(version.files) != 1:
                raise Invalid(f"it has {len(version.files)} files, expected one")
            inspection = self._inspections.read(
                self._blobs, version.files[0], partial(examiner.check_shapes, submission)
            )
            examiner.check_published(
                inspection,
                version.path,
                submission,
                content=version.content,
                summary=version.summary,
                untied=untied,
            )
        except LoratreeError as error:
            return error
        return None


def describe(version: Recorded, error: LoratreeError) -> str:
    """Return a clause that says what is wrong with a version."""
    return f"{version.ref} is not what publish would take: {shortened(str(error), 300)}"
