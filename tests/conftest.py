"""What all tests share, and how they share the machine."""

import fcntl
import os
import signal
import sys

import pytest
from places import IMPORTED

# Children import test code too.
os.environ["PYTHONPATH"] = os.pathsep.join([*IMPORTED, *filter(None, [os.environ.get("PYTHONPATH")])])

if interval := os.environ.get("ATTNSPARSE_SWITCH_INTERVAL"):  # seconds; see run_parallel.sh
    sys.setswitchinterval(float(interval))


def is_serial(item) -> bool:
    return item.get_closest_marker("serial") is not None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """With several processes (`-n`): a serial test waits until no other process runs a test."""
    if not hasattr(item.config, "workerinput"):
        return (yield)
    folder = os.open(item.config.rootpath, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX if is_serial(item) else fcntl.LOCK_SH)
        return (yield)
    finally:
        os.close(folder)  # and with it the lock


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard():
    """A shell starts background jobs with SIGINT ignored, which children would inherit; tests send it."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def outside_the_source_tree(tmp_path_factory):
    """Child processes find the installed package, not the sources beside the tests, which have no binary."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    yield
    os.chdir(before)
