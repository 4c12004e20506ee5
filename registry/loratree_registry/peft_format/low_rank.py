"""The LoRAs of an adapter, checked against the parameters that they change; standard library only."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, permutations
from typing import Final

from loratree_registry.core.manifest import Parameter
from loratree_registry.errors import Invalid
from loratree_registry.peft_format.layout import (
    ATTENTION,
    EXPERTS,
    OUT_PROJ,
    Layout,
    Shape,
    layer_layout,
    parameter_layout,
)
from loratree_registry.peft_format.names import LAYER, base_name, module_of
from loratree_registry.peft_format.rules import (
    AMBIGUOUS,
    ATTENTION_BIAS,
    BIASLESS,
    COMPOSED,
    DORA_GROUPS,
    PARAMETERS,
    PARAMETRIZED,
    PAST_FORWARD,
    RENAMED,
    SINGLE_EXPERT,
)
from loratree_registry.peft_format.saved_adapter import FLOATS, SavedAdapter
from loratree_registry.peft_format.scaling import Scaling
from loratree_registry.peft_format.spec import ModuleSpec
from loratree_registry.peft_format.targets import TargetParameters
from loratree_registry.peft_format.tensors import (
    BIAS,
    EMBEDDING_A,
    EMBEDDING_B,
    FACTORS,
    MAGNITUDE,
    A,
    AdapterTensors,
    B,
)
from loratree_registry.tensor_files.header import ZEROS

LARGEST: Final = 3.4028234663852886e38  # the largest float32; deltas are summed in float32


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRankPart:
    """A LoRA on one parameter of a module. `keys` maps the ending of each tensor's name to its key in the file.

    `by_parameter` is true if target_parameters chose it: PEFT then names A and B the same on every kind of layer.
    """

    module: str
    parameter: str
    kind: str
    keys: Mapping[str, str]
    by_parameter: bool = False

    @property
    def a(self) -> str:
        """The ending of A's name."""
        return EMBEDDING_A if self.kind == "Embedding" and not self.by_parameter else A

    @property
    def b(self) -> str:
        """The ending of B's name."""
        return EMBEDDING_B if self.kind == "Embedding" and not self.by_parameter else B

    def is_complete(self, saved: SavedAdapter) -> bool:
        """Return whether the file holds exactly the tensors that PEFT writes for this LoRA; record each problem."""
        problems = list(self._check_keys(saved))
        for problem in problems:
            saved.findings.add(problem)
        return not problems

    def fits(self, saved: SavedAdapter, layout: Layout) -> bool:
        """Return whether A and B have the shapes of `layout`."""
        return all(saved.tensors[self.keys[ending]].shape == shape for ending, shape in self._shapes_of_factors(layout))

    def spec(self, saved: SavedAdapter, layout: Layout, rank: int, scale: float) -> ModuleSpec | None:
        """Return the LoRA's spec, or None after recording what is wrong with it."""
        problems = [*self._check_shapes(saved, layout, rank), *self._check_numbers(saved, scale)]
        for problem in problems:
            saved.findings.add(problem)
        if problems or self._is_refused(saved, layout):
            return None
        magnitude = self.keys.get(MAGNITUDE)
        return ModuleSpec(
            name=self.module,
            parameter=self.parameter,
            kind=self.kind,
            rule="additive" if magnitude is None else "ordered",
            rank=rank,
            scale=scale,
            a=self.keys[self.a],
            b=self.keys[self.b],
            in_features=layout.in_features,
            out_features=layout.out_features,
            dtype=self._dtype(saved),
            transposed=layout.transposed,
            experts=layout.experts,
            groups=layout.groups,
            magnitude=magnitude,
            bias=self.keys.get(BIAS),
            joined_a=saved.joined.get(self.keys[self.a], ()),
            joined_b=saved.joined.get(self.keys[self.b], ()),
        )

    def _dtype(self, saved: SavedAdapter) -> str:
        """Return the dtype of A and B; if they differ, the wider one that both are exact in."""
        a, b = (saved.tensors[self.keys[ending]].dtype for ending in (self.a, self.b))
        return a if a == b else "F64" if "F64" in (a, b) else "F32"

    def _check_keys(self, saved: SavedAdapter) -> Iterator[str]:
        for ending in self.keys.keys() - {self.a, self.b, MAGNITUDE, BIAS}:
            yield f"tensor {self.keys[ending]} is no part of LoRA on a {self.kind}"
        for letter, ending in (("A", self.a), ("B", self.b)):
            if ending not in self.keys:
                yield f"module {self.module} has no lora_{letter}, both A and B are needed"
        for ending, setting in ((MAGNITUDE, "use_dora"), (BIAS, "lora_bias")):
            if saved.says(setting) and ending not in self.keys:
                yield f"module {self.module} has no {ending[1:]}, and its config says {setting}"
            elif not saved.says(setting) and ending in self.keys:
                yield f"tensor {self.keys[ending]} would not be loaded, as its config does not say {setting}"

    def _shapes_of_factors(self, layout: Layout) -> list[tuple[str, Shape]]:
        return [(self.a, layout.a), (self.b, layout.b)]

    def _check_shapes(self, saved: SavedAdapter, layout: Layout, rank: int) -> Iterator[str]:
        ranks = f"rank {rank}" if layout.experts == 1 else f"{layout.experts} experts of rank {rank}"
        inputs, outputs = f"{layout.in_features} inputs", f"{layout.out_features} outputs"
        meanings = {self.a: f"{ranks} by {inputs}", self.b: f"{outputs} by {ranks}"}
        others = [(MAGNITUDE, layout.magnitude), (BIAS, (layout.out_features,))]
        for ending, shape in (*self._shapes_of_factors(layout), *others):
            key = self.keys.get(ending)
            if key is not None and saved.tensors[key].shape != shape:
                actual, meaning = list(saved.tensors[key].shape), meanings.get(ending, outputs)
                yield f"tensor {key} has shape {actual}, expected {list(shape)}: {meaning}"

    def _check_numbers(self, saved: SavedAdapter, scale: float) -> Iterator[str]:
        a, b = (saved.tensors[self.keys[ending]].dtype for ending in (self.a, self.b))
        if a not in FLOATS or b not in FLOATS:
            yield f"module {self.module} has A in {a} and B in {b}, expected one of {', '.join(FLOATS)}"
        for key in (self.keys[ending] for ending in (MAGNITUDE, BIAS) if ending in self.keys):
            if saved.tensors[key].dtype not in FLOATS:
                yield f"tensor {key} is {saved.tensors[key].dtype}, expected one of {', '.join(FLOATS)}"
        if abs(scale) > LARGEST:
            yield f"module {self.module} has the scale {scale:g}, which float32 cannot hold: lower lora_alpha"

    def _is_refused(self, saved: SavedAdapter, layout: Layout) -> bool:
        if BIAS in self.keys and f"{self.module}.bias" not in saved.base.parameters:
            saved.findings.refuse(BIASLESS, self.module)
            return True
        if MAGNITUDE in self.keys and layout.groups > 1:
            saved.findings.refuse(DORA_GROUPS, self.module)
            return True
        return False


MAX_NESTED: Final = 6  # LoRAs of one module; every order of their parameters is tried, and 6 have 720 orders

Stacks = Mapping[str, Sequence[Mapping[str, str]]]


@dataclass(frozen=True, slots=True)
class LowRankParts:
    """The LoRAs of an adapter. `stacks` lists those on one module from the outermost: PEFT wraps one in the next.

    `unread` collects the keys of LoRAs that have no effect.
    """

    saved: SavedAdapter
    parameters: TargetParameters
    stacks: Stacks
    unread: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, saved: SavedAdapter, tensors: AdapterTensors) -> "LowRankParts":
        """Group the file's LoRAs by the base's modules; record each LoRA at a place that PEFT would not read."""
        layers: dict[str, list[str]] = defaultdict(list)
        for layer in sorted(tensors.layers, key=lambda name: name.count(".")):
            known = base_name(layer, saved.base.kinds)
            layers[layer if known is None else known.name].append(layer)
        stacks = {module: [tensors.layers[layer] for layer in names] for module, names in layers.items()}
        parts = cls(saved, TargetParameters(saved), stacks)
        for module, names in layers.items():
            first = f"{module_of(module)}.{LAYER}.out_proj" if parts._is_out_proj(module) else module
            if names != [first + f".{LAYER}" * depth for depth in range(len(names))]:
                saved.findings.add(f"LoRA stands at {', '.join(names)}, where PEFT reads none for the base's {module}")
        return parts

    def target_modules(self) -> list[str]:
        """Return the modules that target_modules must choose so that PEFT loads their LoRAs, sorted."""
        kinds = self.saved.base.kinds
        chosen = {
            module_of(module) if self._is_out_proj(module) else module
            for module in self.stacks
            if kinds.get(module) in (*COMPOSED, OUT_PROJ) and not self._is_by_parameter(module)
        }
        return sorted(chosen)

    def specs(self, scaling: Scaling) -> tuple[ModuleSpec, ...]:
        """Return the spec of every valid LoRA, sorted by parameter; record what is wrong with the others."""
        specs: list[ModuleSpec] = []
        for module in sorted(self.stacks):
            try:
                specs += self._read_module(module, scaling)
            except Invalid as error:  # from a pattern that gives a rank or a scale
                self.saved.findings.add(str(error))
        return tuple(sorted(specs, key=lambda spec: spec.parameter))

    def _read_module(self, module: str, scaling: Scaling) -> Iterator[ModuleSpec]:
        kind = self.saved.base.kinds.get(module)
        if kind is None and (present := self.saved.base.renamed_to(module)) is not None:
            self.saved.findings.refuse(RENAMED, f"{module}, now {present}")
        elif kind is None:
            self.saved.findings.add(
                f"module {module} is not in the base: is this the base that the adapter was trained on?"
            )
        elif self._is_read_past_forward(module, kind):
            if self._is_zero(module):
                self.unread.extend(key for keys in self.stacks[module] for key in keys.values())
            else:
                self.saved.findings.refuse(PAST_FORWARD, module)
        elif self._is_by_parameter(module):
            yield from self._read_parameters(module, kind, scaling)
        else:
            yield from self._read_layer(module, kind, scaling)

    def _is_zero(self, module: str) -> bool:
        """Return whether every LoRA on `module` is zero, as it stays on a layer that is never called and never trained.

        PEFT begins with a B of zeros, and on an embedding with an A of zeros.
        """
        digests, stack = self.saved.digests, self.stacks[module]
        factors = [[key for ending, key in keys.items() if ending in FACTORS] for keys in stack]
        return digests is None or all(any(digests.get(key) == ZEROS for key in keys) for keys in factors)

    def _is_by_parameter(self, module: str) -> bool:
        nested = len(self.stacks[module]) > 1 or self.saved.base.kinds.get(module) in EXPERTS
        return nested or bool(self.parameters.of(module))

    def _is_out_proj(self, module: str) -> bool:
        kinds, attention = self.saved.base.kinds, module_of(module)
        return kinds.get(module) == OUT_PROJ and kinds.get(attention) == ATTENTION and attention in self.stacks

    def _is_read_past_forward(self, module: str, kind: str) -> bool:
        if kind == OUT_PROJ:
            return not self._is_out_proj(module)
        return self.saved.base.is_read_past_forward(module)

    def _read_layer(self, module: str, kind: str, scaling: Scaling) -> Iterator[ModuleSpec]:
        """Yield the spec of a LoRA on a layer. PEFT adds out_proj's delta twice in each forward: its scale doubles."""
        findings, times, named = self.saved.findings, 1, module
        leaf = "in_proj_weight" if kind == ATTENTION else "weight"
        if kind == OUT_PROJ:
            kind, times, named = ATTENTION, 2, module_of(module)
        (keys,) = self.stacks[module]
        part = LowRankPart(module=module, parameter=f"{module}.{leaf}", kind=kind, keys=keys)
        weight = self.saved.base.parameters.get(part.parameter)
        if kind.endswith("parametrized)"):
            findings.refuse(PARAMETRIZED, module)
        elif kind not in COMPOSED or weight is None:
            findings.add(
                f"module {module} is of kind {kind}, LoRA is composed on {', '.join(COMPOSED)}: leave it out, or train "
                "the whole layer with modules_to_save"
            )
        elif kind == ATTENTION and BIAS in keys:
            findings.refuse(ATTENTION_BIAS, module)
        elif kind == ATTENTION and named == module and f"{module}.out_proj" not in self.stacks:
            findings.add(f"module {module} has a LoRA and its out_proj has none, PEFT writes both")
        elif part.is_complete(self.saved):
            rank, scale = scaling.rank(named), times * scaling.scale(named)
            layout = layer_layout(kind, weight.shape, rank, self.saved.tensors[keys[part.a]].shape)
            yield from self._make_spec(part, layout, rank, scale)

    def _read_parameters(self, module: str, kind: str, scaling: Scaling) -> Iterator[ModuleSpec]:
        """Yield the specs of LoRAs on parameters of `module`. Only shapes tell which LoRA is on which parameter."""
        findings, stack, chosen = self.saved.findings, self.stacks[module], self.parameters.of(module)
        parts = [LowRankPart(module=module, parameter="", kind="Linear", keys=keys) for keys in stack]
        complete = [part.is_complete(self.saved) for part in parts]
        if kind.endswith("parametrized)"):
            findings.refuse(PARAMETRIZED, module)
        elif kind not in EXPERTS and any(len(parameter.shape) != 2 for parameter in chosen):
            findings.refuse(PARAMETERS, f"{module} of kind {kind}")
        elif len(chosen) != len(stack) or len(stack) > MAX_NESTED:
            names = ", ".join(parameter.name for parameter in chosen) or "no parameter"
            findings.add(f"module {module} has {len(stack)} LoRAs, and target_parameters chooses {names}")
        elif all(complete):
            yield from self._match_by_shape(kind, parts, chosen, scaling)

    def _match_by_shape(
        self, kind: str, parts: Sequence[LowRankPart], chosen: Sequence[Parameter], scaling: Scaling
    ) -> Iterator[ModuleSpec]:
        layouts = {p.name: parameter_layout(kind, p.shape, scaling.rank(p.name)) for p in chosen}
        orders = list(islice((o for o in permutations(chosen) if self._are_fitting(parts, o, layouts)), 2))
        if len(orders) > 1:
            self.saved.findings.refuse(AMBIGUOUS, ", ".join(parameter.name for parameter in chosen))
            return
        if not orders and len(parts) > 1:
            names = ", ".join(parameter.name for parameter in chosen)
            self.saved.findings.add(f"the LoRAs on {names} have shapes that fit these parameters in no order")
            return
        for part, parameter in zip(parts, orders[0] if orders else chosen, strict=True):
            layout, name = layouts[parameter.name], parameter.name
            if len(parameter.shape) == 3 and parameter.shape[0] == 1:
                self.saved.findings.refuse(SINGLE_EXPERT, name)
                continue
            matched = LowRankPart(module=part.module, parameter=name, kind=kind, keys=part.keys, by_parameter=True)
            yield from self._make_spec(matched, layout, scaling.rank(name), scaling.scale(name))

    def _are_fitting(
        self, parts: Sequence[LowRankPart], order: Sequence[Parameter], layouts: Mapping[str, Layout | None]
    ) -> bool:
        pairs = zip(parts, (layouts[parameter.name] for parameter in order), strict=True)
        return all(layout is not None and part.fits(self.saved, layout) for part, layout in pairs)

    def _make_spec(self, part: LowRankPart, layout: Layout | None, rank: int, scale: float) -> Iterator[ModuleSpec]:
        if layout is None:
            shape = list(self.saved.base.parameters[part.parameter].shape)
            self.saved.findings.add(
                f"parameter {part.parameter} of a {part.kind} has shape {shape}, which LoRA cannot change"
            )
        elif (spec := part.spec(self.saved, layout, rank, scale)) is not None:
            yield spec
