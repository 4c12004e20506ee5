"""Whole tensors in an adapter's file: trained values, copies of the base, or neither; standard library only."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from loratree_registry.peft_format.config import PEFT_VERSION
from loratree_registry.peft_format.names import LAYER, ORIGINAL, SAVED, base_name, module_of
from loratree_registry.peft_format.rules import (
    BASE_COPY,
    IMPLIED_MODULES,
    MISSING,
    OTHER_SHAPE,
    RENAMED,
    SAVED_LORA,
    SAVED_TWICE,
    VOCABULARY,
)
from loratree_registry.peft_format.saved_adapter import SavedAdapter, key_of
from loratree_registry.peft_format.scaling import shown
from loratree_registry.peft_format.spec import ValueSpec

BIASES: Final = ("none", "all", "lora_only")


class OverrideValues:
    """A reader of the whole tensors of one adapter. `lora` maps a module to its LoRAs.

    `copies` lists the keys that nothing reads: each tensor only repeats one of the model that the adapter was trained
    on, or another tensor of the file.
    """

    def __init__(self, saved: SavedAdapter, lora: Mapping[str, Sequence[object]]) -> None:
        self.copies: list[str] = []
        self._saved, self._lora = saved, lora
        self._modules = (*saved.names("modules_to_save"), *implied_modules(saved.config.get("task_type")))
        self._ties = saved.says("ensure_weight_tying")
        self._bias = saved.config.get("bias", "none")
        self._values: dict[str, str] = {}  # parameter → key
        self._seen: set[str] = set()
        if self._bias not in BIASES:
            saved.findings.add(f"bias is {shown(self._bias)}, expected one of {', '.join(BIASES)}")

    def read(self, rest: Mapping[str, str]) -> tuple[ValueSpec, ...]:
        """Read the tensors (name in the file → key) and return the values, sorted by parameter; record each problem."""
        for module in sorted(self._lora):
            if self._is_saved(module):
                self._saved.findings.refuse(SAVED_LORA, module)
        if nested := self._find_nested():
            for module in nested:
                self._saved.findings.refuse(SAVED_TWICE, module)
            return ()
        for name, key in rest.items():
            self._read(name, key)
        self._check_missing()
        tensors = self._saved.tensors
        return tuple(
            ValueSpec(parameter=parameter, key=key, dtype=tensors[key].dtype, shape=tensors[key].shape)
            for parameter, key in sorted(self._add_tied_biases())
        )

    def _read(self, name: str, key: str) -> None:
        saved, known = self._saved, base_name(name, self._saved.base.parameters)
        if known is None and (module := saved.base.renamed_to(module_of(name))) is not None:
            saved.findings.refuse(RENAMED, f"{key}, now of {module}")
        elif known is None and self._is_saved(module_of(name)):
            saved.findings.refuse(MISSING, key)
        elif known is None:
            saved.findings.add(f"tensor {key} is unknown: PEFT {PEFT_VERSION} writes no such part of LoRA")
        else:
            self._seen |= set() if known.taken else {known.name}
            self._sort(known.name, known.taken, key)

    def _sort(self, parameter: str, taken: tuple[str, ...], key: str) -> None:
        saved, base = self._saved, self._saved.base.parameters[parameter]
        if saved.tensors[key].shape != base.shape:
            refusal = VOCABULARY if self._is_vocabulary(parameter, key) else OTHER_SHAPE
            saved.findings.refuse(refusal, f"{key}, {list(saved.tensors[key].shape)} for {list(base.shape)}")
        elif SAVED in taken and saved.repeats(key, key_of(parameter)):
            self.copies.append(key)
        elif self._is_trained(parameter, taken) and parameter not in self._values:
            if saved.tensors[key].dtype == base.dtype or saved.is_float(key):
                self._values[parameter] = key
        elif SAVED not in taken and (saved.repeats_base(key, parameter) or self._is_composed(parameter, taken, key)):
            self.copies.append(key)
        else:
            saved.findings.refuse(BASE_COPY, key)

    def _is_composed(self, parameter: str, taken: tuple[str, ...], key: str) -> bool:
        """Return whether the tensor is the composed model's, beside its trained form. Its right values are not known.

        PEFT saves the head beside its LoRA, and with bias="all" the biases that a saved module had before.
        """
        is_beside = taken == (LAYER,) and module_of(parameter) in self._lora
        is_beside = is_beside or (ORIGINAL in taken and self._is_saved(module_of(parameter)))
        return is_beside and not self._saved.on_base and self._saved.resembles_base(key, parameter)

    def _is_vocabulary(self, parameter: str, key: str) -> bool:
        base, tensor = self._saved.base.parameters[parameter], self._saved.tensors[key]
        is_embedding = base.kind == "Embedding" or base.shape[:1] == (self._saved.base.vocabulary_size,)
        return is_embedding and tensor.shape[1:] == base.shape[1:]

    def _is_trained(self, parameter: str, taken: tuple[str, ...]) -> bool:
        """Return whether the config says that this tensor was trained, and PEFT would read it under this name."""
        if not taken:
            tied = self._saved.base.trained_with(parameter) if self._ties else [parameter]
            if any(self._is_saved(module_of(name)) for name in tied):
                return True
        wrapped = sum(len(self._lora.get(module, ())) for module in _walk_up(module_of(parameter)))
        is_bias = parameter.rpartition(".")[2] == "bias" and taken == (LAYER,) * wrapped
        return is_bias and (self._bias == "all" or (self._bias == "lora_only" and wrapped > 0))

    def _is_saved(self, module: str) -> bool:
        """Return whether PEFT trains a copy of `module` or of a module around it; PEFT compares the ends of names."""
        return bool(self._modules) and any(name.endswith(self._modules) for name in _walk_up(module))

    def _find_nested(self) -> list[str]:
        """Return the modules that PEFT saves although it saves a module around them too."""
        if not self._modules:
            return []
        names = {name for module in self._saved.base.kinds for name in _walk_up(module)}
        saved = {name for name in names if name.endswith(self._modules)}
        return sorted(name for name in saved if any(outer in saved for outer in _walk_up(module_of(name))))

    def _check_missing(self) -> None:
        for parameter in self._saved.base.parameters if self._modules else ():
            if parameter not in self._seen and self._is_saved(module_of(parameter)):
                task = self._saved.config.get("task_type")
                chooser = "modules_to_save" if not implied_modules(task) else f"modules_to_save, or task_type {task},"
                self._saved.findings.add(f"{chooser} chooses {parameter}, and the file does not hold it")

    def _add_tied_biases(self) -> Iterator[tuple[str, str]]:
        """Yield each value, and each bias for its ties too. A bias is trained in place, a saved module as a copy."""
        for parameter, key in self._values.items():
            yield parameter, key
            if not self._is_saved(module_of(parameter)):
                tied = self._saved.base.tied(parameter)
                yield from ((name, key) for name in tied if name not in self._values)


def implied_modules(task: object) -> tuple[str, ...]:
    """Return the ends of the names of the modules that PEFT trains for a task_type without being told to."""
    return IMPLIED_MODULES.get(task, ()) if isinstance(task, str) else ()


def _walk_up(module: str) -> Iterator[str]:
    """Yield the name of `module` and of each module around it, the outermost last."""
    while module:
        yield module
        module = module_of(module)
