"""A folder that PEFT or a transformers Trainer wrote: the adapter in it, and the files that are not published."""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from loratree_registry.blobs.counted import counted
from loratree_registry.blobs.hashing import hashing
from loratree_registry.core.digests import FileDigest, content_digest
from loratree_registry.core.documents import ENDINGS, MAX_DOCUMENT, Document, choose
from loratree_registry.core.manifest import BaseManifest
from loratree_registry.core.progress import Counter, Progress, silent
from loratree_registry.core.records import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from loratree_registry.core.strict_json import parse_json
from loratree_registry.disk.plain_files import check_links, open_plain, read_plain
from loratree_registry.errors import Invalid, NotFound
from loratree_registry.peft_format.classify import canonical_config, check_without_values, classify, is_zero, warnings
from loratree_registry.peft_format.spec import AdapterSpec
from loratree_registry.peft_format.tensors import FACTORS
from loratree_registry.tensor_files.header import Header, read_header
from loratree_registry.workspace.other_folders import RESAVE, explain_no_config, explain_no_weights

MAX_CONFIG: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterDirectory:
    """An adapter on this machine, read and checked, but not yet against its base.

    One pass over the weights reads `header`, checks that the values are finite, and computes `digests` and the digest
    in `file`, so the bytes checked are the bytes hashed. `documents` are the small texts of the folder, such as its
    README.md, and `not_published` names all other files.
    """

    path: Path
    config: dict[str, Any]
    canonical: dict[str, Any]
    weights: Path
    file: FileDigest
    header: Header
    digests: dict[str, str]
    documents: dict[str, str]
    not_published: list[str]

    @property
    def content(self) -> str:
        """The content digest: the same adapter has the same one at every path."""
        return content_digest(self.canonical, [self.file])

    @property
    def base_name(self) -> str | None:
        """The model that the config says the adapter was trained on, or None if it names none."""
        name = self.config.get("base_model_name_or_path")
        return name if isinstance(name, str) and name.strip() else None

    def spec(self, manifest: BaseManifest, *, on_base: bool = True, untied: bool = False) -> AdapterSpec:
        """Classify the modules and check them against a base. Raises Invalid: the folder, then every problem.

        `untied` is true if the ancestors that the adapter was trained on had taken ties of the base apart.
        """
        try:
            return classify(self.config, self.header, manifest, digests=self.digests, on_base=on_base, untied=untied)
        except Invalid as error:
            raise Invalid(f"{self.path}: {error}", details=error.details) from error

    def check_against(self, manifest: BaseManifest, *, on_base: bool = True, untied: bool = False) -> None:
        """Check the modules against a base as `spec` does, only for its errors. Raises Invalid."""
        self.spec(manifest, on_base=on_base, untied=untied)

    def check_without_pin(self, manifest: BaseManifest, *, on_base: bool = False) -> None:
        """Check what does not depend on the pin.

        Raises Invalid if the adapter fits the base neither with its ties nor without them.
        """
        try:
            self.check_against(manifest, on_base=on_base)
        except Invalid:
            if not manifest.ties():
                raise
            with suppress(Invalid):
                return self.check_against(manifest, on_base=on_base, untied=True)
            raise

    def warnings(self, spec: AdapterSpec) -> list[str]:
        """Return warnings about a valid adapter that a person should look at."""
        return warnings(self.config, spec, is_zero=is_zero(spec, self.digests))


def read_adapter_directory(
    path: Path, manifest: BaseManifest | None = None, *, progress: Progress = silent
) -> AdapterDirectory:
    """Read the adapter in `path`, check that its values are finite, and hash its file.

    With a manifest, the tensors' shapes are compared with the base's before a value is read.
    Raises NotFound if there is no such folder, Invalid if it holds no adapter that can be published.
    """
    entries = _list_names(path)
    check_links(path)
    if ADAPTER_CONFIG not in entries:
        raise Invalid(explain_no_config(path, entries))
    config = read_config(path / ADAPTER_CONFIG)
    if ADAPTER_WEIGHTS not in entries:
        raise Invalid(explain_no_weights(path, entries))
    canonical, documents = _canonicalize(path / ADAPTER_CONFIG, config), _read_documents(path, entries)
    check = partial(_check_shapes, path, config, manifest)
    file, header, digests = _read_weights(path / ADAPTER_WEIGHTS, check, progress)
    return AdapterDirectory(
        path=path,
        config=config,
        canonical=canonical,
        weights=path / ADAPTER_WEIGHTS,
        file=file,
        header=header,
        digests=digests,
        documents=documents,
        not_published=[name for name in entries if name not in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, *documents)],
    )


def read_config(path: Path) -> dict[str, Any]:
    """Read an adapter_config.json: an object without duplicate keys, NaN or Infinity. Raises Invalid."""
    try:
        config = parse_json(read_plain(path, limit=MAX_CONFIG, remedy=RESAVE))
    except ValueError as error:
        raise Invalid(f"{path} is not usable JSON ({error}): {RESAVE}") from error
    if not isinstance(config, dict):
        raise Invalid(f"{path} is not a JSON object: {RESAVE}")
    return config


def _read_documents(path: Path, entries: list[str]) -> dict[str, str]:
    """Read the small texts of the folder that a version keeps. What is a link, too large or no text is left out."""
    found = []
    for name in entries:
        file = path / name
        if name.lower().endswith(ENDINGS) and file.is_file() and not file.is_symlink():
            with suppress(Invalid, UnicodeDecodeError):
                found.append(Document(name, read_plain(file, limit=MAX_DOCUMENT, remedy="").decode()))
    return choose(found)


def _list_names(path: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in path.iterdir())
    except FileNotFoundError as error:
        raise NotFound(f"{path} does not exist: give the folder that save_pretrained or a Trainer wrote") from error
    except NotADirectoryError as error:
        raise Invalid(f"{path} is a file: give the folder that holds {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}") from error
    except OSError as error:
        raise Invalid(f"{path} cannot be read: {error.strerror}") from error


def _check_shapes(path: Path, config: dict[str, Any], manifest: BaseManifest | None, header: Header) -> None:
    """Check what the header says against the base, as classify does without digests. Raises Invalid."""
    if manifest is None:
        return
    try:
        check_without_values(config, header, manifest)
    except Invalid as error:
        raise Invalid(f"{path}: {error}", details=error.details) from error


def _read_weights(
    path: Path, check: Callable[[Header], None], progress: Progress
) -> tuple[FileDigest, Header, dict[str, str]]:
    from loratree_registry.tensor_files.finite import check_finite  # numpy

    with open_plain(path, remedy=RESAVE) as stream:
        size = os.fstat(stream.fileno()).st_size
        counter = Counter(progress, f"reading {path}", size)
        with hashing(counted(stream, counter.add)) as hashed:
            header = read_header(hashed.stream, size, name=str(path))
            check(header)
            digests = check_finite(hashed.stream, header, undigested=FACTORS, name=str(path))
            if hashed.stream.read(1):
                raise Invalid(f"{path} grew while it was read: wait until it is written and publish again")
            return FileDigest(path.name, size, hashed.finish()[0]), header, digests


def _canonicalize(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    try:
        return canonical_config(config)
    except Invalid as error:
        raise Invalid(f"{path.parent}: {error}") from error
