"""R29: runs beyond the borders of int32, each in a process of its own and below 4 GB; see large_child.py."""

import large_child
import pytest
import reliability
from reliability import report

NAMES = tuple(large_child.SMALL)
BOUND = 2e-5


def available() -> int:
    with open("/proc/meminfo") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("MemAvailable"))


def test_the_same_checks_at_small_sizes():
    found = reliability.child("large_child.py", "all", "small")["found"]
    assert tuple(found) == NAMES
    assert {name: f for name, f in found.items() if f["wrong"] or not f["error"] < BOUND} == {}


@pytest.mark.serial
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
def test_beyond_int32(name):
    if available() < 5 * 2**30:
        pytest.skip("needs 5 GB of free memory")
    answer = reliability.child("large_child.py", name, timeout=3500)
    found, peak = answer["found"][name], answer["peak"]
    assert found["reaches"] > 2**31
    assert not found["wrong"]
    assert found["error"] < BOUND
    assert peak < 4e9
    reached = f"{name} to {found['reaches']:,}"
    report("R29", f"{reached}: 1,000 entries, error {found['error']:.1e}, peak {peak / 1e9:.2f} GB")
