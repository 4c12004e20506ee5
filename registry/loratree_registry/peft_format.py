"""A PEFT LoRA adapter's config and safetensors header → AdapterSpec, every module classified; standard library only.

Read from PEFT 0.21.2. What each part of an adapter becomes, or why it is refused, is the table in peft_rules; this
module looks it up. Nothing is dropped: a tensor is a factor of a module, or it is named in the error.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

from loratree_registry.adapter_spec import AdapterSpec, ModuleSpec
from loratree_registry.errors import Invalid, listed
from loratree_registry.manifest import BaseManifest, Parameter
from loratree_registry.module_patterns import ModulePatterns
from loratree_registry.peft_fields import PEFT_VERSION, canonical_config, differs, unknown_fields
from loratree_registry.peft_files import PREFIX
from loratree_registry.peft_rules import (
    BASE_COPY,
    BIAS,
    CHANGED_BASE,
    CHANGING_INITS,
    PARAMETERS,
    PAST_FORWARD,
    PLAIN_INITS,
    READ_PAST_FORWARD,
    REFUSED_FIELDS,
    REFUSED_KINDS,
    REFUSED_TENSORS,
    RULES,
    SAVED,
    TIED,
    VOCABULARY,
    Refusal,
)
from loratree_registry.safetensors_header import Header
from loratree_registry.scaling import Scaling, read_scaling, shown
from loratree_registry.target_modules import TargetModules, left_out

__all__ = ["canonical_config", "classify", "warnings"]

FLOATS: Final = ("F16", "BF16", "F32", "F64")
_A, _B = ".lora_A.weight", ".lora_B.weight"


def classify(
    config: Mapping[str, Any],
    header: Header,
    manifest: BaseManifest,
    *,
    digests: Mapping[str, str] | None = None,
) -> AdapterSpec:
    """Checks an adapter against its base and says what each of its modules is.

    `config` is adapter_config.json as PEFT wrote it, or its canonical form. `digests` are those of the tensors' bytes:
    PEFT saves the base's own lm_head beside a LoRA on it, and only the very same bytes are no problem; without them,
    for an adapter that was published, they were compared then. Raises Invalid, listing every problem at once: refused
    features, unknown fields and tensors, lone factors, and shapes as what, expected and found.
    """
    if config.get("peft_type") != "LORA":
        raise Invalid(f"the adapter cannot be published: its peft_type is {shown(config.get('peft_type'))}, not LORA")
    reader = _Reader(config, header, manifest, digests)
    reader.read_config()
    reader.read_tensors()
    reader.check_targets()
    modules = tuple(module for name in sorted(reader.factors) if (module := reader.module(name)) is not None)
    problems = reader.problems()
    if not modules and not problems:
        problems = ["it holds no lora_A and lora_B"]
    if problems:
        raise Invalid(f"the adapter cannot be published: {listed(problems)}")
    return AdapterSpec(modules, tuple(sorted(reader.copies)))


def warnings(config: Mapping[str, Any], spec: AdapterSpec) -> list[str]:
    """What a person should look at although the adapter is valid: copies of the base, pattern keys that disagree."""
    found = []
    if spec.copies:
        found.append(
            f"it repeats weights of the base, which nothing reads ({listed(list(spec.copies), limit=3)}): "
            "save_pretrained(…, save_embedding_layers=False) leaves them out"
        )
    targets = TargetModules(config)
    left_out(targets, [module.name for module in spec.modules])
    found += targets.unchecked
    if config.get("target_modules") is None:
        found.append("its config names no target_modules, so PEFT takes those that it knows for the architecture")
    for field in ("rank_pattern", "alpha_pattern"):
        patterns = ModulePatterns(field, config.get(field) or {})
        for module in spec.modules:
            keys = patterns.matching(module.name)
            if len({patterns.values[key] for key in keys}) > 1:
                found.append(
                    f"{field} has keys that disagree on {module.name}: {listed([repr(key) for key in keys], limit=4)}; "
                    f"PEFT sorts them when it saves and takes the first, {keys[0]!r}, whichever was first in training"
                )
                break
    return found


class _Reader:
    """One adapter while it is read: its factors by module, and what is wrong so far."""

    def __init__(
        self, config: Mapping[str, Any], header: Header, manifest: BaseManifest, digests: Mapping[str, str] | None
    ) -> None:
        self._config, self._header, self._digests = config, header, digests
        self._parameters = manifest.by_name()
        self._kinds = {p.name.rpartition(".")[0]: p.kind for p in manifest.parameters}
        ties = [(p.name, p.tied_to) for p in manifest.parameters if p.tied_to is not None]
        self._tied = {name for tie in ties for name in tie}
        self._scaling: Scaling | None = None
        self._targets: TargetModules | None = None
        self._refused: dict[Refusal, list[str]] = defaultdict(list)
        self._others: list[str] = []
        self.copies: list[str] = []
        self.factors: dict[str, dict[str, str]] = defaultdict(dict)  # module → {"A": key, "B": key}

    def problems(self) -> list[str]:
        """A clause for each refused feature, with where it shows, then one for each other problem."""
        refused = (
            f"{refusal.name} is not composed ({listed(where, limit=3)}): {refusal.why}"
            for refusal, where in self._refused.items()
        )
        return [*refused, *self._others]

    def read_config(self) -> None:
        """Reads ranks and scales, and collects what the config says that is not composed."""
        config = self._config
        for field, refusal in REFUSED_FIELDS.items():
            if field in config and differs(field, config[field]):
                self._refused[refusal].append(f"{field}={shown(config[field])}")
        self._others += [
            f"its config sets {field}={shown(config[field])}, which PEFT {PEFT_VERSION} does not know"
            for field in unknown_fields(config)
        ]
        self._read_init(config.get("init_lora_weights", True))
        try:
            self._scaling = read_scaling(config)
        except Invalid as error:
            self._others.append(str(error))
        try:
            self._targets = TargetModules(config)
        except Invalid as error:
            self._others.append(str(error))

    def _read_init(self, init: object) -> None:
        if isinstance(init, str) and init.startswith(CHANGING_INITS):
            self._refused[CHANGED_BASE].append(f"init_lora_weights={shown(init)}")
        elif not (isinstance(init, bool) or init in PLAIN_INITS):
            self._others.append(f"its config has the unknown init_lora_weights={shown(init)}")

    def read_tensors(self) -> None:
        """Sorts the tensors into factors; whatever is no factor is a problem."""
        for key in self._header.tensors:
            name = key.removeprefix(PREFIX)
            if self._repeats_base(key):
                self.copies.append(key)
                continue
            refusal = self._refusal(name)
            if name == key:
                self._others.append(f"tensor {key} does not start with {PREFIX}, as save_pretrained writes it")
            elif refusal is not None:
                self._refused[refusal].append(key)
            elif name.endswith((_A, _B)):
                self.factors[name[: -len(_A)]][name[-len("A.weight")]] = key
            else:
                self._others.append(f"tensor {key} is unknown: PEFT {PEFT_VERSION} writes no such part of LoRA")

    def _repeats_base(self, key: str) -> bool:
        """Tells whether a tensor is one of the base's own, unchanged; what the config says is trained is none."""
        found = self._own(key.removeprefix(PREFIX))
        if found is None or not key.startswith(PREFIX) or self._trains_base():
            return False
        source = found if found.tied_to is None else self._parameters[found.tied_to]
        tensor = self._header.tensors[key]
        same = (tensor.dtype, tensor.shape) == (source.dtype, source.shape)
        return same and (self._digests is None or self._digests.get(key) == source.sha256)

    def _own(self, name: str) -> Parameter | None:
        """The base's parameter of that name, which PEFT keeps as `base_layer` within a module that it wrapped."""
        module, _, leaf = name.rpartition(".")
        return self._parameters.get(name) or self._parameters.get(f"{module.removesuffix('.base_layer')}.{leaf}")

    def _trains_base(self) -> bool:
        return bool(self._config.get("modules_to_save")) or self._config.get("bias", "none") != "none"

    def _refusal(self, name: str) -> Refusal | None:
        if name.endswith((_A, _B)) and f"{name[: -len(_A)]}.weight" in self._parameters:
            return None  # a factor, whatever the module is called
        for ending, refusal in REFUSED_TENSORS.items():
            if name.endswith(ending):
                return refusal
        return self._copy(name) if name in self._parameters else None

    def _copy(self, name: str) -> Refusal:
        """Why a whole parameter of the base stands in the file."""
        if self._header.tensors[PREFIX + name].shape != self._parameters[name].shape:
            return VOCABULARY
        if name.endswith(".bias") and self._config.get("bias", "none") != "none":
            return BIAS
        return SAVED if self._config.get("modules_to_save") else BASE_COPY

    def check_targets(self) -> None:
        """Checks that PEFT would load every module, those of the base that LoRA is composed on."""
        known = [name for name in sorted(self.factors) if self._kinds.get(name) in RULES]
        if self._targets is not None and (clause := left_out(self._targets, known)):
            self._others.append(clause)

    def module(self, name: str) -> ModuleSpec | None:
        """One module from its two factors, or None where something is wrong with it."""
        if any(refusal.reshapes for refusal in self._refused):
            return None
        factors, before = self.factors[name], self._count()
        for letter in {"A", "B"} - set(factors):
            self._others.append(f"module {name} has no lora_{letter}, both A and B are needed")
        self._check_kind(name)
        if self._count() > before or self._scaling is None:
            return None
        return self._measured(name, factors["A"], factors["B"], self._scaling)

    def _count(self) -> int:
        return len(self._others) + sum(map(len, self._refused.values()))

    def _check_kind(self, name: str) -> None:
        kind = self._kinds.get(name)
        if kind is None:
            self._others.append(f"module {name} is not in the base: is this the base that the adapter was trained on?")
        elif kind in REFUSED_KINDS:
            self._refused[REFUSED_KINDS[kind]].append(name)
        elif f"{name}.weight" not in self._parameters:
            self._refused[PARAMETERS].append(name)
        elif kind not in RULES:
            self._others.append(f"module {name} is a {kind}, LoRA is composed on {' and '.join(RULES)}")
        elif f"{name}.weight" in self._tied:
            self._refused[TIED].append(name)
        elif self._is_read_past_forward(name):
            self._refused[PAST_FORWARD].append(name)

    def _is_read_past_forward(self, name: str) -> bool:
        parent, _, layer = name.rpartition(".")
        return layer in READ_PAST_FORWARD.get(self._kinds.get(parent, ""), ())

    def _measured(self, name: str, a_key: str, b_key: str, scaling: Scaling) -> ModuleSpec | None:
        a, b = self._header.tensors[a_key], self._header.tensors[b_key]
        kind, weight = self._kinds[name], self._parameters[f"{name}.weight"].shape
        out_features, in_features = weight if kind == "Linear" else reversed(weight)
        try:
            rank, scale = scaling.rank(name), scaling.scale(name)
        except Invalid as error:
            self._others.append(str(error))
            return None
        problems = [
            f"tensor {key} has shape {list(tensor.shape)}, expected {expected}: {meaning}"
            for key, tensor, expected, meaning in (
                (a_key, a, [rank, in_features], f"rank {rank} by {in_features} inputs"),
                (b_key, b, [out_features, rank], f"{out_features} outputs by rank {rank}"),
            )
            if list(tensor.shape) != expected
        ]
        if a.dtype != b.dtype or a.dtype not in FLOATS:
            problems.append(f"module {name} has A in {a.dtype} and B in {b.dtype}, expected one of {', '.join(FLOATS)}")
        self._others += problems
        if problems:
            return None
        return ModuleSpec(
            name=name,
            parameter=f"{name}.weight",
            kind=kind,
            rule=RULES[kind],
            rank=rank,
            scale=scale,
            a=a_key,
            b=b_key,
            in_features=in_features,
            out_features=out_features,
            dtype=a.dtype,
            transposed=kind == "Conv1D",
        )
