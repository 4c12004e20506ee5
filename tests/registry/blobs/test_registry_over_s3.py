"""A registry whose blobs are in S3 does the main job: its streams cannot seek."""

from pathlib import Path

from loratree_registry.embedded.registry import open_embedded
from loratree_registry.settings import Settings
from tests.registry.material import WEIGHTS, Material, publish

from .conftest import BUCKET, PREFIX, HeldInS3


def test_a_version_is_published_to_s3_and_read_back(s3_held: HeldInS3, material: Material, tmp_path: Path) -> None:
    environment = {"LORATREE_HOME": str(tmp_path), "LORATREE_BLOBS": f"s3://{BUCKET}/{PREFIX}"}
    registry = open_embedded(Settings.from_environment(environment | {"LORATREE_S3_ENDPOINT": s3_held.server.endpoint}))
    registry.add_base("tiny", material.base)
    version = publish(registry, "tiny/medicine", material.rank4).version
    with registry.open_file("tiny/medicine", WEIGHTS) as stream:
        assert stream.read() == material.rank4.weights
    registry.close()
    assert s3_held.names() == [f"sha256/{version.files[0].sha256[7:9]}/{version.files[0].sha256[7:]}"]
