"""Manifest of a base: its tensors, and the digest that names it; standard library only."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from loratree_registry.core.digests import digest_json
from loratree_registry.errors import Invalid, listed

SCHEMA = "loratree/base/1"

MATRICES = ("Linear", "Conv1D")
MAX_DIMENSIONS: Final = 8
MAX_COUNT: Final = 2**53 - 1  # up to here a JSON number is exact
MAX_WORD: Final = 200  # characters of a dtype or of a module's class

# In the brackets of a layer's kind: the model reads the layer's weight without calling the layer.
PAST_FORWARD: Final = "past forward"


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
    """Every tensor of a base, sorted by name, and the facts that an adapter is checked against.

    `tied_to` in `parameters` says which names are one tensor in the base. A composed folder whose chain changes two
    such names differently says `tie_word_embeddings: false`, and transformers then takes more names apart than these
    two. `remaining_ties` maps each name that is still tied in such a folder to the first name of its tensor. It equals
    the base's own ties if no such folder can be written; None means that no name is tied there.

    Checkpoints of the base may store a tensor under an older name, or with the prefix of a base model added or removed:
    `stored_names` maps each such name to the parameter's. `leftovers` are names in a checkpoint that are no parameters.

    `casts` has the digests of embeddings and heads in other dtypes, by name and dtype code: PEFT saves copies of them
    beside a LoRA, in the dtype of the training. None if the base was recorded without them.

    `input_embedding` is the module that embeds the input, and `token_ties` are the modules that PEFT trains on the same
    token rows; None if the base was recorded without them.

    `older_modules` maps the names that modules had before transformers renamed them to the present ones, where PEFT
    renames them in an adapter's file too. `lost_modules` are those that PEFT does not.

    `expert_layers` maps a tensor with a matrix for each expert to the Linear layers that each expert had before, with
    `*` for the expert's number, where PEFT joins LoRAs on them. The matrix is their weights under one another.

    `weight_files` has the digests of the checkpoint's files by name, if its tensors cannot be compared one by one: an
    adapter that was trained on the same files was trained on the base.
    """

    parameters: tuple[Parameter, ...]
    architecture: str | None = None
    vocabulary_size: int | None = None
    remaining_ties: dict[str, str] | None = field(default=None, hash=False)
    stored_names: dict[str, str] | None = field(default=None, hash=False)
    leftovers: tuple[str, ...] = ()
    casts: dict[str, dict[str, str]] | None = field(default=None, hash=False)
    input_embedding: str | None = None
    token_ties: tuple[str, ...] | None = None
    older_modules: dict[str, str] | None = field(default=None, hash=False)
    lost_modules: dict[str, str] | None = field(default=None, hash=False)
    expert_layers: dict[str, list[str]] | None = field(default=None, hash=False)
    weight_files: dict[str, str] | None = field(default=None, hash=False)

    def by_name(self) -> dict[str, Parameter]:
        """Return the parameters, by their full names."""
        return {parameter.name: parameter for parameter in self.parameters}

    def ties(self) -> dict[str, str]:
        """Map each tied name of the base to the first name of its tensor."""
        return {parameter.name: parameter.tied_to for parameter in self.parameters if parameter.tied_to is not None}

    def tied_names(self) -> list[list[str]]:
        """Return the names of each tensor that has several names; the first name of a tensor comes first."""
        groups = defaultdict(list)
        for name, first in self.ties().items():
            groups[first].append(name)
        return [[first, *names] for first, names in sorted(groups.items())]

    def locate(self, stored: Iterable[str]) -> dict[str, str]:
        """Map each name in a checkpoint to the parameter that it stores, without leftovers; unknown names are kept."""
        own, other, leftovers = self.by_name(), self.stored_names or {}, set(self.leftovers)
        return {name: name if name in own else other.get(name, name) for name in stored if name not in leftovers}

    def with_layout(self, names: Mapping[str, str], leftovers: Iterable[str]) -> "BaseManifest":
        """Return the manifest that knows another checkpoint of the base too: its stored names, and its leftovers."""
        stored_names = (self.stored_names or {}) | {stored: name for stored, name in names.items() if stored != name}
        others = {*self.leftovers, *leftovers} - stored_names.keys()
        return replace(self, stored_names=stored_names or None, leftovers=tuple(sorted(others)))

    def widened_by(self, other: "BaseManifest") -> "BaseManifest":
        """Return the manifest with what `other`, of the same base, knows too: names and casts."""
        widened = self.with_layout(other.stored_names or {}, other.leftovers)
        return replace(
            widened,
            casts=_union(other.casts, self.casts),
            input_embedding=self.input_embedding or other.input_embedding,
            token_ties=self.token_ties if self.token_ties is not None else other.token_ties,
            older_modules=_union(other.older_modules, self.older_modules),
            lost_modules=_union(other.lost_modules, self.lost_modules),
            weight_files=self.weight_files or other.weight_files,
            expert_layers=_union(other.expert_layers, self.expert_layers),
        )

    def untied(self) -> "BaseManifest":
        """Return the manifest of a composed folder in which the names of a tie have different values."""
        own, remaining = self.by_name(), self.remaining_ties or {}
        parameters = []
        for name, parameter in own.items():
            sha256 = None if name in remaining else own[parameter.tied_to or name].sha256
            parameters.append(replace(parameter, tied_to=remaining.get(name), sha256=sha256))
        return replace(self, parameters=tuple(parameters))

    @property
    def digest(self) -> str:
        """The SHA-256 over every untied tensor's name, dtype, shape and bytes, which resharding does not change."""
        return digest_json({"schema": SCHEMA, "tensors": self.tensors()})

    def tensors(self) -> list[list[object]]:
        """Return [name, dtype, shape, sha256] of each untied tensor, sorted by name."""
        untied = (parameter for parameter in self.parameters if parameter.tied_to is None)
        return sorted([p.name, p.dtype, list(p.shape), p.sha256] for p in untied)


def _union(new: dict[str, Any] | None, known: dict[str, Any] | None) -> dict[str, Any] | None:
    return known if new is None else new | (known or {})


def read_manifest(document: dict[str, Any]) -> BaseManifest:
    """Return the manifest that `document`, its stored JSON, describes."""
    parameters = tuple(Parameter(**(stored | {"shape": tuple(stored["shape"])})) for stored in document["parameters"])
    lists = {name: document[name] for name in ("leftovers", "token_ties") if document.get(name) is not None}
    return BaseManifest(
        **(document | {"parameters": parameters} | {name: tuple(given) for name, given in lists.items()})
    )


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
    problems += _find_wrong_ties(manifest) + _find_wrong_layout(manifest)
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
    if len(parameter.shape) > MAX_DIMENSIONS:  # the product of a million large sizes would take hours
        problems.append(
            f"{ascii(parameter.name)[:100]} has {len(parameter.shape)} dimensions, at most {MAX_DIMENSIONS} are allowed"
        )
    for what, text in (("dtype", parameter.dtype), ("kind", parameter.kind)):
        if not text.isprintable() or len(text) > MAX_WORD:
            problems.append(f"{ascii(parameter.name)[:100]} has the {what} {ascii(text)[:100]}, expected one word")
    if parameter.kind in MATRICES and parameter.name.endswith(".weight") and len(parameter.shape) != 2:
        problems.append(
            f"{parameter.name} of a {parameter.kind} has shape {list(parameter.shape)}, expected two dimensions"
        )
    if (parameter.sha256 is None) == (parameter.tied_to is None):
        problems.append(f"{parameter.name} needs either a sha256 or a tensor that it is tied to")
    return problems


def _find_wrong_ties(manifest: BaseManifest) -> list[str]:
    """Return one clause for each remaining tie that is no tie of the base, or whose first name is tied too."""
    ties, remaining = manifest.ties(), manifest.remaining_ties or {}
    wrong = [
        name
        for name, first in remaining.items()
        if name == first or first in remaining or ties.get(name, name) != ties.get(first, first)
    ]
    return [f"{ascii(name)[:100]} cannot remain tied to {ascii(remaining[name])[:100]}" for name in sorted(wrong)]


def _find_wrong_layout(manifest: BaseManifest) -> list[str]:
    """Return one clause for each stored name or leftover that cannot be one."""
    own, other = manifest.by_name(), manifest.stored_names or {}
    problems = [
        f"{ascii(name)[:100]} {problem}" for name in (*other, *manifest.leftovers) if (problem := name_problem(name))
    ]
    problems += [
        f"{name} stands for {target}, which is no parameter" for name, target in other.items() if target not in own
    ]
    modules = {name.rpartition(".")[0] for name in own}
    embeddings = [manifest.input_embedding] if manifest.input_embedding is not None else []
    embeddings += manifest.token_ties or ()
    problems += [f"{ascii(name)[:100]} is no embedding: no such module" for name in embeddings if name not in modules]
    for older in (manifest.older_modules or {}, manifest.lost_modules or {}):
        problems += [f"{name} is an older name of no module" for name, new in older.items() if new not in modules]
        problems += [f"{name} is a module and an older name" for name in older if name in modules]
    problems += _find_wrong_experts(manifest.expert_layers or {}, own)
    doubtful = [name for name in (*other, *manifest.leftovers) if name in own] + sorted(
        other.keys() & set(manifest.leftovers)
    )
    return problems + [f"{name} cannot be a parameter and another stored name" for name in doubtful]


def _find_wrong_experts(layers: Mapping[str, list[str]], own: Mapping[str, Parameter]) -> list[str]:
    """Return one clause for each tensor that holds no experts, and each layer that is no expert's or is named twice."""
    problems = [f"{name} holds no experts" for name in layers if name not in own or len(own[name].shape) != 3]
    count = Counter(layer for names in layers.values() for layer in names)
    problems += [
        f"{ascii(layer)[:100]} is the layer of no expert" for layer in count if layer.split(".").count("*") != 1
    ]
    return problems + [f"{ascii(layer)[:100]} is named twice" for layer, times in count.items() if times > 1]


MAX_NAME: Final = 512


def name_problem(name: str) -> str | None:
    """Return a clause about a tensor's name that is wrong, or None if it is printable words joined by dots."""
    if len(name) > MAX_NAME:
        return f"has a name of {len(name)} characters, at most {MAX_NAME} are allowed"
    if not name.isprintable() or not all(name.split(".")):
        return "has a name that is not printable words joined by dots"
    return None
