"""Schemathesis against a running server over a small tree that bears the names of the document's examples.

`python -m tests.fuzzed_api SCHEMATHESIS [--seed N] [--examples N]` runs every check of its command, stateful ones too.
It is installed by .ci/run into a place of its own, as it would change the packages of the tests.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from loratree_composer.base.manifest import read_base
from loratree_registry.api.examples import BASE, PARENT, PATH
from loratree_registry.embedded.registry import open_embedded
from loratree_registry.settings import Settings
from loratree_registry.workspace.base_transfer import push_base
from loratree_registry.workspace.publish import publish_directory
from tests import tiny
from tests.peft_bases import quiet
from tests.registry.serving import command_serving

# Rules that no JSON schema can state, because they compare parts of a request with each other or with what is stored.
# They are 422, and their operations say them in words.
BEYOND_SCHEMA = {
    "POST /v1/bases": "the parameters of a manifest refer to each other",
    "POST /v1/versions/{path}": "a config is checked against the base and the file",
    "POST /v1/nodes": "a level is below the level of the node above",
    "PUT /v1/base-files/{path}": "the files are a whole checkpoint",
    "POST /v1/missing/{path}": "the files are a whole checkpoint",
    "PUT /v1/uploads/{id}/parts/{number}": "a part has the length that was announced",
    "GET /v1/resolve/{ref}": "a weight is of a version in the chain",
}

ANSWERS = ["2xx", "3xx", "403", "404", "409", "410"]
REFUSING = [*ANSWERS, "422"]


def fill(home: Path, models: Path) -> None:
    """Publishes three versions at PARENT, two at PATH with the alias stable, and stores the base's weights."""
    with quiet():
        base = tiny.llama(models / "base")
        adapters = [tiny.adapter(base, models / str(seed), seed=seed) for seed in range(5)]
        manifest = read_base(base)
    with closing(open_embedded(Settings.from_environment({"LORATREE_HOME": str(home)}))) as registry:
        registry.add_base(BASE.name, manifest, source=BASE.source)
        push_base(registry, BASE.name, base)
        for adapter in adapters[:3]:
            publish_directory(registry, adapter, PARENT, parent="base", home=home)
        for adapter in adapters[3:]:
            publish_directory(registry, adapter, PATH, parent=f"{PARENT}@3", home=home)
        registry.set_alias(PATH, "stable", version=2, expected=None)


def configuration() -> str:
    """Returns schemathesis.toml: what each operation may answer to a request that the schema allows."""
    lines = ["[checks]", f"positive_data_acceptance.expected-statuses = {json.dumps(ANSWERS)}", ""]
    for operation in BEYOND_SCHEMA:
        lines += ["[[operations]]", f"include-name = {json.dumps(operation)}"]
        lines += [f"checks.positive_data_acceptance.expected-statuses = {json.dumps([*ANSWERS, '422'])}", ""]
    # A GET of `{path}@{alias}` is a listing of the aliases at a path that is none: 422, not 405.
    lines += ["[[operations]]", 'include-path = "/v1/aliases/{path}@{alias}"']
    lines += ['phases.coverage.unexpected-methods = ["post", "patch"]']
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", type=Path)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--examples", default="40")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        fill(place / "home", place / "models")
        (place / "schemathesis.toml").write_text(configuration())
        with command_serving(place / "home") as url:
            run = [str(given.command), "--config-file", str(place / "schemathesis.toml"), "run", f"{url}/openapi.json"]
            run += ["--phases", "examples,coverage,fuzzing,stateful", "--checks", "all", "--seed", given.seed]
            run += ["--max-examples", given.examples, "--continue-on-failure"]
            sys.exit(subprocess.run(run, check=False, cwd=place).returncode)


if __name__ == "__main__":
    main()
