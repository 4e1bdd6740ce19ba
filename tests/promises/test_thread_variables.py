"""ATTNSPARSE_NUM_THREADS and OMP_NUM_THREADS, each read once by a process of its own."""

import os

import pytest
from reliability import child

NAMES = ("ATTNSPARSE_NUM_THREADS", "OMP_NUM_THREADS")


def asked(own: str | None, omp: str | None) -> tuple[int, int, list[str]]:
    """Threads in use, those that the process may use, and warnings."""
    values = dict(zip(NAMES, (own or "", omp or "")))
    n, default, told = child("environment_child.py", **values)
    return n, default, told


@pytest.mark.parametrize(
    ("own", "omp", "expected"),
    [
        ("3", None, 3), (None, "5", 5), ("3", "5", 3), (" 7 ", "", 7), (None, "4,2,1", 4), (None, "200", 64),
        ("64", None, 64), ("1", "64", 1),
    ],
)  # fmt: skip
def test_what_they_say(own, omp, expected):
    n, _, told = asked(own, omp)
    assert (n, told) == (expected, [])


def test_without_them_affinity_and_quota_decide():
    n, default, told = asked(None, None)
    assert (n, told) == (default, [])
    if hasattr(os, "sched_getaffinity"):
        assert default <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize("text", ["0", "65", "-1", "many", "2.5", "1,2", "9" * 30])
def test_a_wrong_number_of_ours_is_ignored_in_one_sentence(text):
    n, _, told = asked(text, "3")
    assert n == 3
    assert len(told) == 1
    assert told[0].startswith(f"ATTNSPARSE_NUM_THREADS={text!r:.40}")
    assert told[0].endswith("is no number of threads in 1..64, and is ignored")


@pytest.mark.parametrize("text", ["0", "all", ",2"])
def test_a_wrong_number_of_openmp_is_ignored_in_one_sentence(text):
    n, default, told = asked(None, text)
    assert n == default
    assert told == [f"OMP_NUM_THREADS={text!r} is no number of threads in 1..64, and is ignored"]
