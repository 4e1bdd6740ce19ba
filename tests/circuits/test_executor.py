"""Sweeps on the workers of an executor: the same bits as without, for any number of them and any engine."""

import functools
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import executor_metrics as metrics
import numpy as np
import oracle_component_graph as og
import pytest
from circuit_cases import case

import attnsparse as asp
from attnsparse.circuits import (
    component_circuit,
    component_scores,
    component_values,
    find_component_circuit,
    keep_only,
    knock_out,
    pieces,
    resumed,
)
from attnsparse.circuits.effects import candidates

LENGTHS = (6, 6, 6, 6)
CASE = case("gated", LENGTHS)
TASK = CASE.task


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """A few rows and prompts at a time."""
    monkeypatch.setattr(pieces, "ROWS_AT_ONCE", 3)
    monkeypatch.setattr(pieces, "VALUES_AT_ONCE", 6)
    monkeypatch.setattr(pieces, "WHOLE_ROWS", 3)
    monkeypatch.setattr(pieces, "WHOLE_VALUES", 1)
    monkeypatch.setattr(pieces, "SUMMED_PROMPTS", 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "gated"
    CASE.model("float32").save(path)
    return path


@pytest.fixture
def model(folder):
    return asp.load(folder)


@pytest.fixture
def mark(tmp_path, monkeypatch):
    monkeypatch.setenv(metrics.MARK, str(tmp_path / "mark"))
    return tmp_path / "mark"


def heads(model, ablation="mean", **options):
    return knock_out(model, TASK, candidates(model, TASK, "head"), ablation, **options)


def edges(model, **options):
    return knock_out(model, TASK, candidates(model, TASK, "edge"), "counterfactual", **options)


def kept(model, **options):
    items = candidates(model, TASK, "edge")[::-1]
    return keep_only(model, TASK, items, range(0, len(items) + 1, 5), **options)


def circuits(model, **options):
    real = og.real_edges(CASE.config)
    masks = real & (np.random.default_rng(0).random((8, *real.shape)) < 0.4)
    return component_values(model, TASK, masks, **options)


def curve(model, **options):
    circuit = component_circuit(component_scores(model, TASK), model)
    return circuit.evaluate(model, TASK, shares=(0.1, 0.4, 0.9), n_random=2, **options).random_values


def found(model, **options):
    return find_component_circuit(model, TASK, shares=(0.1, 0.4, 0.9), **options).curve.values


CALLS = {"heads": heads, "edges": edges, "keep_only": kept, "component_values": circuits, "evaluate": curve,
         "find_component_circuit": found}  # fmt: skip
spawn = multiprocessing.get_context("spawn")
MAKERS = {
    "one": lambda: ProcessPoolExecutor(1, spawn),
    "two": lambda: ProcessPoolExecutor(2, spawn),
    "four, forked": lambda: ProcessPoolExecutor(4, multiprocessing.get_context("fork")),
    "threads": lambda: ThreadPoolExecutor(2),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_same_bits(make, model):
    with make() as pool:
        for name, call in CALLS.items():
            np.testing.assert_array_equal(call(model, executor=pool), call(model), err_msg=name)


def test_the_same_bits_with_a_file(model, tmp_path):
    expected = edges(model)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(2):
            np.testing.assert_array_equal(edges(model, executor=pool, resume=tmp_path / "a"), expected)
    np.testing.assert_array_equal(edges(model, resume=tmp_path / "b"), expected)


def test_loky(model):
    loky = pytest.importorskip("loky", reason="loky is not installed")
    pool = loky.get_reusable_executor(max_workers=2)
    try:
        np.testing.assert_array_equal(edges(model, executor=pool), edges(model))
        local = functools.partial(metrics.values)
        metric = asp.tasks.CustomMetric(local, name="m")
        np.testing.assert_array_equal(
            heads(model, metric=metric, executor=pool), heads(model, metric=metrics.METRICS["values"])
        )
    finally:
        pool.shutdown(kill_workers=True)


def test_dask(model):
    distributed = pytest.importorskip("distributed", reason="Dask is not installed")
    with (
        distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        np.testing.assert_array_equal(edges(model, executor=client), edges(model))
        np.testing.assert_array_equal(edges(model, executor=client.get_executor()), edges(model))


def test_metrics_of_the_user(model):
    expected = heads(model, metric=metrics.METRICS["values"])
    with ProcessPoolExecutor(2, spawn) as pool:
        np.testing.assert_array_equal(heads(model, metric=metrics.METRICS["values"], executor=pool), expected)
        with pytest.raises(TypeError, match="must be importable by the workers"):
            heads(model, metric=asp.tasks.CustomMetric(lambda *a: 0), executor=pool)


def test_a_piece_that_fails_three_times(model):
    with ThreadPoolExecutor(1) as pool:
        text = (
            r"knock out of model gated, task 'random': the piece of rows 0\.\.2 failed 3 times: "
            "ZeroDivisionError: no such logit"
        )
        with pytest.raises(RuntimeError, match=text):
            heads(model, metric=metrics.METRICS["failing"], executor=pool)


def test_wrong_arguments_are_the_same_kind_of_error(model):
    with ThreadPoolExecutor(1) as pool, pytest.raises(IndexError, match="failed 3 times: IndexError: "):
        knock_out(model, TASK, [[0, 9]], executor=pool)
    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="threads"):
        knock_out(model, TASK, [[0, 0]], executor=pool, threads=-1)


def test_a_piece_that_fails_twice(model):
    left = [2]

    class Pool(ThreadPoolExecutor):
        def submit(self, function, piece):
            def run():
                if piece.begin == 3 and left[0]:
                    left[0] -= 1
                    raise ConnectionError("the worker is gone")
                return function(piece)

            return super().submit(run)

    with Pool(2) as pool:
        np.testing.assert_array_equal(edges(model, executor=pool), edges(model))
    assert left == [0]


def test_a_worker_that_is_killed(model, mark, tmp_path):
    """A pool of processes is then broken, which the error says; with a file the call continues in another."""
    expected = heads(model, metric=metrics.METRICS["values"])
    options = {"metric": metrics.METRICS["killing"], "resume": tmp_path / "kept"}
    with ProcessPoolExecutor(1, spawn) as pool, pytest.raises(RuntimeError, match=r"make a new one.*resume="):
        heads(model, executor=pool, **options)
    with ProcessPoolExecutor(2, spawn) as pool:
        np.testing.assert_array_equal(heads(model, executor=pool, **options), expected)


def test_an_executor_that_is_closed(model):
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(RuntimeError, match=r"cannot be given to the executor.*make a new one"):
        edges(model, executor=pool)


def test_ctrl_c_stops_what_runs_and_cancels_what_is_queued(model, mark):
    stopped = []

    def interrupt():
        while not mark.exists():
            time.sleep(0.01)
        stopped.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    with ProcessPoolExecutor(1, spawn) as pool:
        pool.submit(os.getpid).result()
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            heads(model, metric=metrics.METRICS["endless"], executor=pool)
        assert pool.submit(os.getpid).result(timeout=20) > 0, "the worker is alive and idle"
        seconds = time.monotonic() - stopped[0]
        thread.join()
    assert seconds < 2


@pytest.mark.parametrize(("n_workers", "expected"), [(1, 4), (2, 2), (3, 1), (8, 1)])
def test_workers_share_the_cores(n_workers, expected, monkeypatch):
    monkeypatch.setattr(pieces, "get_num_threads", lambda: 4)
    with ThreadPoolExecutor(n_workers) as pool:
        assert pieces._threads_of_one(pool) == expected
    assert pieces._threads_of_one(object()) is None


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc/self/stat")
def test_n_workers_do_not_start_n_times_n_threads(model):
    before = asp.get_num_threads()
    asp.set_num_threads(4)
    try:
        with ProcessPoolExecutor(4, spawn) as pool:
            edges(model, executor=pool)
            counts = [pool.submit(metrics.threads_of_process).result() for _ in range(4)]
    finally:
        asp.set_num_threads(before)
    assert max(counts) <= 2, counts


def test_what_is_no_executor(model):
    for wrong in (3, "dask", object()):
        with pytest.raises(TypeError, match=r"must be a concurrent\.futures.Executor or a Dask Client, got"):
            edges(model, executor=wrong)
    changed = model.copy()
    changed.assign({"ln_f.weight": 2 * changed.parameter("ln_f.weight")})
    with (
        ThreadPoolExecutor(1) as pool,
        pytest.raises(TypeError, match=r"changed after it was loaded.*save it"),
    ):
        edges(changed, executor=pool)
