"""The files of a base's checkpoint that are stored, chosen by their names."""

import re
from collections import Counter
from typing import Final

from loratree_registry.core.digests import FileDigest
from loratree_registry.core.paths import is_digest
from loratree_registry.errors import Invalid, listed
from loratree_registry.tensor_files.checkpoint import INDEX, WEIGHTS

CONFIG: Final = "config.json"
SHARD: Final = ".safetensors"
MAX_FILES: Final = 1_000  # of a checkpoint; the largest ones have about 200 shards
MAX_BESIDE: Final = 64 * 1024 * 1024  # bytes of a file that is no shard; the largest tokenizers have half as many
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# Files that describe a model and its tokenizer, and that are only data: no programs, no pickles.
_BESIDE = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".md")
_LICENSES = ("LICENSE", "NOTICE")


def is_beside(name: str) -> bool:
    """Return whether a file beside the weights is stored. An adapter is not, because it would load with the model."""
    return not name.startswith("adapter_") and (name.endswith(_BESIDE) or name in _LICENSES)


def check_names(files: list[FileDigest]) -> None:
    """Check that the files are a checkpoint: a config, the weights once, and only known files. Raises Invalid."""
    check_listing(files)
    check_digests(files)


def check_listing(files: list[FileDigest]) -> None:
    """Check the names and sizes of a checkpoint's files, before any of them is read. Raises Invalid."""
    _check_count(files)
    names = sorted(file.name for file in files)
    problems = [f"{ascii(name)[:100]} is not one that is stored" for name in names if not _is_known(name)]
    problems += [f"{ascii(name)[:100]} is listed twice" for name, count in Counter(names).items() if count > 1]
    if CONFIG not in names:
        problems.append(f"{CONFIG} is missing")
    if (WEIGHTS in names) == (INDEX in names):
        problems.append(f"either {WEIGHTS} or {INDEX} and its files are needed")
    problems += [f"{f.name} has {f.size} bytes" for f in files if not f.name.endswith(SHARD) and f.size > MAX_BESIDE]
    if problems:
        raise Invalid(
            f"the files are not a checkpoint as save_pretrained writes it: {listed(problems)}", details=problems
        )


def check_digests(files: list[FileDigest]) -> None:
    """Check the number of the files, and the form of each digest and size. Raises Invalid."""
    _check_count(files)
    if wrong := [f"{ascii(f.name)[:100]} has {ascii(f.sha256)[:100]}" for f in files if not is_digest(f.sha256)]:
        raise Invalid(f"a file's digest must be sha256: and 64 hexadecimal digits: {listed(wrong)}", details=wrong)
    if wrong := [f"{ascii(f.name)[:100]} has {f.size}" for f in files if f.size < 0]:
        raise Invalid(f"a file's size is a number of bytes, from 0: {listed(wrong)}", details=wrong)


def _check_count(files: list[FileDigest]) -> None:
    if len(files) > MAX_FILES:
        raise Invalid(f"a checkpoint holds at most {MAX_FILES} files, got {len(files)}: save it in larger shards")


def _is_known(name: str) -> bool:
    return bool(_NAME.fullmatch(name)) and (name.endswith(SHARD) or is_beside(name))
