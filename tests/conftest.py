"""What every test folder shares."""

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is slow now and then: how long an example takes says nothing about what it shows.
settings.register_profile("loratree", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("soak", settings.get_profile("loratree"), max_examples=2_000)
settings.register_profile("fast", settings.get_profile("loratree"), max_examples=10)
settings.load_profile(os.environ.get("LORATREE_HYPOTHESIS", "loratree"))

# A shell that runs the tests in its background has them, and what they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


# What `make test-fast` leaves out: tests that start servers or other processes, compile, or train.
SLOW_FOLDERS = ("tests/benchmarks", "tests/cli", "tests/crash", "tests/registry/api", "tests/registry/blobs")
SLOW_WORDS = ("postgresql", "moto", "s3", "remote", "two_servers", "compiled", "process", "killed", "against_peft")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --fast."""
    parser.addoption("--fast", action="store_true", help="leave out what starts servers or other processes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the slow tests out under --fast; nothing else ever leaves one out."""
    if config.getoption("--fast"):
        slow = [
            item for item in items if item.nodeid.startswith(SLOW_FOLDERS) or any(w in item.nodeid for w in SLOW_WORDS)
        ]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in set(slow)]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints what tests measured and gave to record_property as `measured`, from every worker process."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "measured":
                terminalreporter.write_line(f"measured: {value}")
