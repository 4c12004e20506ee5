"""Digests held to golden values that hashlib and the package rfc8785 gave, and the lockfile."""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from loratree_registry.core.chain import Chain, Limit, Step
from loratree_registry.core.digests import FileDigest, content_digest, digest_json, version_digest
from loratree_registry.core.manifest import BaseManifest, Parameter
from loratree_registry.errors import Invalid, NotFound
from loratree_registry.workspace.lockfile import LOCKFILE, Artifact, Lockfile, check_artifact, read_lockfile
from tests.registry.material import sha256

GOLDEN: list[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "golden" / "digests.json").read_text())


def ours(kind: str, given: dict[str, Any]) -> str:
    """The digest that our code gives to a golden file's input."""
    if kind == "base":
        parameters = [Parameter(**(stored | {"shape": tuple(stored["shape"])})) for stored in given["parameters"]]
        return BaseManifest(parameters=tuple(parameters)).digest
    if kind == "composition":
        return Chain(given["base"], given["base_digest"], tuple(Step(**step) for step in given["steps"])).digest
    files = [FileDigest(**file) for file in given["files"]]
    if kind == "artifact":
        return Artifact(given["mode"], given["dtype"], tuple(files)).digest
    if kind == "content":
        return content_digest(given["config"], files)
    return version_digest(**(given | {"files": files}))


@pytest.mark.parametrize("case", GOLDEN, ids=[case["name"] for case in GOLDEN])
def test_a_digest_is_the_golden_one(case: dict[str, Any]) -> None:
    assert ours(case["kind"], case["input"]) == case["digest"]
    assert "sha256:" + hashlib.sha256(rfc8785.dumps(case["document"])).hexdigest() == case["digest"]


def test_golden_digests_of_different_things_differ() -> None:
    digests = [case["digest"] for case in GOLDEN]
    assert len(set(digests)) == len(digests) >= 12


files = st.builds(FileDigest, st.sampled_from("abcdef"), st.integers(0, 2**53 - 1), st.binary().map(sha256))
digests = st.binary(max_size=4).map(sha256)
weights = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53) + 1, 2**53 - 1).map(float)
steps = st.builds(Step, st.sampled_from(["tiny/a", "tiny/a/b"]), st.integers(1, 9), digests, weights)
chains = st.builds(Chain, st.just("tiny"), digests, st.lists(steps, max_size=5).map(tuple))
limits = st.builds(Limit, st.integers(1, 2**53 - 1)) | st.builds(
    Limit, st.none(), st.floats(0, 1, exclude_min=True, allow_subnormal=True)
)
some_files = st.lists(files, max_size=4).map(tuple)
artifacts = st.builds(Artifact, st.sampled_from(["merge", "flatten"]), st.just("BF16"), some_files) | st.builds(
    Artifact, st.just("flatten"), st.just("BF16"), some_files, limits
)


@given(st.lists(files, max_size=4), st.randoms())
def test_the_order_in_which_files_are_listed_changes_no_digest(listed: list[FileDigest], random: Any) -> None:
    shuffled = random.sample(listed, len(listed))
    assert content_digest({}, shuffled) == content_digest({}, listed)
    assert Artifact("merge", "F32", tuple(shuffled)).digest == Artifact("merge", "F32", tuple(listed)).digest


@given(chains)
def test_a_composition_is_named_by_digests_and_weights_and_not_by_paths_and_numbers(chain: Chain) -> None:
    moved = Chain("other", chain.base_digest, tuple(Step("x/y", 7, s.digest, s.weight) for s in chain.steps))
    assert moved.digest == chain.digest
    written = [[step.digest, step.weight] for step in chain.steps]
    document = {"schema": "loratree/composition/1", "base": chain.base_digest, "chain": written}
    assert chain.digest == "sha256:" + hashlib.sha256(rfc8785.dumps(document)).hexdigest()


@given(chains.filter(lambda chain: chain.steps), st.data())
def test_another_weight_or_another_version_is_another_composition(chain: Chain, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(chain.steps) - 1))
    step = chain.steps[at]
    for other in (replace(step, weight=step.weight / 2 + 1), replace(step, digest=sha256(b"other"))):
        if (other.weight, other.digest) != (step.weight, step.digest):
            assert replace(chain, steps=(*chain.steps[:at], other, *chain.steps[at + 1 :])).digest != chain.digest


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_level_weight_that_is_not_finite_is_refused(weight: float) -> None:
    with pytest.raises(Invalid, match="a level weight is a finite number"):
        _ = Chain("tiny", sha256(b""), (Step("tiny/a", 1, sha256(b"a"), weight),)).digest


@given(chains, artifacts)
def test_a_lockfile_is_read_back_as_it_was_written_and_its_bytes_are_stable(
    tmp_path_factory: pytest.TempPathFactory, chain: Chain, artifact: Artifact
) -> None:
    folder = tmp_path_factory.mktemp("lockfile")
    lockfile = Lockfile("tiny/a@stable", chain, artifact)
    lockfile.write(folder)
    written = (folder / LOCKFILE).read_bytes()
    found = read_lockfile(folder)
    assert found is not None
    assert (found.ref, found.chain) == (lockfile.ref, chain)
    assert (found.artifact.digest, found.artifact.limit) == (artifact.digest, artifact.limit)
    found.write(folder)
    assert (folder / LOCKFILE).read_bytes() == written


def made(folder: Path) -> Lockfile:
    """A folder with two composed files and their lockfile."""
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_bytes(b"{}")
    chain = Chain("tiny", sha256(b"base"), (Step("tiny/a", 1, sha256(b"a")),))
    files = FileDigest("model.safetensors", 7, sha256(b"weights")), FileDigest("config.json", 2, sha256(b"{}"))
    lockfile = Lockfile("tiny/a", chain, Artifact("merge", "F32", files))
    lockfile.write(folder)
    return lockfile


@given(chains, artifacts, limits)
def test_a_lockfile_without_a_limit_says_nothing_of_one_and_one_with_it_says_just_that(
    chain: Chain, artifact: Artifact, limit: Limit
) -> None:
    plain = Lockfile("tiny/a", chain, replace(artifact, mode="flatten", limit=None)).to_json()
    assert list(plain["artifact"]) == ["mode", "dtype", "digest", "files"]
    limited = Lockfile("tiny/a", chain, replace(artifact, mode="flatten", limit=limit)).to_json()
    said = {"rank": limit.rank} if limit.energy is None else {"energy": limit.energy}
    assert limited == plain | {"artifact": plain["artifact"] | said}


@pytest.mark.parametrize(
    ("rank", "energy"),
    [(None, None), (3, 0.5), (0, None), (-1, None), (2**53, None), (10**400, None)]
    + [(None, energy) for energy in (0.0, -0.5, 1.0000001, float("nan"), float("inf"))],
)
def test_a_limit_that_limits_nothing_is_refused(rank: int | None, energy: float | None) -> None:
    with pytest.raises(Invalid, match=r"give one of the two|from 1, got|at most 1, such as 0\.99, got"):
        Limit(rank, energy)


@pytest.mark.parametrize(
    "said",
    [
        {"rank": 0},
        {"rank": 1.5},
        {"rank": True},
        {"rank": "8"},
        {"rank": 2**60},
        {"rank": None},
        {"energy": 0},
        {"energy": 1.5},
        {"energy": "0.9"},
        {"energy": True},
        {"rank": 8, "energy": 0.9},
        {"mode": "merge", "rank": 8},
        {"mode": "merge", "energy": None},
    ],
)
def test_a_lockfile_of_a_limit_that_no_composition_has_is_refused(tmp_path: Path, said: dict[str, Any]) -> None:
    artifact = Artifact("flatten", "F32", (), Limit(rank=8))
    document = Lockfile("tiny/a", Chain("tiny", sha256(b"base")), artifact).to_json()
    (tmp_path / LOCKFILE).write_text(json.dumps(document))
    assert read_lockfile(tmp_path) is not None
    del document["artifact"]["rank"]
    document["artifact"] |= said
    (tmp_path / LOCKFILE).write_text(json.dumps(document))
    with pytest.raises(Invalid, match=LOCKFILE):
        read_lockfile(tmp_path)


def test_a_folder_without_a_lockfile_has_none(tmp_path: Path) -> None:
    assert read_lockfile(tmp_path) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (("chain", 0, "digest"), sha256(b"other")),
        (("chain", 0, "weight"), 0.5),
        (("base", "digest"), sha256(b"other")),
        (("composition",), sha256(b"other")),
        (("artifact", "digest"), sha256(b"other")),
        (("artifact", "files", 0, "sha256"), sha256(b"other")),
        (("artifact", "files", 0, "name"), "../../x"),
        (("artifact", "files", 0, "name"), ""),
        (("artifact", "mode"), "stack"),
        (("chain", 0, "path"), "tiny/../x"),
        (("chain", 0, "weight"), "heavy"),
        (("schema",), "loratree/lockfile/2"),
        (("ref",), 7),
        (("chain",), None),
    ],
)
def test_an_edited_lockfile_is_refused(tmp_path: Path, field: tuple[Any, ...], value: Any) -> None:
    made(tmp_path)
    document = json.loads((tmp_path / LOCKFILE).read_text())
    inner = document
    for key in field[:-1]:
        inner = inner[key]
    inner[field[-1]] = value
    (tmp_path / LOCKFILE).write_text(json.dumps(document))
    with pytest.raises(Invalid):
        read_lockfile(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"schema": NaN}'])
def test_a_file_that_is_no_lockfile_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LOCKFILE).write_bytes(content)
    with pytest.raises(Invalid, match=LOCKFILE):
        read_lockfile(tmp_path)


def test_a_composed_file_is_checked_byte_for_byte(tmp_path: Path) -> None:
    lockfile = made(tmp_path)
    check_artifact(lockfile, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"weightS")
    with pytest.raises(Invalid, match="changed since it was composed"):
        check_artifact(lockfile, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(NotFound, match="is not there"):
        check_artifact(lockfile, tmp_path)


def test_a_base_digest_does_not_depend_on_sharding_kinds_or_ties() -> None:
    one = Parameter(name="a", shape=(2, 3), dtype="F32", kind="Linear", sha256=sha256(b"a"))
    two = Parameter(name="b", shape=(), dtype="BF16", kind="Embedding", sha256=sha256(b"b"))
    expected = digest_json(
        {"schema": "loratree/base/1", "tensors": [["a", "F32", [2, 3], sha256(b"a")], ["b", "BF16", [], sha256(b"b")]]}
    )
    tied = Parameter(name="0", shape=(2, 3), dtype="F32", kind="Linear", tied_to="a")
    for parameters in ((one, two), (two, one), (tied, two, one), (replace(one, kind="Conv1D"), two)):
        assert BaseManifest(parameters=parameters).digest == expected


FORGED = {
    "no composition": lambda text: text.replace('"composition"', '"x"'),
    "no digest of the artifact": lambda text: text.replace('"dtype": "F32",\n    "digest"', '"dtype": "F32",\n    "x"'),
    "an infinite version": lambda text: text.replace('"version": 1', '"version": 1e999'),
    "a fractional version": lambda text: text.replace('"version": 1', '"version": 1.0'),
    "a version of true": lambda text: text.replace('"version": 1', '"version": true'),
    "a version of zero": lambda text: text.replace('"version": 1', '"version": 0'),
    "an infinite size": lambda text: text.replace('"size": 7', '"size": 1e999'),
    "a size that no float holds": lambda text: text.replace('"size": 7', f'"size": {2**60}'),
    "a size of text": lambda text: text.replace('"size": 7', '"size": "7"'),
    "half a character in a name": lambda text: text.replace("model.safetensors", "\\ud800"),
    "a line break in a name": lambda text: text.replace("model.safetensors", "\\n"),
    "a weight of 400 digits": lambda text: text.replace('"weight": 1', f'"weight": {10**400}'),
    "a weight that no float holds": lambda text: text.replace('"weight": 1', f'"weight": {2**60 + 1}'),
    "a weight of NaN": lambda text: text.replace('"weight": 1', '"weight": NaN'),
    "a weight of text": lambda text: text.replace('"weight": 1', '"weight": "1"'),
    "a dtype of a number": lambda text: text.replace('"dtype": "F32"', '"dtype": 32'),
    "two refs": lambda text: text.replace('"ref"', '"ref": "tiny/a", "ref"'),
    "a page too much": lambda text: text + " " * 2**22,
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_lockfile_is_refused_by_its_path(name: str, tmp_path: Path) -> None:
    made(tmp_path)
    text = (tmp_path / LOCKFILE).read_text()
    assert FORGED[name](text) != text
    (tmp_path / LOCKFILE).write_text(FORGED[name](text))
    with pytest.raises(Invalid, match=LOCKFILE) as refused:
        read_lockfile(tmp_path)
    assert "\n" not in str(refused.value)


DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(sha256(b"")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.data())
def test_any_document_is_a_lockfile_or_refused_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("any")
    made(folder)
    document = json.loads((folder / LOCKFILE).read_text())
    for _ in range(data.draw(st.integers(0, 2))):
        document = changed(document, data)
    (folder / LOCKFILE).write_text(json.dumps(document))
    try:
        found = read_lockfile(folder)
    except Invalid:
        return
    assert found is not None
    found.write(folder)
    assert read_lockfile(folder) == found


def changed(document: Any, data: st.DataObject) -> Any:
    """The document with another value, or none, somewhere in it."""
    if not isinstance(document, (dict, list)) or not document or data.draw(st.integers(0, 4)) == 0:
        return data.draw(DOCUMENTS)
    keys: list[Any] = list(document) if isinstance(document, dict) else list(range(len(document)))
    key = data.draw(st.sampled_from(keys))
    if data.draw(st.integers(0, 4)) == 0:
        del document[key]
    else:
        document[key] = changed(document[key], data)
    return document


@given(st.binary(max_size=60))
def test_any_bytes_are_a_lockfile_or_refused_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / LOCKFILE).write_bytes(content)
    with pytest.raises(Invalid, match=LOCKFILE):
        read_lockfile(folder)


def test_a_pipe_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    lockfile = made(tmp_path)
    for name in ("model.safetensors", LOCKFILE):
        (tmp_path / name).unlink()
        os.mkfifo(tmp_path / name)
    with pytest.raises(Invalid, match="safetensors is not a file"):
        check_artifact(lockfile, tmp_path)
    with pytest.raises(Invalid, match=f"{LOCKFILE} is not a file"):
        read_lockfile(tmp_path)


def test_a_link_to_nowhere_is_no_lockfile(tmp_path: Path) -> None:
    (tmp_path / LOCKFILE).symlink_to(tmp_path / "gone")
    with pytest.raises(Invalid, match="cannot be read"):
        read_lockfile(tmp_path)
