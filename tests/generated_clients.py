"""Clients that are generated from the OpenAPI document of a running server, by the generators that most people take.

`python -m tests.generated_clients BIN [--npx NPX]` generates by openapi-python-client and datamodel-codegen from the
folder BIN, and by openapi-typescript. The first client resolves, lists and publishes; the second's models read real
answers; the types of the third are checked by TypeScript. .ci/run installs them into places of their own.
"""

import argparse
import os
import subprocess
import tempfile
from pathlib import Path

import httpx

from loratree_registry.api.examples import PARENT, PATH
from tests import tiny
from tests.fuzzed_api import fill
from tests.peft_bases import quiet
from tests.registry.serving import command_serving

TYPESCRIPT = ("openapi-typescript@7.13.0", "typescript@5.9.3")
# The model that each answer is read by.
READ = {
    "/v1/bases": "BasePage",
    f"/v1/nodes/{PATH}": "Node",
    f"/v1/versions/{PARENT}": "VersionPage",
    f"/v1/resolve/{PATH}@stable": "Resolution",
    f"/v1/lineage/{PATH}": "Lineage",
    f"/v1/events/{PARENT}": "EventPage",
    "/v1/manifests/llama-3.1-8b": "BaseManifest",
    f"/v1/resolve/{PATH}@7": "Problem",
}
READING = "import sys, models; getattr(models, sys.argv[1]).model_validate_json(sys.stdin.buffer.read())"


def run(*command: str | Path, cwd: Path, given: bytes | None = None) -> None:
    """Runs a command that must succeed, and that must not warn."""
    path = f"{Path(command[0]).parent}:{os.environ['PATH']}"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PATH": path}
    done = subprocess.run(command, cwd=cwd, env=environment, input=given, capture_output=True, check=False)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    assert "warning" not in said.lower(), said


def use_python_client(bin_: Path, place: Path, url: str, adapter: Path) -> None:
    options = ["--path", "openapi.json", "--output-path", "registry_client", "--meta", "none", "--fail-on-warning"]
    run(bin_ / "openapi-python-client", "generate", *options, cwd=place)
    script = Path(__file__).with_name("generated_client.py")
    (place / script.name).write_text(script.read_text())
    run(bin_ / "python", script.name, url, adapter, PARENT, PATH, cwd=place)


def use_models(bin_: Path, place: Path, url: str) -> None:
    options = ["--input", "openapi.json", "--input-file-type", "openapi", "--output", "models.py"]
    kind = ["--output-model-type", "pydantic_v2.BaseModel", "--formatters", "builtin"]
    run(bin_ / "datamodel-codegen", *options, *kind, cwd=place)
    for path, model in READ.items():
        run(bin_ / "python", "-c", READING, model, cwd=place, given=httpx.get(url + path).content)


def use_types(npx: Path, place: Path) -> None:
    generate = [npx, "--yes", *(part for package in TYPESCRIPT for part in ("--package", package))]
    run(*generate, "openapi-typescript", "openapi.json", "--output", "types.d.ts", cwd=place)
    (place / "use.ts").write_text(
        'import type { components, operations } from "./types";\n'
        'type Resolution = components["schemas"]["Resolution"];\n'
        'type Answer = operations["resolve_chain"]["responses"][200]["content"]["application/json"];\n'
        "export const deepest = (answer: Answer): string => (answer satisfies Resolution).chain.at(-1)!.digest;\n"
    )
    run(*generate, "tsc", "--strict", "--noEmit", "--target", "es2022", "use.ts", cwd=place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bin", type=Path)
    parser.add_argument("--npx", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        fill(place / "home", place / "models")
        with quiet():
            adapter = tiny.adapter(place / "models" / "base", place / "adapter", seed=9)
        with command_serving(place / "home") as url:
            (place / "openapi.json").write_bytes(httpx.get(f"{url}/openapi.json").content)
            use_python_client(given.bin.absolute(), place, url, adapter)
            print("openapi-python-client: resolves, lists, publishes")
            use_models(given.bin.absolute(), place, url)
            print("datamodel-codegen: reads", ", ".join(READ.values()))
            if given.npx:
                use_types(given.npx, place)
                print("openapi-typescript: its types hold under --strict")


if __name__ == "__main__":
    main()
