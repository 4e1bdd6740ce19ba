"""Sweeps: every cell is what find_circuit finds, wherever it is computed; what is there is not done again."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sweep_child as child
from circuit_cases import case
from sweep_child import METRICS, OPTIONS, TASK, sweep_all
from table_columns import hidden

import attnsparse as asp
from attnsparse.sweeps import FRACTIONS, TABLES
from attnsparse.sweeps.store import Store

pytest.importorskip("pyarrow", reason="pyarrow is not installed")
STEPS = (10, 200)
spawn = multiprocessing.get_context("spawn")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of two models, as two checkpoints of one training."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for seed, step in enumerate(STEPS):
        case("gated", (6, 6, 6, 6), seed).model("float32").save(folder / f"step-{step:04d}")
    return [str(folder / f"step-{step:04d}") for step in STEPS]


@pytest.fixture(scope="module")
def whole(models, tmp_path_factory):
    """The folder of a sweep that nothing stopped."""
    out = tmp_path_factory.mktemp("whole")
    assert set(sweep_all(out, models)["state"]) == {"done"}
    return out


@pytest.fixture
def mark(tmp_path, monkeypatch):
    monkeypatch.setenv(child.MARK, str(tmp_path / "mark"))
    return tmp_path / "mark"


def read(out: Path, table: str) -> pd.DataFrame:
    return Store(out).read(table)


def files(out: Path) -> dict[str, bytes]:
    """The files of all tables, of cells without how long they took."""
    found = {}
    for path in sorted(out.rglob("*.parquet")):
        name = path.relative_to(out).as_posix()
        if name.startswith("cells"):
            found[name] = pd.read_parquet(path).drop(columns="seconds").to_csv().encode()
        else:
            found[name] = path.read_bytes()
    return found


def test_every_cell_is_what_find_circuit_finds(models, whole):
    tables = {name: read(whole, name) for name in TABLES}
    for path, step in zip(models, STEPS):
        model = asp.load(path)
        for seed in range(3):
            circuit = asp.find_circuit(model, TASK, seed=seed, **OPTIONS)
            of = {
                name: table[
                    (table.model == f"step-{step:04d}") & (table.task == "random") & (table.seed == seed)
                ]
                for name, table in tables.items()
            }
            items = circuit.to_pandas()
            assert of["items"]["label"].tolist() == items["label"].tolist()
            for name in ("item_rank", "layer", "head_index", "score"):
                np.testing.assert_array_equal(of["items"][name].to_numpy(float), items[name])
            curve = circuit.curve()
            for name in curve.columns.drop("model"):
                np.testing.assert_array_equal(of["curves"][name].to_numpy(float), curve[name])
            for fraction, row in zip(FRACTIONS, of["needed"].itertuples()):
                summary = circuit.summary(fraction).iloc[0]
                assert row.fraction == fraction
                for name in summary.index[summary.index.get_loc("n_first") :]:
                    assert getattr(row, name) is summary[name] or getattr(row, name) == summary[name]
            values = of["effects"].pivot(index="n", columns="prompt", values="value")
            np.testing.assert_array_equal(values, circuit.values)
            np.testing.assert_array_equal(of["effects"]["full_metric"][: len(circuit.full)], circuit.full)
            assert of["effects"]["prompt_digest"][: len(circuit.full)].tolist() == list(
                TASK.evaluation.prompt_digests
            )
            [row] = of["cells"].itertuples()
            assert (row.state, row.n_items, row.n_prompts) == ("done", len(circuit), len(circuit.full))
            assert (row.full_metric, row.empty_metric) == (circuit.full.mean(), circuit.empty.mean())


def test_every_table_says_what_it_is_of(models, whole):
    for name in TABLES:
        table = read(whole, name)
        assert set(table["model_digest"]) == {asp.load(path).digest for path in models}
        assert set(table["task_digest"]) == {TASK.digest}
        assert set(table["training_step"]) == set(STEPS)
        assert set(table["model_path"]) == set(models)
        for column, value in {
            "unit": "head", "method": "exact", "ablation": "zero", "normalize": "mib", "metric": "logit_diff",
            "rank_by": "absolute", "steps": 10, "n_bootstrap": 30, "n_random": 2, "confidence": 0.95,
            "greedy_step": 0.1, "n_ranking": 2, "dtype": "float32", "results_version": 1,
            "attnsparse_version": asp.__version__, "isa": asp.build_info()["isa"],
        }.items():  # fmt: skip
            assert set(table[column]) == {value}, column
        assert table["cell"].nunique() == 6
        assert hidden(table) == []


MAKERS = {
    "one process": lambda: ProcessPoolExecutor(1, spawn),
    "two processes": lambda: ProcessPoolExecutor(2, spawn),
    "threads": lambda: ThreadPoolExecutor(2),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_same_bits_with_an_executor(make, models, whole, tmp_path):
    with make() as pool:
        sweep_all(tmp_path, models, executor=pool, threads=None)
    assert files(tmp_path) == files(whole)


def test_the_same_bits_with_loky(models, whole, tmp_path):
    loky = pytest.importorskip("loky", reason="loky is not installed")
    pool = loky.get_reusable_executor(max_workers=2)
    try:
        sweep_all(tmp_path, models, executor=pool)
    finally:
        pool.shutdown(kill_workers=True)
    assert files(tmp_path) == files(whole)


def test_the_same_bits_with_dask(models, whole, tmp_path):
    distributed = pytest.importorskip("distributed", reason="Dask is not installed")
    with (
        distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        sweep_all(tmp_path, models, executor=client, threads=None)
    assert files(tmp_path) == files(whole)


# ------------------------------------------------------------------------------------ stopped, continued


def test_what_is_there_is_not_done_again(models, tmp_path, monkeypatch):
    sweep_all(tmp_path, models[:1])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    computed = []
    real = asp.sweeps.run.compute
    monkeypatch.setattr("attnsparse.sweeps.run.compute", lambda *a: computed.append(a) or real(*a))
    status = sweep_all(tmp_path, models)
    assert len(computed) == 3
    assert status["state"].tolist() == ["done"] * 6
    assert {path: path.stat().st_mtime_ns for path in before} == before
    with pytest.warns(UserWarning, match="1 of 1 cells failed"):
        asp.sweep(models[0], {"none": lambda *_: 3}, 0, out=tmp_path)
    assert asp.sweep_status(tmp_path)["state"].value_counts().to_dict() == {"done": 6, "failed": 1}


@pytest.mark.parametrize("change", ["weights", "option", "task"])
def test_another_question_is_another_cell(change, models, tmp_path):
    for seed, options in enumerate(({}, {"n_random": 3} if change == "option" else {})):
        if change == "weights":
            case("gated", (6, 6, 6, 6), seed).model("float32").save(tmp_path / "a" / "model")
        task = case("gated", (6, 6, 6, 6), seed).task if change == "task" else TASK
        model = tmp_path / "a" / "model" if change == "weights" else models[0]
        asp.sweep(model, task, out=tmp_path / "out", **{**OPTIONS, **options})
    table = read(tmp_path / "out", "cells")
    column = {"weights": "model_digest", "task": "task_digest", "option": "n_random"}[change]
    assert (len(table), table[column].nunique(), table["cell"].nunique()) == (2, 2, 2)


def test_kill_9(models, whole, tmp_path):
    """At many moments; in the end the files are those of a sweep that nothing stopped."""
    command = [sys.executable, child.__file__, str(tmp_path / "out"), *models]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    n_cells, kills = 0, 0
    for wanted in (1, 2, 4, 6):
        process = subprocess.Popen(command, env=environment)
        while process.poll() is None and n_cells < wanted:
            n_cells = len(list((tmp_path / "out").glob("cells/*/*/*.parquet")))
        if process.poll() is None:
            process.kill()
            kills += 1
        process.wait()
        status = asp.sweep_status(tmp_path / "out")
        assert len(status) == 6
        done = set(status["state"])
        assert done <= {"done", "missing"}
        assert (status["state"] == "done").sum() >= n_cells
        assert len(pd.read_parquet(tmp_path / "out" / "cells")) == (status["state"] == "done").sum()
    assert kills >= 2
    assert sweep_all(tmp_path / "out", models)["state"].tolist() == ["done"] * 6
    assert files(tmp_path / "out") == files(whole)
    assert not list((tmp_path / "out").rglob("*attnsparse-tmp"))


def test_ctrl_c_without_an_executor(models, mark, tmp_path):
    """What is there stays, and the same call continues."""
    sweep_all(tmp_path / "out", models[:1], metric=METRICS["values"])

    def interrupt():
        while not mark.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        sweep_all(tmp_path / "out", models, metric=METRICS["endless"])
    thread.join()
    status = asp.sweep_status(tmp_path / "out")
    assert status["state"].tolist() == ["done"] * 3 + ["missing"] * 3


@pytest.mark.parametrize("make", [lambda: ProcessPoolExecutor(1, spawn), lambda: ThreadPoolExecutor(1)])
def test_ctrl_c_stops_what_runs_and_cancels_what_is_queued(make, models, mark, tmp_path):
    stopped = []

    def interrupt():
        while not mark.exists():
            time.sleep(0.01)
        stopped.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    with make() as pool:
        pool.submit(os.getpid).result()
        thread = threading.Thread(target=interrupt)
        thread.start()
        metric = "endless" if isinstance(pool, ProcessPoolExecutor) else "slow"
        with pytest.raises(KeyboardInterrupt):
            sweep_all(tmp_path / "out", models, metric=METRICS[metric], executor=pool)
        assert pool.submit(os.getpid).result(timeout=20) > 0, "the worker is alive and idle"
        seconds = time.monotonic() - stopped[0]
        thread.join()
    assert seconds < 2
    assert set(asp.sweep_status(tmp_path / "out")["state"]) == {"missing"}


# ------------------------------------------------------------------------------------------- failures


def test_cells_that_fail_are_rows_and_are_tried_again_on_demand(models, tmp_path):
    options = {"metric": METRICS["failing"]}
    with pytest.warns(
        UserWarning, match="3 of 3 cells failed, the first of them model step-0010, task random"
    ):
        status = sweep_all(tmp_path, models[:1], **options)
    assert status["error"].tolist() == ["ZeroDivisionError: no such logit"] * 3
    row = read(tmp_path, "cells").iloc[0]
    assert (row["state"], row["model_digest"]) == ("failed", asp.load(models[0]).digest)
    assert pd.isna(row["n_items"])
    with pytest.warns(UserWarning, match="3 of 3"):
        sweep_all(tmp_path, models[:1], metric=METRICS["values"])  # the same name: the same question
    assert (
        sweep_all(tmp_path, models[:1], metric=METRICS["values"], retry_failed=True)["state"].tolist()
        == ["done"] * 3
    )
    assert not list(tmp_path.rglob("*.failed.parquet"))
    assert sweep_all(tmp_path, models[:1], **options)["state"].tolist() == ["done"] * 3


def test_models_and_tasks_that_cannot_be_made(models, tmp_path):
    missing = str(tmp_path / "step-7")
    with pytest.warns(UserWarning, match="5 of 6 cells failed"):
        status = asp.sweep(
            [models[0], missing],
            {"good": TASK, "bad": lambda tokenizer, seed: TASK, "copy": "copy"},
            out=tmp_path / "out",
            **OPTIONS,
        )
    errors = status.set_index(["model", "task"])["error"]
    for task in ("bad", "copy"):
        assert "no tokenizer; give one with tokenizer=" in errors["step-0010", task]
    for task in ("good", "bad", "copy"):
        assert errors["step-7", task].startswith("FileNotFoundError: ")
    assert pd.isna(errors["step-0010", "good"])
    bad = {"bad": lambda tokenizer, seed: seed // 0}
    with pytest.warns(UserWarning, match="ZeroDivisionError"):
        asp.sweep(models[0], bad, out=tmp_path / "out", tokenizer=TASK.tokenizer, **OPTIONS)
    Path(models[0]).rename(missing)  # a model that is there later
    try:
        status = asp.sweep(missing, {"good": TASK}, out=tmp_path / "out", **OPTIONS)
    finally:
        Path(missing).rename(models[0])
    assert status["state"].tolist() == ["done"]
    assert (
        asp.sweep_status(tmp_path / "out").set_index(["model", "task"])["state"]["step-7", "good"] == "done"
    )
    assert not list((tmp_path / "out").glob("cells/model=step-7/task=good/*.failed.parquet"))


def test_a_worker_that_is_killed(models, whole, mark, tmp_path):
    """A pool of processes is then broken, which the error says; the next call continues."""
    options = {"metric": METRICS["killing"]}
    with (
        ProcessPoolExecutor(1, spawn) as pool,
        pytest.raises(RuntimeError, match=r"cannot be given to the executor.*call sweep again"),
    ):
        sweep_all(tmp_path / "out", models, executor=pool, **options)
    with ProcessPoolExecutor(2, spawn) as pool:
        status = sweep_all(tmp_path / "out", models, executor=pool, **options)
    assert set(status["state"]) == {"done"}
    sweep_all(tmp_path / "other", models, metric=METRICS["values"])
    assert files(tmp_path / "out") == files(tmp_path / "other")


class Losing(ThreadPoolExecutor):
    """Loses the first cells that it is given, some times."""

    left = 0
    most = in_flight = 0

    def submit(self, function, work):
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)

        def run():
            try:
                if self.left:
                    self.left -= 1
                    raise ConnectionError("the worker is gone")
                return function(work)
            finally:
                self.in_flight -= 1

        return super().submit(run)


@pytest.mark.parametrize("left", [2, 3])
def test_a_cell_that_is_lost(left, models, tmp_path):
    with Losing(1) as pool:
        pool.left = left
        if left < 3:
            assert asp.sweep(models[0], TASK, out=tmp_path, executor=pool, **OPTIONS)["state"].tolist() == [
                "done"
            ]
            return
        with pytest.warns(
            UserWarning, match="lost 3 times by its worker: ConnectionError: the worker is gone"
        ):
            asp.sweep(models[0], TASK, out=tmp_path, executor=pool, **OPTIONS)


def test_few_cells_are_in_flight(models, tmp_path):
    with Losing(2) as pool:
        sweep_all(tmp_path, models, executor=pool)
    assert pool.most <= 4


def test_an_executor_that_is_closed(models, tmp_path):
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(
        RuntimeError, match=r"cannot be given to the executor.*call sweep again, which continues"
    ):
        sweep_all(tmp_path, models, executor=pool)


def test_a_cluster_that_is_closed_in_the_middle(models, tmp_path):
    """What is there stays, and the call ends with a sentence instead of waiting for ever."""
    distributed = pytest.importorskip("distributed", reason="Dask is not installed")
    cluster = distributed.LocalCluster(1, threads_per_worker=1, dashboard_address=None, processes=False)
    client = distributed.Client(cluster)

    def close():
        while not list(tmp_path.glob("out/cells/*/*/*.parquet")):
            time.sleep(0.01)
        client.close()
        cluster.close()

    thread = threading.Thread(target=close)
    thread.start()
    with pytest.raises(RuntimeError, match=r"cannot be given to the executor.*call sweep again"):
        asp.sweep(models, TASK, range(40), out=tmp_path / "out", executor=client, threads=1, **OPTIONS)
    thread.join()
    states = asp.sweep_status(tmp_path / "out")["state"]
    assert set(states) == {"done", "missing"}


def test_threads_of_workers(models, tmp_path, monkeypatch):
    asked = []

    class Pool(ThreadPoolExecutor):
        def submit(self, function, work):
            asked.append(work.threads)
            future: Future = Future()
            future.set_result(function(work))
            return future

    monkeypatch.setattr("attnsparse.circuits.pieces.get_num_threads", lambda: 4)
    for n_workers, threads in ((2, None), (2, 3)):
        with Pool(n_workers) as pool:
            out = tmp_path / str(threads)
            asp.sweep(models[0], TASK, out=out, executor=pool, threads=threads, **OPTIONS)
    assert asked == [2, 3]


def test_a_task_travels_without_the_tokenizer_that_its_model_has(tmp_path):
    sizes = []

    class Pool(ThreadPoolExecutor):
        def submit(self, function, work):
            sizes.append(len(work.rest))
            return super().submit(function, work)

    with Pool(1) as pool:
        status = asp.sweep("demo-sparse", "copy", n=4, out=tmp_path, executor=pool, sizes=[0, 5], **OPTIONS)
    assert status["state"].tolist() == ["done"]
    assert max(sizes) < len(asp.load("demo-sparse").tokenizer.to_json()) / 2


# --------------------------------------------------------------------------------- arguments, progress


def test_wrong_arguments(models, tmp_path):
    def refused(kind, text, *arguments, **options):
        with pytest.raises(kind, match=text):
            asp.sweep(*(arguments or (models, TASK)), out=tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()

    refused(TypeError, "unexpected argument 'layers'; find_circuit takes unit, method", layers=3)
    refused(TypeError, "unexpected argument 'seed'", seed=3)
    refused(ValueError, "unit must be one of", unit="neuron")
    refused(ValueError, "metric must be one of", metric="x")
    refused(ValueError, "n_bootstrap must be", n_bootstrap=-1)
    refused(ValueError, "reference is for ablation='mean'", reference=TASK)
    refused(TypeError, "sizes must be a sequence", sizes=3)
    refused(TypeError, "executor must be", executor=3)
    refused(TypeError, "retry_failed must be", retry_failed=1)
    refused(ValueError, "seeds must be one or more different integers", models, TASK, [1, 1])
    refused(ValueError, "each of seeds must be", models, TASK, -1)
    refused(ValueError, "n must be", n=0)
    changed = asp.load(models[0])
    changed.assign({"ln_f.weight": 2 * changed.parameter("ln_f.weight")})
    with ThreadPoolExecutor(1) as pool, pytest.raises(TypeError, match="changed after it was loaded"):
        asp.sweep({"a": changed}, TASK, out=tmp_path / "out", executor=pool)
    assert asp.sweep({"a": changed}, TASK, out=tmp_path / "out", **OPTIONS)["state"].tolist() == ["done"]


def test_without_pyarrow(models, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"need pyarrow: pip install attnsparse\[sweep\]"):
        asp.sweep(models, TASK, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_progress_begins_with_what_is_there(models, tmp_path, capsys):
    sweep_all(tmp_path, models[:1])
    sweep_all(tmp_path, models, progress=True)
    err = capsys.readouterr().err
    assert "sweep:  50%" in err
    assert "3/6" in err
    assert "sweep: 100%" in err


def test_status_without_a_sweep(tmp_path):
    with pytest.raises(FileNotFoundError, match="no sweep in this folder"):
        asp.sweep_status(tmp_path)
    (tmp_path / "plans").mkdir()
    for bad in ({}, {"version": 1, "models": "a", "tasks": [], "seeds": [], "options": {}}):
        (tmp_path / "plans" / "a.json").write_text(json.dumps(bad))
        with pytest.raises(asp.FormatError, match="not what a sweep asks for"):
            asp.sweep_status(tmp_path)


def test_status_of_calls_that_differ_in_options(models, tmp_path):
    asp.sweep(models[0], TASK, out=tmp_path, **OPTIONS)
    assert asp.sweep_status(tmp_path).columns.tolist() == [
        "model",
        "task",
        "seed",
        "state",
        "seconds",
        "error",
    ]
    asp.sweep(models[0], TASK, out=tmp_path, **{**OPTIONS, "n_random": 3})
    status = asp.sweep_status(tmp_path)
    assert sorted(status["n_random"]) == [2, 3]
    assert hidden(status) == []
