import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from loratree_cli.demo.reference import composed, forward, reference_logits
from tests import tiny


@pytest.mark.parametrize("length", [1, 17, 64])
def test_the_reference_is_the_model_that_transformers_runs(tmp_path: Path, length: int) -> None:
    tiny.llama(tmp_path)
    ids = tiny.tokens(length=length)
    with torch.no_grad():
        expected = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits
    found = reference_logits(tmp_path, [], ids)
    assert found.dtype == torch.float64
    assert (found - expected).abs().max() <= 2e-6 * expected.abs().max()


def test_the_reference_sums_every_adapter_scaled_by_alpha_over_rank(tmp_path: Path) -> None:
    tiny.llama(tmp_path / "base")
    for seed, (rank, alpha) in enumerate([(4, 8), (2, 3)]):
        tiny.adapter(tmp_path / "base", tmp_path / f"adapter{seed}", seed=seed, rank=rank, alpha=alpha)
    weights = composed(tmp_path / "base", [tmp_path / "adapter0", tmp_path / "adapter1"])
    name = "model.layers.1.mlp.down_proj"
    expected = load_file(tmp_path / "base" / "model.safetensors")[f"{name}.weight"].double()
    for seed, scale in ((0, 2.0), (1, 1.5)):
        factors = load_file(tmp_path / f"adapter{seed}" / "adapter_model.safetensors")
        a, b = (factors[f"base_model.model.{name}.lora_{which}.weight"].double() for which in "AB")
        expected = expected + scale * (b @ a)
    torch.testing.assert_close(weights[f"{name}.weight"], expected, rtol=1e-14, atol=1e-14)


def test_the_reference_looks_at_no_later_token(tmp_path: Path) -> None:
    tiny.llama(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    ids = tiny.tokens(length=9)
    changed = ids.clone()
    changed[:, 5:] = 0
    one, other = (forward(composed(tmp_path, []), config, tokens) for tokens in (ids, changed))
    assert torch.equal(one[:, :5], other[:, :5])
    assert not torch.equal(one[:, 5:], other[:, 5:])
