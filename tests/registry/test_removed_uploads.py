"""An upload that has ended is not found, by whatever it is asked, over every store: never a fault of the server."""

import io
import shutil
from collections.abc import Callable, Iterator

import httpx
import pytest

from loratree_registry.blobs import store
from loratree_registry.blobs.sending import send
from loratree_registry.core.uploads import ClientUploads, Part
from loratree_registry.embedded.registry import EmbeddedRegistry
from loratree_registry.embedded.staged_uploads import StagedUploads
from loratree_registry.errors import NotFound
from loratree_registry.remote.registry import RemoteRegistry, RemoteUploads
from tests.registry.conftest import Storage
from tests.registry.fresh import open_fresh
from tests.registry.material import sha256

PART = 5 * 1024**2  # the least that S3 takes as a part that is not the last
LARGE = bytes(range(256)) * (PART // 256) + b"the last part"
SETTINGS: dict[str, dict[str, str]] = {"folder": {}, "s3": {}, "s3 through the server": {"LORATREE_DIRECT": "0"}}


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (
        "blobs.store",
        "blobs.parts",
        "blobs.s3.staged",
        "embedded.direct_uploads",
        "embedded.staged_uploads",
    ):
        monkeypatch.setattr(f"loratree_registry.{module}.PART", PART)
    assert store.PART == PART


@pytest.fixture(params=SETTINGS)
def behind(request: pytest.FixtureRequest, storage: Storage) -> Iterator[EmbeddedRegistry]:
    bucket = {} if request.param == "folder" else storage.bucket()
    registry = open_fresh(storage.settings(**bucket, **SETTINGS[request.param]))
    yield registry
    registry.close()


@pytest.fixture
def uploads(behind: EmbeddedRegistry, storage: Storage) -> Iterator[ClientUploads]:
    registry = RemoteRegistry(storage.served().over(behind, storage.folder))
    yield RemoteUploads(registry._http)
    registry.close()


@pytest.mark.parametrize("content", [b"one part", LARGE], ids=["one part", "two parts"])
def test_an_upload_that_was_removed_is_not_found_by_whatever_it_is_asked(
    uploads: ClientUploads, behind: EmbeddedRegistry, storage: Storage, content: bytes
) -> None:
    upload = uploads.begin(sha256(content), len(content))
    uploads.give_up(upload.id)
    url = f"{storage.served().url}/v1/uploads/{upload.id}"
    unknown = f"{storage.served().url}/v1/uploads/{'0' * 32}"
    for place in (url, unknown):
        answers = [
            httpx.get(place),
            httpx.get(f"{place}/parts/1"),
            httpx.put(f"{place}/parts/1", content=content[:PART]),
            httpx.post(f"{place}/complete"),
            httpx.delete(place),
        ]
        assert [answer.status_code for answer in answers] == [404] * 5
        assert {answer.json()["type"] for answer in answers} == {"urn:loratree:problem:not-found"}
    for ask in (uploads.find, uploads.give_up, lambda id: uploads.part(id, 1)):
        with pytest.raises(NotFound, match="begin another"):
            ask(upload.id)
    with pytest.raises(NotFound, match="begin another"):
        uploads.complete(upload)


def test_a_part_for_an_upload_that_was_given_up_since_its_url_was_told_is_not_found(
    uploads: ClientUploads, behind: EmbeddedRegistry
) -> None:
    upload = uploads.begin(sha256(LARGE), len(LARGE))
    assert upload.next is not None
    uploads.give_up(upload.id)
    # moto answers a client that sends to the URL itself with 500, where S3 answers NoSuchUpload.
    sender: ClientUploads = behind.direct or uploads
    with pytest.raises(NotFound, match="begin another"):
        sender.put(upload.id, upload.next, io.BytesIO(LARGE[:PART]))


def test_an_upload_that_ends_while_its_parts_are_sent_is_begun_again_and_nothing_is_lost(
    uploads: ClientUploads, behind: EmbeddedRegistry
) -> None:
    ended = []

    class Ending(RemoteUploads):
        """Another client gives the upload up just before the second part is sent."""

        def __init__(self) -> None:
            self._http = uploads._http  # type: ignore[attr-defined]

        def put(self, id: str, part: Part, content: io.BytesIO) -> None:  # type: ignore[override]
            if part.number == 2 and not ended:
                ended.append(id)
                self.give_up(id)
            super().put(id, part, content)

    send(Ending(), io.BytesIO(LARGE), sha256=sha256(LARGE), size=len(LARGE))
    assert ended
    assert behind._blobs.size(sha256(LARGE)) == len(LARGE)


def test_an_upload_that_s3_has_dropped_is_not_found_when_it_is_completed(storage: Storage) -> None:
    registry = open_fresh(storage.settings(**storage.bucket()))
    assert registry.direct is not None
    upload = registry.direct.begin(sha256(LARGE), len(LARGE))
    registry._blobs.give_up(registry.direct._find_transfer(upload.id))  # type: ignore[attr-defined]
    with pytest.raises(NotFound, match="has ended: begin a new one"):
        registry.direct.complete(upload)
    with pytest.raises(NotFound, match="begin another"):  # and it is forgotten here too
        registry.direct.complete(upload)
    registry.close()


REMOVALS: dict[str, Callable[[StagedUploads, str], object]] = {
    "given up": lambda staging, id: staging.give_up(id),
    "folder removed": lambda staging, id: shutil.rmtree(staging.root / id),
    "all removed": lambda staging, _: shutil.rmtree(staging.root),
}


@pytest.mark.parametrize("removal", REMOVALS)
def test_a_part_whose_upload_is_removed_while_it_arrives_is_not_found(storage: Storage, removal: str) -> None:
    staging = StagedUploads(storage.folder / "uploads", lambda *_, **__: None)
    upload = staging.begin(sha256(b"x"), 1)

    def receive() -> None:
        with staging.receive(upload.id, 1) as arriving:
            arriving.write(b"x")
            REMOVALS[removal](staging, upload.id)

    with pytest.raises(NotFound, match="begin another"):
        receive()


def test_parts_that_are_removed_while_they_are_stored_are_not_found_and_not_the_clients_fault(storage: Storage) -> None:
    registry = open_fresh(storage.settings())

    def remove_and_store(stream: io.BufferedReader, *, sha256: str, size: int) -> None:
        shutil.rmtree(staging.root / upload.id)
        registry.upload(stream, sha256=sha256, size=size)

    staging = StagedUploads(storage.folder / "uploads", remove_and_store)
    upload = staging.begin(sha256(b"x"), 1)
    with staging.receive(upload.id, 1) as arriving:
        arriving.write(b"x")
    with pytest.raises(NotFound, match="begin another"):
        staging.complete(upload)
    registry.close()
