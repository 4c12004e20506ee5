"""What a user does with the client of openapi-python-client: resolve, list, page, publish, read, be refused.

`tests.generated_clients` runs it by the generator's own Python, with the generated package `registry_client` beside it.
"""

import argparse
import hashlib
import json
from io import BytesIO
from pathlib import Path
from typing import Any

from registry_client import Client  # type: ignore[import-not-found]
from registry_client.api.aliases import set_alias  # type: ignore[import-not-found]
from registry_client.api.bases import list_bases  # type: ignore[import-not-found]
from registry_client.api.files import get_file  # type: ignore[import-not-found]
from registry_client.api.health import get_health  # type: ignore[import-not-found]
from registry_client.api.nodes import list_children, list_descendants  # type: ignore[import-not-found]
from registry_client.api.uploads import begin_upload, complete_upload, send_part  # type: ignore[import-not-found]
from registry_client.api.versions import (  # type: ignore[import-not-found]
    get_version,
    list_versions,
    publish_version,
    resolve_chain,
)
from registry_client.models import (  # type: ignore[import-not-found]
    FileDigestInput,
    Level,
    Move,
    NewUpload,
    NewVersion,
    NewVersionConfig,
    PinSource,
    Problem,
)
from registry_client.types import File  # type: ignore[import-not-found]


def read(client: Any, parent: str, leaf: str) -> None:
    assert get_health.sync(client=client).status == "ok"
    resolution = resolve_chain.sync(f"{leaf}@stable", client=client, weight=[f"{parent}:0.5"])
    assert [(link.path, link.version, link.weight) for link in resolution.chain] == [(parent, 3, 0.5), (leaf, 2, 1.0)]
    assert resolution.chain[0].level is Level.DOMAIN
    assert get_version.sync(leaf, client=client).pin.found is PinSource.EXPLICIT
    [base] = list_bases.sync(client=client).items
    assert [node.path for node in list_children.sync(base.name, client=client).items] == [parent]
    assert [node.path for node in list_descendants.sync(base.name, client=client).items] == [parent, leaf]
    found, after = [], None
    while True:
        page = list_versions.sync(parent, client=client, limit=1, **({"after": after} if after else {}))
        found += [version.number for version in page.items]
        if (after := page.next_) is None:
            break
    assert found == [3, 2, 1]


def publish(client: Any, adapter: Path, path: str, parent: str) -> None:
    """The bytes go to the server in one part, as the upload says."""
    content = (adapter / "adapter_model.safetensors").read_bytes()
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    upload = begin_upload.sync(client=client, body=NewUpload(sha256=digest, size=len(content)))
    assert upload.parts == 1
    sent = send_part.sync_detailed(upload.id, upload.next_.number, client=client, body=File(payload=BytesIO(content)))
    assert sent.status_code == 204
    assert complete_upload.sync(upload.id, client=client).sha256 == digest
    file = FileDigestInput(name="adapter_model.safetensors", size=len(content), sha256=digest)
    config = NewVersionConfig.from_dict(json.loads((adapter / "adapter_config.json").read_text()))
    new = NewVersion(config=config, files=[file], parent=parent, found=PinSource.EXPLICIT, note="by a generated client")
    answer = publish_version.sync_detailed(path, client=client, body=new)
    assert answer.status_code == 201, answer.content
    assert answer.parsed.created
    version = answer.parsed.version
    assert (version.path, version.number, version.note) == (path, 1, "by a generated client")
    assert set_alias.sync(path, "stable", client=client, body=Move(version=1, expected=None)).version == 1
    assert resolve_chain.sync(f"{path}@stable", client=client).chain[-1].digest == version.digest
    read_back = get_file.sync(f"{path}@1", client=client, name="adapter_model.safetensors")
    assert read_back.payload.read() == content


def be_refused(client: Any, leaf: str) -> None:
    missing = resolve_chain.sync(f"{leaf}@7", client=client)
    assert isinstance(missing, Problem)
    assert (missing.status, missing.type_) == (404, "urn:loratree:problem:not-found")
    assert "has no version 7" in missing.detail
    moved = set_alias.sync(leaf, "stable", client=client, body=Move(version=1, expected=1))
    assert isinstance(moved, Problem)
    assert (moved.status, moved.current) == (409, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("url", "adapter", "parent", "leaf"):
        parser.add_argument(name)
    given = parser.parse_args()
    with Client(base_url=given.url) as client:
        read(client, given.parent, given.leaf)
        publish(client, Path(given.adapter), f"{given.parent}/oncology", f"{given.parent}@3")
        be_refused(client, given.leaf)


if __name__ == "__main__":
    main()
