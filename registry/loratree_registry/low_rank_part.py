"""One LoRA of an adapter: its tensors against what its place in the base asks for; standard library only."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from loratree_registry.adapter_spec import ModuleSpec
from loratree_registry.adapter_tensors import BIAS, EMBEDDING_A, EMBEDDING_B, MAGNITUDE, A, B
from loratree_registry.layout import Layout, Shape
from loratree_registry.peft_rules import BIASLESS, DORA_GROUPS
from loratree_registry.saved_adapter import FLOATS, SavedAdapter

LARGEST: Final = 3.4028234663852886e38  # what float32, in which deltas are summed, can hold


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRankPart:
    """A LoRA on one parameter: the module that it belongs to, and its tensors' keys by their endings."""

    module: str
    parameter: str
    kind: str
    keys: Mapping[str, str]

    @property
    def a(self) -> str:
        """How A's name ends."""
        return EMBEDDING_A if self.kind == "Embedding" else A

    @property
    def b(self) -> str:
        """How B's name ends."""
        return EMBEDDING_B if self.kind == "Embedding" else B

    def is_complete(self, saved: SavedAdapter) -> bool:
        """Tells whether the file holds the tensors that PEFT writes for it, and no others; notes what is wrong."""
        problems = list(self._missing(saved))
        for problem in problems:
            saved.findings.add(problem)
        return not problems

    def fits(self, saved: SavedAdapter, layout: Layout) -> bool:
        """Tells whether A and B have the shapes of `layout`."""
        return all(saved.tensors[self.keys[ending]].shape == shape for ending, shape in self._factors(layout))

    def spec(self, saved: SavedAdapter, layout: Layout, rank: int, scale: float) -> ModuleSpec | None:
        """The part's spec, or None after noting what is wrong with it."""
        problems = [*self._shapes(saved, layout, rank), *self._numbers(saved, scale)]
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
            dtype=saved.tensors[self.keys[self.a]].dtype,
            transposed=layout.transposed,
            experts=layout.experts,
            groups=layout.groups,
            magnitude=magnitude,
            bias=self.keys.get(BIAS),
        )

    def _missing(self, saved: SavedAdapter) -> Iterator[str]:
        for ending in self.keys.keys() - {self.a, self.b, MAGNITUDE, BIAS}:
            yield f"tensor {self.keys[ending]} is no part of LoRA on a {self.kind}"
        for letter, ending in (("A", self.a), ("B", self.b)):
            if ending not in self.keys:
                yield f"module {self.module} has no lora_{letter}, both A and B are needed"
        for ending, field in ((MAGNITUDE, "use_dora"), (BIAS, "lora_bias")):
            if saved.says(field) and ending not in self.keys:
                yield f"module {self.module} has no {ending[1:]}, and its config says {field}"
            elif not saved.says(field) and ending in self.keys:
                yield f"tensor {self.keys[ending]} would not be loaded, as its config does not say {field}"

    def _factors(self, layout: Layout) -> list[tuple[str, Shape]]:
        return [(self.a, layout.a), (self.b, layout.b)]

    def _shapes(self, saved: SavedAdapter, layout: Layout, rank: int) -> Iterator[str]:
        ranks = f"rank {rank}" if layout.experts == 1 else f"{layout.experts} experts of rank {rank}"
        inputs, outputs = f"{layout.in_features} inputs", f"{layout.out_features} outputs"
        meanings = {self.a: f"{ranks} by {inputs}", self.b: f"{outputs} by {ranks}"}
        others = [(MAGNITUDE, layout.magnitude), (BIAS, (layout.out_features,))]
        for ending, shape in (*self._factors(layout), *others):
            key = self.keys.get(ending)
            if key is not None and saved.tensors[key].shape != shape:
                found, meaning = list(saved.tensors[key].shape), meanings.get(ending, outputs)
                yield f"tensor {key} has shape {found}, expected {list(shape)}: {meaning}"

    def _numbers(self, saved: SavedAdapter, scale: float) -> Iterator[str]:
        a, b = (saved.tensors[self.keys[ending]].dtype for ending in (self.a, self.b))
        if a != b or a not in FLOATS:
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
