"""Adapters as tools wrote them: what PEFT loads from each file is what is composed."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from loratree_composer import Composer, compose
from loratree_composer.base.manifest import read_base
from loratree_registry.errors import Invalid
from loratree_registry.peft_format.classify import classify
from loratree_registry.peft_format.classify import warnings as warnings_of
from loratree_registry.workspace.adapter_directory import read_adapter_directory
from loratree_registry.workspace.base_locations import remember_base
from tests import tiny
from tests.composer import chains
from tests.composer.conftest import Catalog, Tree, open_catalog
from tests.peft_bases import quiet
from tests.tool_adapters import WEIGHTS, WRITTEN, Tensors, Written


@pytest.fixture(params=WRITTEN)
def written(request: pytest.FixtureRequest) -> Written:
    return WRITTEN[request.param]


@pytest.fixture
def catalog(written: Written, tmp_path: Path) -> Iterator[Catalog]:
    """A registry that holds the adapter as tiny/domain."""
    base = tiny.llama(tmp_path / "base", dtype=written.base)
    directory = written.save(base, tmp_path / "adapter")
    found = open_catalog(tmp_path / "home", Tree(base, read_base(base), [directory]))
    with closing(found.registry):
        found.registry.add_base("tiny", found.tree.manifest)
        remember_base(found.home, found.tree.manifest.digest, base)
        found.publish(directory, "tiny/domain", parent="base")
        yield found


def test_each_form_is_what_peft_loads(catalog: Catalog, written: Written, tmp_path: Path) -> None:
    [directory], base = catalog.tree.chain, catalog.tree.base
    if written.is_rounded:
        tensors = load_file(directory / WEIGHTS)
        save_file({key: value for key, value in tensors.items() if "base_layer" not in key}, directory / WEIGHTS)
    with quiet():
        tuned = peft.PeftModel.from_pretrained(chains.load(base), directory)  # type: ignore[arg-type]
    expected = chains.logits(tuned.eval())
    model = chains.load(base)
    composer, forms = Composer(model, catalog.registry, home=catalog.home), {}
    composer.use("tiny/domain")
    forms["stacked"] = chains.logits(model)
    composer.merge("tiny/domain")
    forms["merged"] = chains.logits(model)
    if catalog.tree.manifest.parameters[0].dtype == "F32":  # a merge of files rounds to the base's dtype
        compose(catalog.registry, "tiny/domain", "merge", tmp_path / "merged", home=catalog.home)
        forms["files"] = chains.logits(chains.load(tmp_path / "merged"))
    assert chains.relative(chains.logits(chains.load(base)), expected) > 0.01
    assert {name: chains.relative(found, expected) < 1e-5 for name, found in forms.items()} == dict.fromkeys(
        forms, True
    )


def test_a_copy_of_the_head_with_other_values_is_refused_in_any_dtype(tmp_path: Path) -> None:
    base = tiny.llama(tmp_path / "base", dtype=torch.bfloat16)

    def spoil(tensors: Tensors) -> None:
        [key] = [key for key in tensors if key.endswith("lm_head.base_layer.weight")]
        tensors[key][3, 3] += 1

    directory = Written({"target_modules": ["lm_head"]}, tensors=spoil).save(base, tmp_path / "adapter")
    with pytest.raises(Invalid, match=r"a copy of the base's weights with other values is not composed \(.*lm_head"):
        chains.check(directory, read_base(base), untied=False, on_base=True)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"use_sorcery": True}, "use_sorcery=true"),
        ({"sorcery_config": {"depth": 3}}, 'sorcery_config={"depth": 3}'),
        ({"sorcery_scale": 0.5}, "sorcery_scale=0.5"),
        ({"sorcery": 1, "peft_version": "0.99.0"}, "sorcery=1"),
        ({"sorcery": 1, "peft_version": "9" * 5000}, "sorcery=1"),  # more digits than int() reads
    ],
)
def test_a_field_that_may_change_what_is_computed_is_refused(
    tmp_path: Path, change: dict[str, Any], field: str
) -> None:
    base = tiny.llama(tmp_path / "base")
    directory = Written(config=lambda config: config.update(change)).save(base, tmp_path / "adapter")
    with pytest.raises(Invalid) as caught:
        chains.check(directory, read_base(base), untied=False, on_base=True)
    assert f"its config sets {field}, which PEFT" in str(caught.value)
    assert "may change what it computes: train without it, or remove it" in str(caught.value)


def test_fields_that_describe_are_named(tmp_path: Path) -> None:
    base = tiny.llama(tmp_path / "base")
    directory = WRITTEN["fields that describe"].save(base, tmp_path / "adapter")
    header, config = chains.read_files(directory)
    messages = warnings_of(config, classify(config, header, read_base(base)))
    assert any(
        "fields that PEFT 0.21.2 does not know" in message and "learning_rate=0.0002" in message for message in messages
    )


@pytest.mark.parametrize("tool", [name for name in WRITTEN if ":" in name])
def test_a_tools_folder_gives_no_warning_but_of_its_own_fields(tool: str, tmp_path: Path) -> None:
    base = tiny.llama(tmp_path / "base")
    directory = read_adapter_directory(WRITTEN[tool].save(base, tmp_path / "adapter"))
    found = directory.warnings(directory.spec(read_base(base)))
    assert [("lorap_emb_lr" in message) for message in found] == [True] * ("ms-swift" in tool)
    assert {name.partition("/")[0] for name in WRITTEN[tool].beside} <= {*directory.not_published, *directory.documents}


def test_a_magnitude_under_both_of_its_names_is_refused(tmp_path: Path) -> None:
    base = tiny.llama(tmp_path / "base")

    def double(tensors: Tensors) -> None:
        for key in [key for key in tensors if key.endswith("lora_magnitude_vector")]:
            tensors[f"{key}.weight"] = tensors[key].clone()

    directory = Written({"use_dora": True}, tensors=double).save(base, tmp_path / "adapter")
    with pytest.raises(Invalid, match=r"are one part of LoRA, and only one can be read"):
        chains.check(directory, read_base(base), untied=False, on_base=True)


def test_an_adapter_that_changes_nothing_gives_a_warning(tmp_path: Path) -> None:
    def zero(tensors: Tensors) -> None:
        for key in [key for key in tensors if "lora_B" in key]:
            tensors[key].zero_()

    base = tiny.llama(tmp_path / "base")
    directory = read_adapter_directory(Written(tensors=zero).save(base, tmp_path / "adapter"))
    [warning] = directory.warnings(directory.spec(read_base(base)))
    assert "the deltas of all 4 modules are zero, as before training" in warning
    trained = read_adapter_directory(Written().save(base, tmp_path / "trained"))
    assert trained.warnings(trained.spec(read_base(base))) == []
