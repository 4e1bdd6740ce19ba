"""Fuzz the readers: `python -m tests.fuzz.run [NAME ...] [--seconds N] [--folder F] [--keep]`.

With atheris (`pip install atheris`) mutation is guided by the coverage of the readers' code; without it the
same mutators run blindly. Each harness runs in a process of its own and ends with one line of numbers. What
was found is in FOLDER/<name>/; an input that fails is written to FOLDER/<name>-crash-..., and the run ends
with 1. `--keep` stores what was found in tests/fuzz/corpus, which the ordinary tests replay.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
IMPORTED = [str(TESTS / name) for name in ("support", "toys", "files", "oracle")]
KEPT_BYTES = 18_000  # of one harness, compressed
GOOD_INPUTS = 400  # that were read well, to begin from


class Tally:
    """Counts of one process, written to a file now and then, because libFuzzer ends without a goodbye."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counts = {"executions": 0, "read": 0, "failures": 0, "slowest": 0.0, "slow": 0}
        self.begin = time.monotonic()
        self.before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.write()

    def add(self, accepted: bool, seconds: float) -> None:
        self.counts["executions"] += 1
        self.counts["read"] += accepted
        self.counts["slowest"] = max(self.counts["slowest"], seconds)
        if self.counts["executions"] % 200 == 0:
            self.write()

    def write(self) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        more = {"MiB": peak >> 10, "MiB_more": (peak - self.before) >> 10}
        more["seconds"] = round(time.monotonic() - self.begin, 1)
        self.path.write_text(json.dumps(self.counts | more))


def run_one(name: str, folder: Path, seconds: float, seed: int, extra: list[str]) -> None:
    """In a process of its own: fuzz one harness until the time is over; never returns with atheris."""
    sys.path[:0] = IMPORTED
    if find_spec("atheris"):
        import atheris

        with atheris.instrument_imports(include=["attnsparse"]):
            from .harnesses import HARNESSES, MAX_BYTES, attempt
    else:
        from .harnesses import HARNESSES, MAX_BYTES, attempt
    from .corpus import kept

    harness, tally = HARNESSES[name], Tally(folder / f"{name}.json")
    inputs = folder / name
    inputs.mkdir(exist_ok=True)
    for data in [*harness.seeds(), *kept(name)]:
        (inputs / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)

    good = harness.seeds()

    def once(data: bytes) -> None:
        try:
            accepted, seconds = attempt(harness, data)
            tally.add(accepted, seconds)
            if accepted and len(good) < GOOD_INPUTS:
                good.append(data)
        except BaseException:
            tally.counts["failures"] += 1
            (folder / f"{name}-crash-{hashlib.sha256(data).hexdigest()[:8]}").write_bytes(data)
            tally.write()
            raise

    if find_spec("atheris"):
        options = [f"-max_total_time={seconds:.0f}", f"-seed={seed}", f"-max_len={MAX_BYTES}", *extra]
        _guided(atheris, harness, once, good, [*options, f"-artifact_prefix={inputs}-", str(inputs)])
    else:
        _blind(harness, once, [path.read_bytes() for path in inputs.iterdir()], seconds, seed, MAX_BYTES)
    tally.write()


def _guided(atheris: Any, harness: Any, once: Callable, good: list[bytes], options: list[str]) -> None:
    """Mutate what covered something new, and as often what was read well: that goes deeper."""

    def mutate(data: bytes, max_size: int, number: int) -> bytes:
        rng = Random(number)
        kind = rng.random()
        if kind < 0.05:
            return atheris.Mutate(data, max_size)
        return harness.mutate(data if kind < 0.5 else rng.choice(good), rng)[:max_size]

    usual = ["-timeout=20", "-rss_limit_mb=1024", "-print_final_stats=1", "-verbosity=0", "-len_control=0"]
    atheris.Setup([sys.argv[0], *usual, *options], once, custom_mutator=mutate)
    atheris.Fuzz()


def _blind(
    harness: Any, once: Callable, pool: list[bytes], seconds: float, seed: int, max_bytes: int
) -> None:
    rng, end = Random(seed), time.monotonic() + seconds
    while time.monotonic() < end:
        data = rng.choice(pool)
        for _ in range(rng.choice((1, 1, 2, 4))):
            data = harness.mutate(data, rng)
        if len(data) <= max_bytes:
            once(data)


def keep_best(name: str, folder: Path) -> str:
    """Store inputs that covered something new: as many as fit, in the order of their digests."""
    from .corpus import keep

    found = [path.read_bytes() for path in sorted((folder / name).iterdir())]  # their names are digests
    low, high = 0, len(found)
    while low < high:  # the largest number of them that fits
        middle = (low + high + 1) // 2
        low, high = (middle, high) if keep(name, found[:middle]) <= KEPT_BYTES else (low, middle - 1)
    return f"{low} of {len(found)} inputs kept, {keep(name, found[:low]):,} bytes"


def run_all(names: list[str], folder: Path, seconds: float, seed: int, *, keeping: bool) -> int:
    """Every harness in turn; the number of those that failed."""
    from reliability import report

    failed, total = 0, 0
    for name in names:
        (folder / f"{name}.json").unlink(missing_ok=True)
        command = [sys.executable, "-m", "tests.fuzz.run", name, "--child", "--folder", str(folder)]
        command += ["--seconds", str(seconds), "--seed", str(seed)]
        with open(folder / f"{name}.log", "w") as log, contextlib.suppress(subprocess.TimeoutExpired):
            environment = os.environ | {"RUST_BACKTRACE": "0"}
            done = subprocess.run(
                command, cwd=TESTS.parent, env=environment, stdout=log, stderr=log, timeout=2 * seconds + 300
            )
        counts = json.loads((folder / f"{name}.json").read_text())
        log_text = (folder / f"{name}.log").read_text(errors="replace")
        exact = re.search(r"stat::number_of_executed_units:\s+(\d+)", log_text)
        if exact:
            counts["executions"] = int(exact[1])
        bad = done.returncode != 0 or counts["failures"]
        failed += bool(bad)
        total += counts["executions"]
        line = (
            f"{name}: {counts['executions']:,} executions in {counts['seconds']:.0f} s, "
            f"{counts['read']:,} read, {counts['failures']} failures, slowest "
            f"{1000 * counts['slowest']:.0f} ms, peak {counts['MiB']} MiB (+{counts['MiB_more']})"
        )
        report("R1", line + (f", ended with {done.returncode}" if done.returncode else ""))
        if bad:
            print(log_text[-2000:])
        if keeping:
            print(f"    {keep_best(name, folder)}")
    report("R1", f"{total:,} executions in {len(names)} harnesses, {failed} with a failure")
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--extra", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="attnsparse-fuzz-"))).resolve()
    folder.mkdir(exist_ok=True)
    if options.child:
        extra = options.extra.split()
        try:
            run_one(options.names[0], folder, options.seconds, options.seed, extra)
        except Exception:
            traceback.print_exc()
            return 1
        return 0
    sys.path[:0] = IMPORTED
    from .harnesses import HARNESSES

    names = options.names or list(HARNESSES)
    return min(1, run_all(names, folder, options.seconds, options.seed, keeping=options.keep))


if __name__ == "__main__":
    sys.exit(main())
