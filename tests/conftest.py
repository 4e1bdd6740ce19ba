"""What all tests share."""

import os
import signal
import sys

import pytest
from places import IMPORTED

# Children import test code too.
os.environ["PYTHONPATH"] = os.pathsep.join([*IMPORTED, *filter(None, [os.environ.get("PYTHONPATH")])])

if interval := os.environ.get("ATTNSPARSE_SWITCH_INTERVAL"):  # seconds; see run_parallel.sh
    sys.setswitchinterval(float(interval))


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
