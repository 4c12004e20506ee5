"""Manifest of a base: its tensors, and the digest that names it; standard library only."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

from loratree_registry.core.digests import digest_json
from loratree_registry.errors import Invalid, listed

SCHEMA = "loratree/base/1"

MATRICES = ("Linear", "Conv1D")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One tensor of a base: its name, its form and the digest of its bytes.

    `dtype` is a safetensors code (`F32`, `BF16`); `kind` is the class of the module that owns the tensor (`Linear`,
    `Conv1D`, `Embedding`, `LlamaRMSNorm`). A tied tensor names its source in `tied_to` and has no digest of its own.
    `sha256` hashes the tensor's bytes, little-endian and row-major, as safetensors stores them.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    tied_to: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseManifest:
    """Every tensor of a base, sorted by name, and the facts that an adapter is checked against."""

    parameters: tuple[Parameter, ...]
    architecture: str | None = None
    vocabulary_size: int | None = None

    def by_name(self) -> dict[str, Parameter]:
        """Return the parameters, by their full names."""
        return {parameter.name: parameter for parameter in self.parameters}

    @property
    def digest(self) -> str:
        """The SHA-256 over every untied tensor's name, dtype, shape and bytes, which resharding does not change."""
        return digest_json({"schema": SCHEMA, "tensors": self.tensors()})

    def tensors(self) -> list[list[object]]:
        """Return [name, dtype, shape, sha256] of each untied tensor, sorted by name."""
        untied = (parameter for parameter in self.parameters if parameter.tied_to is None)
        return sorted([p.name, p.dtype, list(p.shape), p.sha256] for p in untied)


def read_manifest(document: dict[str, Any]) -> BaseManifest:
    """Return the manifest that `document`, its stored JSON, describes."""
    parameters = tuple(Parameter(**(stored | {"shape": tuple(stored["shape"])})) for stored in document["parameters"])
    return BaseManifest(**(document | {"parameters": parameters}))


def check_manifest(manifest: BaseManifest) -> BaseManifest:
    """Check for unique names, a digest of each untied tensor, and ties to untied tensors, and return the manifest.

    A weight of MATRICES must have two dimensions, because LoRA needs a matrix. Raises Invalid, listing every problem.
    """
    names = [parameter.name for parameter in manifest.parameters]
    untied = {parameter.name for parameter in manifest.parameters if parameter.tied_to is None}
    problems = [f"{name} appears twice" for name, count in sorted(Counter(names).items()) if count > 1]
    for parameter in manifest.parameters:
        problems += _find_problems(parameter)
        if parameter.tied_to is not None and parameter.tied_to not in untied:
            problems.append(f"{parameter.name} is tied to {parameter.tied_to}, which is not an untied tensor")
    if not names:
        problems.append("it has no parameters")
    if problems:
        raise Invalid(f"the base's manifest is not usable: {listed(problems)}")
    return manifest


def _find_problems(parameter: Parameter) -> list[str]:
    """Return one clause for each problem of one parameter, without looking at the other parameters."""
    problems = []
    if problem := name_problem(parameter.name):
        problems.append(f"tensor {ascii(parameter.name)[:100]} {problem}")
    if parameter.kind in MATRICES and parameter.name.endswith(".weight") and len(parameter.shape) != 2:
        problems.append(
            f"{parameter.name} of a {parameter.kind} has shape {list(parameter.shape)}, expected two dimensions"
        )
    if (parameter.sha256 is None) == (parameter.tied_to is None):
        problems.append(f"{parameter.name} needs either a sha256 or a tensor that it is tied to")
    return problems


MAX_NAME: Final = 512


def name_problem(name: str) -> str | None:
    """Return a clause about a tensor's name that is wrong, or None if it is printable words joined by dots."""
    if len(name) > MAX_NAME:
        return f"has a name of {len(name)} characters, at most {MAX_NAME} are allowed"
    if not name.isprintable() or not all(name.split(".")):
        return "has a name that is not printable words joined by dots"
    return None
