"""Lets the core's allocations fail, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reliability import CORES, counters


def every_failure(dtype: str, call: Callable[[], Any], check: Callable[[], None]) -> int:
    """Let allocation 1, 2, ... of `call` fail until none does; `check` after each; how many there were.

    Each failure must be a MemoryError that leaves the core's memory in use as it was.
    """
    fail_at, texts = CORES[dtype]._debug_fail_at, []
    for n in range(1, 2000):
        before, result = counters(dtype), None
        fail_at(n)
        try:
            result = call()
        except MemoryError as error:
            texts.append(str(error))
        finally:
            fail_at(0)
        # the exception is gone here, and with it what the frames of its traceback held
        if result is not None:
            del result
            check()
            assert all(texts)
            return n - 1
        assert counters(dtype) == before, f"allocation {n}"
        check()
    raise AssertionError("allocations never end")


def failures_of(call: Callable[[], Any], dtype: str = "float32") -> list[str]:
    """Let allocation 1, 2, ... of a call that may return anything fail until it makes fewer; what each said.

    Each must raise MemoryError with a text, or what a wrong call raises anyway, and leave the core's memory
    as it was.
    """
    core, usual, texts = CORES[dtype], outcome(call), []
    for n in range(1, 20_000):
        before, made = counters(dtype), core._debug_stats()["n_allocations"]
        core._debug_fail_at(n)
        try:
            found = outcome(call)
        finally:
            core._debug_fail_at(0)
        if core._debug_stats()["n_allocations"] - made < n:
            assert found == usual
            return texts
        assert found is not None, f"allocation {n} failed, and the call did not say so"
        assert found == usual or (found[0] is MemoryError and found[1]), found
        texts += [] if found == usual else [found[1]]
        assert counters(dtype) == before, f"allocation {n}"
    raise AssertionError("allocations never end")


def outcome(call: Callable[[], Any]) -> tuple[type, str] | None:
    """Type and text of what a call raises; None if it does not."""
    try:
        call()
    except Exception as error:
        return type(error), str(error)
    return None
