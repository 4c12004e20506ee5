"""What every test folder shares."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from loratree_registry.errors import MAX_SENTENCE, LoratreeError
from tests.long import LONG

# A busy machine is slow now and then: how long an example takes says nothing about what it shows.
settings.register_profile("loratree", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("soak", settings.get_profile("loratree"), max_examples=2_000)
settings.register_profile("fast", settings.get_profile("loratree"), max_examples=10)
settings.load_profile(os.environ.get("LORATREE_TEST_HYPOTHESIS", "loratree"))

os.environ["LORATREE_CONFIG"] = os.devnull  # the file of who runs the tests says nothing here

_init = LoratreeError.__init__


def _init_short(error: LoratreeError, sentence: str, **options: Any) -> None:
    """No error that a test causes has more of our own words than fit: what is beyond them belongs into its details."""
    words = [word for word in sentence.split(" ") if len(word) <= 60]  # others are a caller's: folders, names, digests
    assert sum(map(len, words)) + len(words) <= MAX_SENTENCE, f"too long for an error: {sentence}"
    _init(error, sentence, **options)


LoratreeError.__init__ = _init_short  # type: ignore[method-assign]

# A shell that runs the tests in its background has them, and what they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


# What `make test-fast` leaves out: folders whose tests start servers and processes or fill whole registries, and
# tests by words of their names.
SLOW_FOLDERS = (
    "benchmarks",
    "cli",
    "crash",
    *(f"registry/{name}" for name in ("api", "blobs", "database", "embedded")),
)
SLOW_FOLDERS += ("composer/checkpoints", "registry/housekeeping", "registry/remote")
# The whole demo in small, three times; a base of 300 MB; the benchmark at a thousand users; real models; quantisers.
LONG_FILES = (
    "cli/demo/test_flow.py",
    "cli/test_large_base.py",
    "benchmarks/test_registry.py",
    "composer/test_real_model.py",
    "composer/test_real_encoder.py",
    "composer/live/test_quantised.py",
)
SLOW_WORDS = (
    "_contract",
    "against_peft",
    "compose_",
    "compiled",
    "imports",
    "killed",
    "largest_size",
    "moto",
    "postgresql",
    "process",
    "remote",
    "s3",
    "split",
    "strange_text",
    "test_scale",
    "thousand",
    "two_servers",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --fast."""
    parser.addoption("--fast", action="store_true", help="leave out what starts servers or other processes")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what takes long where .ci/run does not ask for it; do not even import the slow folders under --fast."""
    left_out = (*(SLOW_FOLDERS if config.getoption("--fast") else ()), *(() if LONG else LONG_FILES))
    return True if collection_path in (Path(__file__).parent / name for name in left_out) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the slow tests out under --fast; nothing else ever leaves one out."""
    if config.getoption("--fast"):
        slow = {item for item in items if any(word in item.nodeid for word in SLOW_WORDS)}
        config.hook.pytest_deselected(items=list(slow))
        items[:] = [item for item in items if item not in slow]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints what tests measured and gave to record_property as `measured`, from every worker process."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "measured":
                terminalreporter.write_line(f"measured: {value}")
