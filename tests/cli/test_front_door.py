"""`import loratree`: what a Python program sees."""

import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import loratree
from tests import tiny
from tests.cli.conftest import CHAIN, LEAF, Filled, Shell
from tests.composer.chains import logits, relative, state_digest

PUBLIC = [
    "Composer",
    "CompositionWarning",
    "Limit",
    "LoratreeError",
    "Registry",
    "Tiers",
    "__version__",
    "compose",
    "connect",
    "publish",
    "pull",
    "read_base",
    "resolve",
]


def run(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_the_public_names_are_these_and_each_is_there() -> None:
    assert sorted(loratree.__all__) == sorted(PUBLIC) == dir(loratree)
    for name in PUBLIC:
        assert getattr(loratree, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = loratree.nothing  # type: ignore[attr-defined]


def test_importing_it_loads_nothing_and_listing_loads_no_torch() -> None:
    loaded = "sorted(n.partition('.')[0] for n in sys.modules if n.startswith(('loratree', 'torch', 'sqlalchemy')))"
    assert run(f"import sys, loratree; print({loaded})") == "['loratree']\n"
    assert "torch" not in run(f"import sys, loratree; loratree.connect, loratree.resolve; print({loaded})")


def test_importing_it_takes_less_than_thirty_milliseconds_more_than_python(
    record_property: Callable[[str, object], None],
) -> None:
    def seconds(program: str) -> float:
        began = time.perf_counter()
        run(program)
        return time.perf_counter() - began

    pairs = [(seconds("pass"), seconds("import loratree")) for _ in range(9)]
    bare, imported = (statistics.median(column) for column in zip(*pairs, strict=True))
    more = 1000 * (imported - bare)
    record_property("measured", f"import loratree takes {more:.1f} ms more than Python's {1000 * bare:.0f} ms")
    assert more < 30


@pytest.fixture
def home(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORATREE_HOME", str(shell.home))
    monkeypatch.delenv("LORATREE_URL", raising=False)
    return shell.home


def load(filled: Filled) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(filled.base).eval()


@pytest.mark.usefixtures("home")
def test_publish_resolve_pull_and_compose_open_the_registry_of_the_environment(
    filled: Filled, shell: Shell, tmp_path: Path
) -> None:
    assert loratree.resolve(LEAF).composition in shell("resolve", LEAF, "--json").stdout
    again = loratree.publish(filled.adapters[LEAF], LEAF)
    assert (again.published.created, again.uploaded_bytes) == (False, 0)
    adapter = tiny.adapter(filled.base, tmp_path / "bob", seed=9, rank=2)
    path = f"{CHAIN[2][0]}/bob"
    new = loratree.publish(str(adapter), path, parent=CHAIN[2][0], note="from Python")
    assert new.published.version.number == 1
    assert loratree.pull(path, tmp_path / "pulled").digest == new.published.version.digest
    whole = loratree.compose(path, "flatten", tmp_path / "flat")
    small = loratree.compose(path, "flatten", str(tmp_path / "small"), limit=loratree.Limit(rank=4))
    assert whole.chain == small.chain == loratree.resolve(path).to_chain()
    assert shell("compose", path, "--mode", "flatten", "--out", tmp_path / "flat").returncode == 0


@pytest.mark.usefixtures("home")
def test_publish_takes_each_option_of_the_command_line_as_an_argument(filled: Filled, tmp_path: Path) -> None:
    adapter = tiny.adapter(filled.base, tmp_path / "own", seed=9, rank=2)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(loratree.LoratreeError, match="nothing may be assumed: say with --parent"):
        loratree.publish(adapter, "tiny/own", assume=False)
    loratree.compose(CHAIN[0][0], "merge", tmp_path / "merged")
    above = loratree.publish(adapter, f"{CHAIN[0][0]}/own", trained_on=tmp_path / "merged", level="user")
    version = above.published.version
    assert (version.pin.path, version.pin.found, version.level) == (CHAIN[0][0], "lockfile", "user")
    forced = loratree.publish(
        adapter, f"{CHAIN[0][0]}/other", trained_on=str(tmp_path / "merged"), parent="base", force_parent=True
    )
    assert (forced.published.version.pin.path, forced.published.version.pin.found) == (None, "forced")


@pytest.mark.usefixtures("home")
def test_a_word_that_is_no_mode_or_level_is_refused_before_anything_is_written(filled: Filled, tmp_path: Path) -> None:
    for mode in ("merged", "flat", "MERGE", None, 3):
        with pytest.raises(loratree.LoratreeError, match="by the mode 'merge' or 'flatten', got"):
            loratree.compose(LEAF, mode, tmp_path / "out")  # type: ignore[arg-type]
    for level in ("usr", "", 3):
        with pytest.raises(loratree.LoratreeError, match="is not known: expected one of domain, subdomain, task, user"):
            loratree.publish(filled.adapters[LEAF], "tiny/new", level=level, parent="base")  # type: ignore[arg-type]
    assert list(tmp_path.glob("out*")) == []


@pytest.mark.usefixtures("home")
def test_a_registry_that_is_given_is_used_and_stays_open(tmp_path: Path) -> None:
    registry = loratree.connect()
    assert loratree.resolve(LEAF, registry=registry) == loratree.resolve(LEAF)
    assert loratree.pull(LEAF, tmp_path / "pulled", registry=registry).path == LEAF
    assert registry.base("tiny").name == "tiny"
    registry.close()


def test_an_error_is_a_loratree_error_with_a_sentence(home: Path) -> None:
    with pytest.raises(loratree.LoratreeError, match="tiny/nothing"):
        loratree.resolve("tiny/nothing")


@pytest.mark.usefixtures("home")
def test_a_composer_connects_by_itself_and_a_block_leaves_the_base_behind(filled: Filled) -> None:
    model = load(filled)
    bare, state = logits(model), state_digest(model)
    composer = loratree.Composer(model)
    with composer.active(LEAF) as resolution:
        assert resolution == composer.current == loratree.resolve(LEAF)
        stacked = logits(model)
        assert relative(stacked, bare) > 1e-3
    assert composer.current is None
    assert torch.equal(logits(model), bare)
    with composer.active(LEAF, merged=CHAIN[0][0], weights={CHAIN[1][0]: 1.0}):
        assert relative(logits(model), stacked) < 1e-5
    assert torch.equal(logits(model), bare)
    with pytest.raises(loratree.LoratreeError), composer.active(LEAF):
        composer.merge("tiny/nothing")
    assert (composer.current, state_digest(model)) == (None, state)
    with composer.active(LEAF):
        composer.merge(CHAIN[0][0])  # whatever is called inside, the base comes back
    assert (composer.current, state_digest(model)) == (None, state)
    with pytest.raises(loratree.LoratreeError), composer.active("tiny/nothing"):
        raise AssertionError("the block is not entered")
    assert state_digest(model) == state


@pytest.mark.usefixtures("home")
def test_a_registry_that_a_composer_opened_is_closed_with_it(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    from loratree_registry.embedded.registry import EmbeddedRegistry

    closed: list[object] = []
    close = EmbeddedRegistry.close
    monkeypatch.setattr(EmbeddedRegistry, "close", lambda registry: (closed.append(registry), close(registry)))
    composer = loratree.Composer(load(filled))
    assert closed == []
    del composer
    gc.collect()
    assert len(closed) == 1
