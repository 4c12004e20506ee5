"""The step from a PEFT LoRA adapter's config and safetensors header to an AdapterSpec; standard library only.

It follows the source of PEFT 0.21.2. The table in rules.py says what is composed and what is refused. No tensor is
dropped: each is a part of the spec, a copy that nothing reads, or named in the error.
"""

from collections.abc import Mapping
from contextlib import suppress
from itertools import chain
from typing import Any, Final

from loratree_registry.core.manifest import BaseManifest
from loratree_registry.core.records import AdapterSummary
from loratree_registry.errors import Invalid, listed
from loratree_registry.peft_format.causes import likely_cause
from loratree_registry.peft_format.config import (
    PEFT_VERSION,
    canonical_config,
    describing_fields,
    differs,
    unknown_fields,
)
from loratree_registry.peft_format.findings import Findings
from loratree_registry.peft_format.joined_experts import with_joined_experts
from loratree_registry.peft_format.layout import EXPERTS
from loratree_registry.peft_format.low_rank import LowRankParts
from loratree_registry.peft_format.names import BaseIndex, module_of
from loratree_registry.peft_format.overrides import OverrideValues
from loratree_registry.peft_format.rules import CHANGED_BASE, CHANGING_INITS, PLAIN_INITS, REFUSED_FIELDS, TASKS
from loratree_registry.peft_format.saved_adapter import SavedAdapter
from loratree_registry.peft_format.scaling import ModulePatterns, Scaling, read_scaling, shown
from loratree_registry.peft_format.spec import AdapterSpec, Joined
from loratree_registry.peft_format.targets import TargetModules, left_out
from loratree_registry.peft_format.tensors import sorted_tensors
from loratree_registry.peft_format.token_rows import TokenRows
from loratree_registry.tensor_files.header import ZEROS, Header

__all__ = ["canonical_config", "check_without_values", "classify", "is_zero", "summarize", "warnings"]

TIED_TARGETS: Final = ("embed_tokens", "lm_head")  # PEFT checks only these names before it ties two LoRAs


def classify(
    config: Mapping[str, Any],
    header: Header,
    manifest: BaseManifest,
    *,
    digests: Mapping[str, str] | None = None,
    on_base: bool = True,
    untied: bool = False,
) -> AdapterSpec:
    """Check an adapter against its base and classify every part of it.

    `config` is adapter_config.json as PEFT wrote it, or its canonical form. `digests` are the digests of the tensors'
    bytes. PEFT saves the base's lm_head beside a LoRA on lm_head, and this copy is accepted only if its bytes are the
    base's. A published adapter needs no digests, because publishing compared its copies. If the adapter was trained on
    a composed model (`on_base` is false), the copy is the composed model's lm_head, and any values are accepted.
    `untied` is true if the ancestors that it was trained on had taken the base's ties apart. Raises Invalid, listing
    every problem: refused features, unknown fields and tensors, A without B, wrong shapes.
    """
    if config.get("peft_type") != "LORA":
        raise Invalid(f"the adapter cannot be published: its peft_type is {shown(config.get('peft_type'))}, not LORA")
    findings = Findings()
    saved = SavedAdapter(config, header.tensors, digests, BaseIndex(manifest, untied=untied), findings, on_base)
    saved = with_joined_experts(saved)
    scaling = _read_config(saved)
    tensors = sorted_tensors(saved)
    low_rank = LowRankParts.of(saved, tensors)
    _check_targets(saved, low_rank.target_modules())
    modules = low_rank.specs(scaling) if scaling is not None and not findings.reshaped else ()
    overrides = OverrideValues(saved, low_rank.stacks)
    values = overrides.read(tensors.rest)
    changed = {module.parameter for module in modules} | {value.parameter for value in values}
    rows = TokenRows(saved, changed).read(tensors.rows)
    findings.check(lambda: likely_cause(saved.tensors, saved.base, named=config.get("base_model_name_or_path")))
    if not (modules or values or rows):
        raise Invalid(
            "the adapter cannot be published: "
            + (
                likely_cause(header.tensors, saved.base)
                or "it holds no lora_A and lora_B, and nothing else that was trained"
            )
        )
    unread = tuple(sorted([*tensors.unread, *low_rank.unread]))
    return AdapterSpec(modules, tuple(sorted(overrides.copies)), values, rows, unread)


def check_without_values(config: Mapping[str, Any], header: Header, manifest: BaseManifest) -> None:
    """Check what can be known before a value of the file is read: keys, dtypes and shapes, whatever the pin is.

    Raises Invalid if the adapter fits the base neither with its ties nor without them.
    """
    try:
        classify(config, header, manifest, on_base=False)
    except Invalid:
        if not manifest.ties():
            raise
        with suppress(Invalid):
            classify(config, header, manifest, on_base=False, untied=True)
            return
        raise


def summarize(
    spec: AdapterSpec,
    config: Mapping[str, Any],
    header: Header,
    manifest: BaseManifest,
    *,
    digests: Mapping[str, str],
    on_base: bool,
    untied: bool,
) -> AdapterSummary:
    """Return the summary of `spec`, which `classify` made of the same arguments."""
    tied = manifest.tied_names()
    if spec.names.isdisjoint(name for names in tied for name in names):
        return spec.summary()
    try:
        other = classify(config, header, manifest, digests=digests, on_base=on_base, untied=not untied)
        is_same = (other.modules, other.values, other.rows) == (spec.modules, spec.values, spec.rows)
    except Invalid:
        is_same = False
    return spec.summary(unties=spec.unties(tied, digests), trained_tied=None if is_same else not untied)


def is_zero(spec: AdapterSpec, digests: Mapping[str, str]) -> bool:
    """Return whether every delta of the adapter is zero, and it changes nothing else, as before training."""

    def has_zeros(key: str, joined: Joined) -> bool:
        return all(digests.get(part) == ZEROS for part in (chain(*joined) if joined else (key,)))

    zeros = [has_zeros(m.a, m.joined_a) or has_zeros(m.b, m.joined_b) for m in spec.modules]
    return bool(zeros) and all(zeros) and not (spec.values or spec.rows)


def warnings(config: Mapping[str, Any], spec: AdapterSpec, *, on_base: bool = True, is_zero: bool = False) -> list[str]:
    """Return what a person should check in a valid adapter, such as copies of the base or pattern keys in conflict."""
    messages = []
    if is_zero:
        messages.append(
            f"the deltas of {'its only module' if len(spec.modules) == 1 else f'all {len(spec.modules)} modules'} are "
            "zero, as before training: was it saved by the process that trained it?"
        )
    if described := describing_fields(config):
        fields = [f"{field}={shown(config[field])}" for field in described]
        messages.append(
            f"its config has fields that PEFT {PEFT_VERSION} does not know, which are kept and not used: "
            f"{listed(fields, limit=3)}"
        )
    if spec.copies:
        source = (
            "the base, which nothing reads" if on_base else "what it was trained on, which nothing reads or compares"
        )
        messages.append(
            f"it repeats weights of {source} ({listed(list(spec.copies), limit=3)}): "
            "save_pretrained(…, save_embedding_layers=False) leaves them out"
        )
    if above := [m for m in spec.modules if m.groups == 1 and m.rank > min(m.in_features, m.out_features)]:
        first, sizes = above[0], [min(m.in_features, m.out_features) for m in above]
        more = f", and {len(above) - 1} more have one above theirs" if len(above) > 1 else ""
        messages.append(
            f"{first.name} has rank {first.rank}, above its size, {first.out_features} × {first.in_features}{more}: it "
            f"is composed exactly, and a rank of {max(sizes)} would do the same in less memory"
        )
    targets = TargetModules(config)
    left_out(targets, {module.name: module.kind for module in spec.modules})
    messages += targets.unchecked
    if config.get("target_modules") is None and not config.get("target_parameters"):
        messages.append("its config names no target_modules, so PEFT uses its own list for the architecture")
    for field in ("rank_pattern", "alpha_pattern"):
        patterns = ModulePatterns(field, config.get(field) or {})
        for module in spec.modules:
            name = module.parameter if module.kind in EXPERTS else module.name
            keys = patterns.matching(name)
            if len({patterns.values[key] for key in keys}) > 1:
                messages.append(
                    f"{field} has keys that disagree on {name}: {listed([repr(key) for key in keys], limit=4)}; "
                    f"PEFT sorts them when it saves and takes the first, {keys[0]!r}, whichever was first in training"
                )
                break
    return messages


def _read_config(saved: SavedAdapter) -> Scaling | None:
    """Read ranks and scales; record each setting that is not composed."""
    config, findings = saved.config, saved.findings
    for field, refusal in REFUSED_FIELDS.items():
        if field in config and differs(field, config[field]):
            findings.refuse(refusal, f"{field}={shown(config[field])}")
    for field in sorted(set(unknown_fields(config)) - set(describing_fields(config))):
        findings.add(
            f"its config sets {field}={shown(config[field])}, which PEFT {PEFT_VERSION} does not know and which may "
            "change what it computes: train without it, or remove it from adapter_config.json if it only describes"
        )
    for field in ("use_dora", "lora_bias", "ensure_weight_tying"):
        if not isinstance(config.get(field, False), bool | None):
            findings.add(f"{field} is {shown(config[field])}, expected true or false")
    if (task := config.get("task_type")) not in (None, *TASKS):
        findings.add(f"task_type is {shown(task)}, expected one of {', '.join(TASKS)}, or null")
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.startswith(CHANGING_INITS):
        findings.refuse(CHANGED_BASE, f"init_lora_weights={shown(init)}")
    elif not (isinstance(init, bool | None) or init in PLAIN_INITS):
        findings.add(f"its config has the unknown init_lora_weights={shown(init)}")
    try:
        return read_scaling(config)
    except Invalid as error:
        findings.add(str(error))
        return None


def _check_targets(saved: SavedAdapter, modules: list[str]) -> None:
    """Record the modules on which PEFT would make no LoRA from this config."""
    try:
        targets = TargetModules(saved.config)
    except Invalid as error:
        saved.findings.add(str(error))
        return
    checked = [module for module in modules if not _is_tied_to_target(saved, targets, module)]
    if clause := left_out(targets, {module: saved.base.kinds[module] for module in checked}):
        saved.findings.add(clause)


def _is_tied_to_target(saved: SavedAdapter, targets: TargetModules, module: str) -> bool:
    """Return whether PEFT puts a LoRA on `module` because `module` is tied to an embedding that has a LoRA."""
    if not saved.says("ensure_weight_tying") or f"{module}.weight" not in saved.base.parameters:
        return False
    tied = [module_of(name) for name in saved.base.trained_with(f"{module}.weight")]
    return any(targets.includes(other) and other.rpartition(".")[2] in TIED_TARGETS for other in tied)
