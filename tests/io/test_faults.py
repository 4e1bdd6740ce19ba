"""Disks that refuse (R21) and power lost in a save (R22): the old file or the new one, and the truth."""

from __future__ import annotations

import collections
import shutil
from pathlib import Path

import faults
import power_loss
import pytest
from own_formats import FORMATS, RUN, content
from reliability import report

from attnsparse.io.folder_commit import COMMIT, TEMPORARY

pytestmark = pytest.mark.skipif(faults.compiler() is None, reason="needs Linux and a C compiler")
each_format = pytest.mark.parametrize("name", FORMATS)


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> Path:
    return faults.build(tmp_path_factory.mktemp("shim"))


def check_points(found: dict) -> int:
    assert found["wrong"] == []
    assert all(found["points"].get(kind) for kind in faults.REFUSED)
    return sum(found["points"].values())


@pytest.fixture(scope="module")
def some_points(library) -> dict:
    return faults.child(library, "points", "some", *FORMATS)


@each_format
def test_a_disk_that_refuses_leaves_what_was_there(some_points, name):
    """R21, some of it."""
    check_points(some_points[name])


@pytest.mark.slow
@each_format
def test_every_call_that_a_save_makes_may_fail(library, name):
    """R21: errno and file name, older files byte for byte, nothing half, nothing reported as saved."""
    n_points = check_points(faults.child(library, "points", "all", name)[name])
    report("R21", f"{name}: {n_points} failing calls, 0 promises broken")


# ---- power


@pytest.fixture(scope="module")
def records(library, tmp_path_factory) -> Path:
    """What a save of version 1 did to a folder with version 0, for every format."""
    top = tmp_path_factory.mktemp("records")
    faults.child(library, "record", top, *FORMATS, *RUN)
    return top


class Loader:
    """What a folder with some files loads as: "old", "new" or the name of an error; each state once."""

    def __init__(self, top: Path, name: str) -> None:
        self.format, self.folder = (FORMATS | RUN)[name], top / "state"
        self.known = {content(self.format.load(top / which)): which for which in ("old", "new")}
        self.seen: dict[frozenset, str] = {}

    def __call__(self, state: dict[str, bytes]) -> str:
        visible = frozenset(state.items())
        if COMMIT not in state:  # else temporary files count
            visible = frozenset((name, data) for name, data in state.items() if not name.endswith(TEMPORARY))
        if visible not in self.seen:
            self.folder.mkdir()
            for name, data in state.items():
                (self.folder / name).write_bytes(data)
            self.seen[visible] = self.load()
            shutil.rmtree(self.folder)
        return self.seen[visible]

    def load(self) -> str:
        try:
            return self.known.get(content(self.format.load(self.folder)), "a mixture")
        except (ValueError, FileNotFoundError) as error:
            return type(error).__name__


def outcomes(top: Path, name: str, without: str = "") -> collections.Counter:
    """How many states load as what; `without` leaves operations out, as if the program had not done them."""
    operations = [one for one in power_loss.read_log(top / "log") if one.what not in without]
    old = faults.files(top / "old")
    load, found, last = Loader(top, name), collections.Counter(), []
    for done, state in power_loss.states(operations, old, str(top / "new")):
        found[load(state)] += 1
        last += [load(state)] if done == len(operations) else []
    assert without or set(last) == {"new"}, "a finished save was lost"
    return found


@pytest.mark.parametrize("name", FORMATS | RUN)
def test_power_that_is_lost_in_a_save(records, name):
    """R22: what is loaded is the old or the new one, of one file or of several."""
    found = outcomes(records / name, name)
    assert found["old"] > 10
    assert found["new"] >= 3
    assert set(found) == {"old", "new"}
    report("R22", f"{name}: {found.total()} states, " + ", ".join(f"{n} {what}" for what, n in found.items()))


@pytest.mark.parametrize("name", ["training", "circuit"])
def test_the_model_of_lost_power_finds_a_save_without_fsync(records, name):
    found = outcomes(records / name, name, without="S")
    assert set(found) - {"old", "new"}
