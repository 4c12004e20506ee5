"""What a reader of the documents has before they begin: adapters that were trained elsewhere, on a base from a hub.

`python -m tests.samples BASE` writes beside each other: `adapters`, flat adapters; `runs`, a Trainer's run; `hub`, a
hub's cache with the base in it.
"""

import os
import shutil
import sys
from pathlib import Path

HUB_ID = "example/tiny-llama"


def main(base: Path) -> None:
    """Write the samples for a base into the current folder."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    places = ["adapters/radiology", "adapters/pharmacy", "adapters/Night Shift"]
    places += ["runs/triage/checkpoint-10", "runs/triage/checkpoint-20"]
    for seed, place in enumerate(places):
        model = AutoModelForCausalLM.from_pretrained(base)
        config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        trained = get_peft_model(model, config)
        _draw(trained, seed)
        trained.peft_config["default"].base_model_name_or_path = HUB_ID
        trained.save_pretrained(place)
        (Path(place) / "README.md").unlink(missing_ok=True)
    snapshot = Path("hub/models--example--tiny-llama/snapshots/0123abcd")
    snapshot.mkdir(parents=True)
    blobs = snapshot.parent.parent / "blobs"
    blobs.mkdir()
    for file in base.iterdir():
        shutil.copyfile(file, blobs / file.name)
        (snapshot / file.name).symlink_to(os.path.relpath(blobs / file.name, snapshot))
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text(snapshot.name)


def _draw(model: object, seed: int) -> None:
    """Give the adapter values of its own, as if it had been trained."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():  # type: ignore[attr-defined]
        if "lora_" in name:
            parameter.data.normal_(0, 0.02, generator=generator)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
