"""Training by several processes: the bytes of one process's checkpoints, and what stops one stops all."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import mpi_child
import mpirun
import numpy as np
import pytest
from places import ROOT, child_environment

from attnsparse.training.checkpoint import checkpoint_steps

pytestmark = [
    pytest.mark.skipif(mpirun.missing() is not None, reason=str(mpirun.missing())),
    pytest.mark.serial,
]
CHILD = Path(mpi_child.__file__)


def train(folder: Path, n: int, **plan) -> list[list[dict]]:
    """What each process says of each run; n = 0: without a communicator."""
    if n == 0:
        command = [sys.executable, str(CHILD), str(folder), json.dumps({**plan, "comm": False})]
        done = subprocess.run(command, env=child_environment(), text=True, check=True, stdout=subprocess.PIPE)
        out = done.stdout
    else:
        code, out, err = mpirun.run(n, CHILD, folder, json.dumps(plan))
        assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


def files(folder: Path) -> dict[str, bytes]:
    """All checkpoints of all runs in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, bytes]:
    """What a process without a communicator makes."""
    folder = tmp_path_factory.mktemp("alone")
    train(folder, 0)
    found = files(folder)
    assert len(found) >= 9
    assert any(name.endswith("best.checkpoint.safetensors") for name in found)
    return found


@pytest.mark.parametrize("n", [1, 2, 4])
def test_any_number_of_processes_makes_the_same_bytes(n, alone, tmp_path):
    for everyone in train(tmp_path, n):
        assert len(everyone) == n
        assert not any("error" in said for said in everyone)
    assert files(tmp_path) == alone


def test_a_run_continues_on_another_number_of_processes(alone, tmp_path):
    for n, until in ((2, 3), (4, 6), (0, 8), (3, 12)):
        for everyone in train(tmp_path, n, until=until):
            assert not any("error" in said for said in everyone)
    found = files(tmp_path)
    last = f"step-{mpi_child.STEPS:06d}"
    for name in alone:
        if last in name or "best" in name:
            assert found[name] == alone[name], name


def test_what_one_process_raises_is_raised_in_all_and_the_step_can_be_repeated(alone, tmp_path):
    plan = {"fails": 1, "at": 7, "how": "raise", "again": True}
    for everyone in train(tmp_path, 3, **plan):
        other = "RuntimeError: process 1 of 0..2 stopped the training: ValueError: no such text"
        assert [said["error"] for said in everyone] == [other, "ValueError: no such text", other]
        assert {said["step"] for said in everyone} == {7}
    assert files(tmp_path) == alone


def test_a_killed_process_ends_the_job_and_nothing_but_the_last_steps_is_lost(alone, tmp_path):
    plan = {"fails": 1, "at": 7, "how": "kill", "cases": ["hard"]}
    code, out, _ = mpirun.run(2, CHILD, tmp_path, json.dumps(plan))
    assert code != 0
    assert "rank" not in out  # nothing but what mpirun says
    assert checkpoint_steps(tmp_path / "hard") == [5]
    train(tmp_path, 2, cases=["hard"])
    assert files(tmp_path) == {name: data for name, data in alone.items() if name.startswith("hard")}


def test_processes_that_would_train_something_else_are_told_so(tmp_path):
    (everyone,) = train(tmp_path, 2, other_data=1, cases=["dense"])
    assert {said["error"] for said in everyone} == {
        "ValueError: the processes of comm must train the same: the data of process 1 differs from that of "
        "process 0"
    }
    (everyone,) = train(tmp_path / "many", 8, cases=["dense"])
    assert {said["error"] for said in everyone} == {
        "ValueError: 8 processes need a step of 8 parts or more, got parts=7"
    }


def test_a_folder_that_cannot_be_written_stops_all(tmp_path):
    (tmp_path / "dense").write_text("a file")
    (everyone,) = train(tmp_path, 2, cases=["dense"])
    first, other = (said["error"] for said in everyone)
    assert first.startswith("FileExistsError")
    assert other.startswith("RuntimeError: process 0 of 0..1 stopped the training: FileExistsError")


def test_processes_of_a_machine_divide_its_cores(tmp_path):
    plan = json.dumps({"cases": ["dense"], "until": 1})
    python = ("import os, runpy, sys; os.sched_setaffinity(0, set(list(os.sched_getaffinity(0))[:1])); "
              "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')")  # fmt: skip
    clean = {"ATTNSPARSE_NUM_THREADS": "", "OMP_NUM_THREADS": ""}
    from os import sched_getaffinity

    cores = len(sched_getaffinity(0))
    for n in (1, 2):
        _, out, err = mpirun.run(n, CHILD, tmp_path / str(n), plan, **clean)
        threads = [said["threads"] for said in json.loads(out)]
        assert sum(threads) == max(cores, n), err
    _, out, err = mpirun.run(2, "-c", python, CHILD, tmp_path / "one", plan, **clean)
    assert [said["threads"] for said in json.loads(out)] == [1, 1], err
    _, out, err = mpirun.run(2, CHILD, tmp_path / "omp", plan, **{**clean, "OMP_NUM_THREADS": "3"})
    assert [said["threads"] for said in json.loads(out)] == [None, None], err


def test_the_script_of_the_documentation_runs(tmp_path):
    page = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    (script,) = [block for block in re.findall(r"```py\n(.*?)```", page, re.S) if "comm=" in block]
    (tmp_path / "train.py").write_text(script)
    np.random.default_rng(0).integers(0, 400, 3000).astype(np.uint16).tofile(tmp_path / "train.bin")
    code, _, err = mpirun.run(2, "-m", "mpi4py", "train.py", cwd=tmp_path)
    assert code == 0, err
    assert checkpoint_steps(tmp_path / "run") == [10, 20]


# ---- the command


def command(n: int, *arguments: object) -> subprocess.Popen[str]:
    return mpirun.start(n, "-m", "attnsparse", "train", *arguments)


def test_ctrl_c_ends_all_processes_with_one_sentence_and_the_last_checkpoint(tmp_path):
    process = command(2, "addition", "--out", tmp_path, "--quiet")
    folder, end = tmp_path / "checkpoints" / "dense", time.monotonic() + mpirun.SECONDS
    while not checkpoint_steps(folder) and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    asked = time.monotonic()
    code, out, err = mpirun.ended(process)
    assert time.monotonic() - asked < 20
    assert code != 0
    lines = [line for line in (out + err).splitlines() if line and "mpiexec" not in line]
    assert lines == ["attnsparse: stopped; the same command with --resume continues from the last checkpoint"]
    assert checkpoint_steps(folder)


def text_of(folder: Path) -> Path:
    words = [f"{chr(97 + i % 23)}{chr(97 + i * 7 % 25)}{chr(97 + i * i % 26)}" for i in range(300)]
    path = folder / "text.txt"
    path.write_text(" ".join(words[i * i % 300] + words[i * 7 % 300] for i in range(6000)))
    return path


def test_the_command_makes_the_same_models_and_speaks_once(tmp_path):
    corpus = text_of(tmp_path)
    given = ("text", "--corpus", corpus, "--tiny")
    code, out, err = mpirun.ended(command(2, *given, "--out", tmp_path / "two"))
    assert code == 0, err
    assert not err.strip()
    assert out.count("text-dense, ") == 1
    alone = [sys.executable, "-m", "attnsparse", "train", *map(str, given), "--out", str(tmp_path / "one")]
    subprocess.run([*alone, "--parts", "8", "--quiet"], env=child_environment(), check=True)
    one, two = tmp_path / "one", tmp_path / "two"
    made, other = ({path.relative_to(top) for path in top.rglob("*") if path.is_file()} for top in (one, two))
    assert made == other
    for name in made:
        if name.name != "history.csv" or name.parts[0] != "checkpoints":  # which has seconds
            assert (one / name).read_bytes() == (two / name).read_bytes(), name


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("addition",), 1, "attnsparse: [Errno 17] already holds a run; resume it or choose another folder"),
        (("addition", "--parts", "1"), 1, "2 processes need a step of 2 parts or more, got parts=1"),
        (("demo-transcoder",), 1, "attnsparse: the recipe demo-transcoder trains in one process"),
        (("demo-transcoder", "--parts", "2"), 2, "attnsparse train: error: --parts is not for the recipe"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_once(arguments, code, sentence, tmp_path):
    out = tmp_path / "run"
    if "already" in sentence:
        (out / "checkpoints").mkdir(parents=True)
    found, _, err = mpirun.ended(command(2, *arguments, "--out", out, "--quiet"))
    assert found == code
    assert err.count("attnsparse: ") + err.count("error: ") == 1, err
    assert sentence in err
