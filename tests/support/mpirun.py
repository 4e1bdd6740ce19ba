"""Processes of a test started together by mpirun, more of them than there are cores."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

from places import child_environment

SECONDS = 240  # in which they must have ended, also on a busy machine


def _command() -> str | None:
    beside = Path(sys.executable).with_name("mpirun")
    return str(beside) if beside.exists() else shutil.which("mpirun")


def missing() -> str | None:
    """Why nothing can be started; None: it can."""
    if importlib.util.find_spec("mpi4py") is None:
        return "mpi4py is not installed"
    return "there is no mpirun" if _command() is None else None


def start(n: int, *arguments: object, cwd: Path | None = None, **changes: str) -> subprocess.Popen[str]:
    """`python ARGUMENTS` as n processes. changes: of the environment."""
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    more = {**allowed, "OMPI_MCA_rmaps_base_oversubscribe": "1", "HYDRA_LAUNCHER": "fork"}
    return subprocess.Popen(
        [str(_command()), "-n", str(n), sys.executable, *map(str, arguments)],
        env=child_environment(**more, **changes), cwd=cwd, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; a job that does not end is killed and fails the test."""
    try:
        out, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, err


def run(n: int, *arguments: object, cwd: Path | None = None, **changes: str) -> tuple[int, str, str]:
    """Start processes and wait for them."""
    return ended(start(n, *arguments, cwd=cwd, **changes))
