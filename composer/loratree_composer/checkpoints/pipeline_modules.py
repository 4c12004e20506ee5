"""The modules around an encoder that sentence-transformers loads from folders of their own, such as 1_Pooling."""

import json
import shutil
from pathlib import Path
from typing import Any, Final

from loratree_registry.disk.plain_files import check_inside, open_plain, plain_path, read_plain
from loratree_registry.errors import Invalid
from loratree_registry.tensor_files.checkpoint import RESAVE

MODULES: Final = "modules.json"
_MAX_LIST: Final = 1024 * 1024  # bytes of modules.json
_KINDS: Final = (".json", ".txt", ".safetensors")  # data alone: no programs, no pickles


def copy_modules(directory: Path, out: Path) -> None:
    """Copy what the modules in `directory` hold into `out`: without it, the composed encoder would not be loaded.

    `directory` is the base's folder, and its modules.json names the folders in it. A module that stands in the folder
    itself is the encoder. Raises Invalid if modules.json names a folder elsewhere, or a link leads out of `directory`.
    """
    for name in _list_modules(directory / MODULES):
        folder = plain_path(directory, name, source=str(directory / MODULES))
        if not folder.is_dir():  # a module without files, such as 2_Normalize
            continue
        if folder.is_symlink():
            raise Invalid(f"{folder} is a link, expected a folder of its own: put a copy of the files in its place")
        check_inside(directory, folder)
        for path in sorted(path for path in folder.iterdir() if path.suffix in _KINDS and path.is_file()):
            (out / name).mkdir(exist_ok=True)
            with open_plain(path, remedy=RESAVE) as stream, (out / name / path.name).open("wb") as copy:
                shutil.copyfileobj(stream, copy)


def _list_modules(file: Path) -> list[str]:
    if not file.is_file():
        return []
    try:
        document: Any = json.loads(read_plain(file, limit=_MAX_LIST, remedy=RESAVE))
        names = [module["path"].removeprefix("./").removesuffix("/") for module in document]
        return [name for name in names if name not in ("", ".")]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Invalid(f"{file} is no list of modules as sentence-transformers writes it ({error}): {RESAVE}") from error
