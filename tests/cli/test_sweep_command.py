"""The command `attnsparse sweep`, on every executor that it knows."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

import attnsparse as asp
from attnsparse.cli import main as cli

pytest.importorskip("pyarrow", reason="pyarrow is not installed")
MODULE = [sys.executable, "-m", "attnsparse", "sweep"]
ASKED = [
    "--models", "addition-dense", "addition-sparse", "--tasks", "addition", "--seeds", "0", "1",
    "--n", "8", "--n-bootstrap", "20", "--n-random", "1",
]  # fmt: skip


def run(*arguments: str) -> int:
    return cli.main(["sweep", *arguments])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of the sweep as the function writes it."""
    out = tmp_path_factory.mktemp("whole")
    options = {"n": 8, "n_bootstrap": 20, "n_random": 1}
    asp.sweep(["addition-dense", "addition-sparse"], "addition", [0, 1], out=out, **options)
    return out


def files(out: Path) -> dict[str, bytes]:
    """Those of all tables but cells, which tell how long they took."""
    paths = [path for path in out.rglob("*.parquet") if "cells" not in path.parts]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in paths}


def test_here(whole, tmp_path, capsys):
    assert run(*ASKED, "--out", str(tmp_path / "out")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "4 cells: 4 done"
    assert [line.split() for line in lines[1:]] == [
        ["task", "done", "failed", "missing"], ["addition", "4", "0", "0"]
    ]  # fmt: skip
    assert files(tmp_path / "out") == files(whole)
    assert run(*ASKED, "--out", str(tmp_path / "out"), "--quiet") == 0
    assert capsys.readouterr().out == ""


def test_processes(whole, tmp_path):
    command = [*MODULE, *ASKED, "--executor", "processes", "--workers", "2", "--out", str(tmp_path / "out")]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.startswith("4 cells: 4 done")
    assert files(tmp_path / "out") == files(whole)


def test_a_dask_cluster(whole, tmp_path):
    distributed = pytest.importorskip("distributed", reason="Dask is not installed")
    with distributed.LocalCluster(1, threads_per_worker=1, dashboard_address=None) as cluster:
        options = ["--executor", "dask", "--scheduler", cluster.scheduler_address]
        assert run(*ASKED, *options, "--out", str(tmp_path / "out"), "--quiet") == 0
    assert files(tmp_path / "out") == files(whole)


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_mpi(n_ranks, whole, tmp_path):
    pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    mpirun = shutil.which("mpirun") or shutil.which("mpirun", path=str(Path(sys.executable).parent))
    if mpirun is None:
        pytest.skip("there is no mpirun")
    command = [
        mpirun,
        "-n",
        str(n_ranks),
        *MODULE,
        *ASKED,
        "--executor",
        "mpi",
        "--out",
        str(tmp_path / "out"),
    ]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert found.stdout.count("4 cells: 4 done") == 1
    assert files(tmp_path / "out") == files(whole)


def test_status_and_failed_cells(tmp_path, capsys):
    out = str(tmp_path / "out")
    asked = ["--models", "addition-dense", "--tasks", "addition", "copy", "--n", "8", "--n-random", "1"]
    assert run(*asked, "--out", out) == 1
    first, second = capsys.readouterr()
    assert first.startswith("2 cells: 1 done, 1 failed\n")
    assert "failed: model addition-dense, task copy, seed 0: ValueError: task 'copy', prompt 0" in first
    assert second == "attnsparse: 1 of 2 cells failed; --retry-failed tries them again\n"
    assert run("--status", out) == 0
    assert capsys.readouterr().out == first
    assert run("--status", str(tmp_path / "none")) == 1
    assert "no sweep in this folder" in capsys.readouterr().err


def test_many_failed_cells_are_not_all_listed(tmp_path, capsys):
    seeds = [str(seed) for seed in range(12)]
    asked = [
        "--models",
        "addition-dense",
        "--tasks",
        "copy",
        "--seeds",
        *seeds,
        "--out",
        str(tmp_path / "out"),
    ]
    assert run(*asked) == 1
    lines = capsys.readouterr().out.splitlines()
    assert (len(lines), lines[-1]) == (3 + 10 + 1, "and 2 more")


def test_options_reach_the_circuit(tmp_path):
    options = ["--unit", "head", "--method", "ig", "--steps", "3", "--sizes", "0", "4", "--rank-by", "signed"]
    options += ["--ablation", "mean", "--metric", "log_prob", "--confidence", "0.8", "--normalize", "none"]
    assert run(*ASKED, *options, "--out", str(tmp_path), "--quiet") == 0
    row = pd.read_parquet(tmp_path / "cells").iloc[0]
    names = ["method", "steps", "sizes", "rank_by", "ablation", "metric", "confidence", "normalize"]
    assert row[names].tolist() == ["ig", 3, "[0, 4]", "signed", "mean", "log_prob", 0.8, "none"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--tasks", "copy", "--out", "x"], "--models is needed"),
        (["--models", "a", "--out", "x"], "--tasks is needed"),
        ([*ASKED], "--out is needed"),
        ([*ASKED, "--out", "x", "--workers", "2"], "--workers is for --executor processes or dask"),
        ([*ASKED, "--out", "x", "--scheduler", "a"], "--scheduler is for --executor dask"),
        ([*ASKED, "--out", "x", "--executor", "slurm"], "invalid choice"),
    ],
)
def test_wrong_usage(arguments, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2
    assert text in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("executor", "module", "text"),
    [("dask", "distributed", "--executor dask needs Dask"), ("mpi", "mpi4py.MPI", "needs mpi4py")],
)
def test_an_engine_that_is_not_installed(executor, module, text, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    assert run(*ASKED, "--out", str(tmp_path), "--executor", executor) == 1
    assert text in capsys.readouterr().err


def test_a_cluster_that_is_there_has_its_own_workers(tmp_path, capsys):
    pytest.importorskip("distributed", reason="Dask is not installed")
    options = ["--executor", "dask", "--scheduler", "tcp://127.0.0.1:1", "--workers", "2"]
    assert run(*ASKED, *options, "--out", str(tmp_path)) == 1
    assert "the one at --scheduler has its own" in capsys.readouterr().err


def test_ctrl_c(tmp_path):
    """One sentence, exit code 130, and the same command continues."""
    asked = ["--models", "demo-sparse", "--tasks", "copy", "induction", "--seeds", *map(str, range(40))]
    asked += ["--n", "16", "--n-random", "1", "--threads", "1", "--out", str(tmp_path)]
    process = subprocess.Popen([*MODULE, *asked], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("cells/*/*/*.parquet")):
        time.sleep(0.05)
        assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "attnsparse: stopped; the same command continues with the cells that are missing\n"
    assert {"done", "missing"} == set(asp.sweep_status(tmp_path)["state"])
