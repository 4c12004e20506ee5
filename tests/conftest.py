"""What every test folder shares."""

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is slow now and then: how long an example takes says nothing about what it shows.
settings.register_profile("loratree", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("soak", settings.get_profile("loratree"), max_examples=2_000)
settings.load_profile(os.environ.get("LORATREE_HYPOTHESIS", "loratree"))

# A shell that runs the tests in its background has them, and what they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints what tests measured and gave to record_property as `measured`, from every worker process."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "measured":
                terminalreporter.write_line(f"measured: {value}")
