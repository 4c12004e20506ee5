"""Which files of a base's checkpoint are stored with its weights, by their names."""

import re
from typing import Final

from loratree_registry.core.digests import FileDigest
from loratree_registry.core.paths import is_digest
from loratree_registry.errors import Invalid, listed
from loratree_registry.tensor_files.checkpoint import INDEX, WEIGHTS

CONFIG: Final = "config.json"
SHARD: Final = ".safetensors"
MAX_BESIDE: Final = 64 * 1024 * 1024  # bytes of a file that is no shard; the largest tokenizers have half of it
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# What describes a model and its tokenizer and is data alone: no program, nothing pickled.
_BESIDE = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".md")
_LICENSES = ("LICENSE", "NOTICE")


def is_beside(name: str) -> bool:
    """Tells whether a file beside the weights is stored with them; an adapter's would be loaded with the model."""
    return not name.startswith("adapter_") and (name.endswith(_BESIDE) or name in _LICENSES)


def check_names(files: list[FileDigest]) -> None:
    """Checks that the files are a checkpoint: its config, its weights once, what describes them. Raises Invalid."""
    names = sorted(file.name for file in files)
    problems = [f"{ascii(name)[:100]} is not one that is stored" for name in names if not _is_known(name)]
    problems += [f"{name} is there twice" for name in sorted({name for name in names if names.count(name) > 1})]
    if CONFIG not in names:
        problems.append(f"{CONFIG} is missing")
    if (WEIGHTS in names) == (INDEX in names):
        problems.append(f"either {WEIGHTS} or {INDEX} and its files are needed")
    problems += [f"{f.name} has {f.size} bytes" for f in files if not f.name.endswith(SHARD) and f.size > MAX_BESIDE]
    if problems:
        raise Invalid(f"the files are no checkpoint as save_pretrained writes one: {listed(problems)}")
    check_digests(files)


def check_digests(files: list[FileDigest]) -> None:
    """Checks the form of each file's digest. Raises Invalid."""
    if wrong := [f"{ascii(f.name)[:100]} has {ascii(f.sha256)[:100]}" for f in files if not is_digest(f.sha256)]:
        raise Invalid(f"a file's digest is sha256: and 64 hexadecimal digits: {listed(wrong)}")


def _is_known(name: str) -> bool:
    return bool(_NAME.fullmatch(name)) and (name.endswith(SHARD) or is_beside(name))
