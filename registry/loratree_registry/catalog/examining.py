"""Examining an adapter before it is published, without a database.

Thousands of users publish adapters that differ in their values alone: the same config, tensor names, dtypes and shapes.
What is found out about one of them holds for all, so an Examiner computes it once.
"""

import threading
from collections import OrderedDict
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, get_args

from loratree_registry.catalog.inspection import Inspection
from loratree_registry.core.digests import canonical_json, content_digest_of
from loratree_registry.core.documents import check_documents
from loratree_registry.core.manifest import BaseManifest
from loratree_registry.core.paths import BASE, base_of, is_digest, parse_path, versionless
from loratree_registry.core.records import ADAPTER_WEIGHTS, AdapterSummary, PinSource, Submission
from loratree_registry.core.text import check_text
from loratree_registry.database.json_text import JsonText, to_json
from loratree_registry.errors import Invalid, listed
from loratree_registry.peft_format.classify import (
    canonical_config,
    check_without_values,
    classify,
    is_zero,
    summarize,
    warnings,
)
from loratree_registry.peft_format.spec import AdapterSpec
from loratree_registry.tensor_files.header import ZEROS, Header

KEPT: Final = 64  # results of one base
KEPT_BYTES: Final = 512 * 1024  # of a header and a config: what larger ones give is not kept

_Key = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Examined:
    """A checked submission: its canonical config, the adapter's parts and summary, and the content digest.

    `canonical` is the config as canonical JSON, and `columns` the config and the summary as the database stores them.

    `untied` is true if the adapter was read as one that was trained where its ancestors had taken ties apart.
    `warnings` are for a pin to the base (true) and for another one (false); matching a config's patterns may take long,
    so it is done before the transaction that writes.
    """

    config: dict[str, Any]
    canonical: bytes
    columns: dict[str, JsonText]
    spec: AdapterSpec
    summary: AdapterSummary
    content: str
    untied: bool
    warnings: dict[bool, list[str]]


def check_submission(path: str, submission: Submission) -> None:
    """Check everything that needs no database and no file. Raises Invalid."""
    if "/" not in parse_path(path):
        raise Invalid(versionless(path))
    names = [file.name for file in submission.files]
    if names != [ADAPTER_WEIGHTS]:
        raise Invalid(f"a version holds exactly the file {ADAPTER_WEIGHTS}: got {listed(names) or 'none'}")
    if wrong := [file.sha256 for file in submission.files if not is_digest(file.sha256)]:
        raise Invalid(f"a file's digest is sha256: and 64 hexadecimal digits: got {listed(wrong)}")
    if submission.found not in get_args(PinSource):
        raise Invalid(f"the pin's source is {submission.found!r}: expected one of {', '.join(get_args(PinSource))}")
    if (submission.found == "assumed") != (submission.parent is None):
        raise Invalid(
            f"the parent is {submission.parent or 'not given'} and its source {submission.found}: "
            "an assumed pin names no parent, any other names one"
        )
    check_text("note", submission.note, limit=2000)
    check_documents(submission.documents)


class Examiner:
    """The checks of adapters against one base; it is thread-safe.

    It keeps the last KEPT results. A result depends on the config, on the file's header and on the base, and on values
    only by the digests of copies, trained modules and zeros: a file with a digest of its values is examined each time.
    """

    def __init__(self, manifest: BaseManifest) -> None:
        self._manifest = manifest
        self._known: OrderedDict[_Key, Examined | None] = OrderedDict()
        self._lock = threading.Lock()

    def check_shapes(self, submission: Submission, header: Header) -> None:
        """Check what a header says against the base, before the values behind it are read. Raises Invalid."""
        try:
            key: _Key = ("shapes", canonical_json(submission.config), header.digest)
        except ValueError:  # `examine` says what is wrong with it
            check_without_values(submission.config, header, self._manifest)
            return
        if not self._find(key)[0]:
            check_without_values(submission.config, header, self._manifest)
            self._keep(key, None, header)

    def examine(self, inspection: Inspection, path: str, submission: Submission, *, untied: bool = False) -> Examined:
        """Check an adapter, after its weights were read, against its base. Raises Invalid.

        `untied` is true if the chain that it was trained on takes ties of the base apart.
        """
        try:
            config = canonical_config(submission.config)
            canonical = canonical_json(config)
            content = content_digest_of(canonical, submission.files)
        except ValueError as error:
            raise Invalid(f"the adapter's config has no canonical form: {error}") from error
        # An assumed pin (None) counts as the base: nothing says that the adapter was trained on a composed model, so
        # its copies of weights must be the base's.
        on_base = submission.parent in (None, BASE, base_of(path))
        header, digests = inspection.header, inspection.digests
        key: _Key = ("whole", canonical, header.digest, on_base, untied, frozenset(digests))
        is_alike = all(digest == ZEROS for digest in digests.values())
        known = self._find(key)[1] if is_alike else None
        if known is None:
            known = self._examine(config, canonical, inspection, on_base=on_base, untied=untied)
            if is_alike:
                self._keep(key, known, header)
        # Records that callers may change are theirs alone.
        return replace(known, config=deepcopy(known.config), summary=deepcopy(known.summary), content=content)

    def check_published(
        self,
        inspection: Inspection,
        path: str,
        submission: Submission,
        *,
        content: str,
        summary: AdapterSummary,
        untied: bool,
    ) -> None:
        """Check a version that is recorded, here or in an export, as if it were published now.

        `submission` is what its publisher sent; `content` and `summary` are what is recorded. Raises Invalid.
        """
        check_submission(path, submission)
        examined = self.examine(inspection, path, submission, untied=untied)
        if examined.content != content:
            raise Invalid(f"its config and files give the content {examined.content}, recorded is {content}")
        recorded, actual = asdict(summary), asdict(examined.summary)
        wrong = [
            f"{name} {recorded[name]!r:.60} for {actual[name]!r:.60}"
            for name in actual
            if recorded[name] != actual[name]
        ]
        if wrong:
            raise Invalid(f"its summary says something else than its files: {listed(wrong, limit=3)}")

    def _examine(
        self, config: dict[str, Any], canonical: bytes, inspection: Inspection, *, on_base: bool, untied: bool
    ) -> Examined:
        header, digests, manifest = inspection.header, inspection.digests, self._manifest
        spec = classify(config, header, manifest, digests=digests, on_base=on_base, untied=untied)
        summary = summarize(spec, config, header, manifest, digests=digests, on_base=on_base, untied=untied)
        does_nothing = is_zero(spec, digests)
        said = {on_base: warnings(config, spec, on_base=on_base, is_zero=does_nothing) for on_base in (True, False)}
        columns = {"config": to_json(config), "summary": to_json(asdict(summary))}
        return Examined(config, canonical, columns, spec, summary, "", untied, said)

    def _find(self, key: _Key) -> tuple[bool, Examined | None]:
        """Return whether there is a result for a key, and the result."""
        with self._lock:
            if key not in self._known:
                return False, None
            self._known.move_to_end(key)
            return True, self._known[key]

    def _keep(self, key: _Key, result: Examined | None, header: Header) -> None:
        if header.data_start + sum(len(part) for part in key if isinstance(part, bytes)) > KEPT_BYTES:
            return
        with self._lock:
            self._known[key] = result
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
