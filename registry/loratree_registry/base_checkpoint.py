"""Whether a folder of safetensors files holds a base's weights, compared tensor by tensor without loading any."""

import hashlib
import os
from pathlib import Path
from typing import Final

from loratree_registry.adapter_directory import open_regular
from loratree_registry.canonical import DIGEST_PREFIX
from loratree_registry.errors import Invalid
from loratree_registry.manifest import BaseManifest, Parameter
from loratree_registry.safetensors_header import Header, read_header

_CHUNK: Final = 1024 * 1024


def holds_base(folder: Path, manifest: BaseManifest) -> bool:
    """Tells whether `folder`'s safetensors files hold exactly the base's tensors: names, dtypes, shapes and bytes.

    A tied tensor may be there under any of its names. Shapes are compared first, so that other models are told apart
    without reading their weights. A file that is not readable safetensors makes it another model.
    """
    expected = manifest.by_name()
    try:
        files = [(path, _header(path)) for path in sorted(folder.glob("*.safetensors"))]
        names = [name for _, header in files for name in header.tensors]
        if len(names) != len(set(names)) or not _covers(set(names), manifest):
            return False
        return all(_fits(header, expected) for _, header in files) and all(
            _same_bytes(path, header, expected) for path, header in files
        )
    except Invalid:
        return False


def _header(path: Path) -> Header:
    with open_regular(path) as stream:
        return read_header(stream, os.fstat(stream.fileno()).st_size, name=str(path))


def _covers(names: set[str], manifest: BaseManifest) -> bool:
    """Every untied tensor is there, by its own name or by one that is tied to it."""
    stored = {p.tied_to or p.name for p in manifest.parameters if p.name in names}
    return stored == {p.name for p in manifest.parameters if p.tied_to is None}


def _fits(header: Header, expected: dict[str, Parameter]) -> bool:
    return all(
        (parameter := expected.get(name)) is not None
        and (tensor.dtype, tensor.shape) == (parameter.dtype, parameter.shape)
        for name, tensor in header.tensors.items()
    )


def _same_bytes(path: Path, header: Header, expected: dict[str, Parameter]) -> bool:
    with open_regular(path) as stream:
        stream.seek(header.data_start)
        for name, tensor in header.tensors.items():
            hasher = hashlib.sha256()
            left = tensor.end - tensor.start
            while chunk := stream.read(min(left, _CHUNK)):
                hasher.update(chunk)
                left -= len(chunk)
            parameter = expected[name]
            source = expected[parameter.tied_to] if parameter.tied_to is not None else parameter
            if DIGEST_PREFIX + hasher.hexdigest() != source.sha256:
                return False
    return True
