"""What holds for every test: the machine is not left, warnings are errors, random examples are the same every time.

Warnings and sockets are settled in pyproject.toml ([tool.pytest.ini_options]); `--hypothesis-profile=explore` looks at
ten times as many stacks of layers, and at other ones each time.
"""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from data.database import Engine
from data.owntables import upgrade
from test.clients import PACKAGES
from test.databases import OWN_KINDS, database

settings.register_profile("suite", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("explore", settings.get_profile("suite"), derandomize=False, max_examples=1000)
settings.load_profile("suite")

# A shell's background ignores it, and so would the programs that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A package of its own, whose tests run where it is installed: test_format_plugin.py installs it and runs them.
collect_ignore = ["plugin"]


def pytest_report_header() -> list[str]:
    """Say first what will fail for want of a program, with the line that installs it."""
    missing = {program: package for program, package in PACKAGES.items() if shutil.which(program) is None}
    if not missing:
        return []
    return [
        f"missing: {', '.join(missing)}; tests that ask these programs will fail",
        f"missing: on Debian, apt-get install {' '.join(sorted(set(missing.values())))}",
    ]


@pytest.fixture(params=OWN_KINDS)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """Return an engine with our own tables, which are empty, on each kind of database."""
    with database(request.param, tmp_path) as engine:
        upgrade(engine)
        yield engine
