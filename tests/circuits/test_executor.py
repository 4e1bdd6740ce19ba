"""Sweeps on the workers of an executor: the same bits as without, for any number of them and any engine."""

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import executor_calls as calls
import executor_metrics as metrics
import numpy as np
import pytest

import attnsparse as asp
from attnsparse._engine import THREAD_VARIABLES
from attnsparse.circuits import knock_out, pieces

TASK = calls.TASK
edges = calls.edges


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    for name, value in calls.SMALL.items():
        monkeypatch.setattr(pieces, name, value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "gated"
    calls.CASE.model("float32").save(path)
    return path


@pytest.fixture
def model(folder):
    return asp.load(folder)


@pytest.fixture
def mark(tmp_path, monkeypatch):
    monkeypatch.setenv(metrics.MARK, str(tmp_path / "mark"))
    return tmp_path / "mark"


def heads(model, ablation="zero", **options):
    return knock_out(model, TASK, calls.candidates(model, TASK, "head"), ablation, **options)


spawn = multiprocessing.get_context("spawn")
MAKERS = {
    "one": lambda: ProcessPoolExecutor(1, spawn),
    "two": lambda: ProcessPoolExecutor(2, spawn),
    "four, forked": lambda: ProcessPoolExecutor(4, multiprocessing.get_context("fork")),
    "threads": lambda: ThreadPoolExecutor(2),
}


@pytest.fixture(scope="module")
def expected(folder):
    """The result of every call without an executor."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in calls.SMALL.items():
            patch.setattr(pieces, name, value)
        return calls.all_results(asp.load(folder))


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_same_bits(make, model, expected):
    with make() as pool:
        for name, call in calls.CALLS.items():
            assert call(model, executor=pool).tobytes() == expected[name].tobytes(), name


def test_pieces_are_as_the_whole(model, expected, monkeypatch):
    for name in calls.SMALL:
        monkeypatch.setattr(pieces, name, 1000)
    for name, call in calls.CALLS.items():
        found, parts = np.nan_to_num(call(model), nan=-1.0), np.nan_to_num(expected[name], nan=-1.0)
        assert found.shape == parts.shape
        assert np.abs(found - parts).max() <= 1e-5 * np.abs(found).max(), name


@pytest.mark.parametrize(("n_rows", "n_prompts"), [(0, 3), (1, 1), (7, 5), (65, 100), (144, 31), (2000, 1)])
@pytest.mark.parametrize("apart", [True, False])
def test_pieces_cover_all_once(n_rows, n_prompts, apart, monkeypatch):
    monkeypatch.undo()
    count = np.zeros((n_rows, n_prompts), int)
    for piece in pieces.cut(n_rows, n_prompts, apart):
        count[piece.place] += 1
        assert piece.size <= (pieces.VALUES_AT_ONCE if apart else max(pieces.WHOLE_VALUES, 16 * n_prompts))
    assert (count == 1).all()


def test_the_same_bits_with_a_file(model, tmp_path):
    expected = edges(model)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(2):
            np.testing.assert_array_equal(edges(model, executor=pool, resume=tmp_path / "a"), expected)
    np.testing.assert_array_equal(edges(model, resume=tmp_path / "b"), expected)


@pytest.mark.parametrize("call", ["find_circuit", "attribution", "entry_effects"])
def test_the_same_bits_after_a_stop_with_other_workers(call, model, expected, mark, tmp_path):
    """Stopped in a pool of processes, continued in threads, then without an executor."""
    options = {"resume": tmp_path / "kept"}
    stops = (ThreadPoolExecutor(1), None)
    for pool in stops:
        found = calls.CALLS[call](model, executor=pool, **options)
    assert found.tobytes() == expected[call].tobytes()


def test_loky(model, expected):
    loky = pytest.importorskip("loky", reason="loky is not installed")
    pool = loky.get_reusable_executor(max_workers=2)
    try:
        for name in ("find_circuit", "attribution", "describe_features"):
            assert calls.CALLS[name](model, executor=pool).tobytes() == expected[name].tobytes(), name
        local = functools.partial(metrics.values)
        metric = asp.tasks.CustomMetric(local, name="m")
        np.testing.assert_array_equal(
            heads(model, metric=metric, executor=pool), heads(model, metric=metrics.METRICS["values"])
        )
    finally:
        pool.shutdown(kill_workers=True)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    distributed = pytest.importorskip("distributed", reason="Dask is not installed")
    os.environ[metrics.MARK] = str(tmp_path_factory.mktemp("mark") / "mark")  # the workers inherit it
    with distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=":0") as found:
        yield found
    del os.environ[metrics.MARK]


def test_dask(model, expected, cluster):
    from distributed import Client

    with Client(cluster) as client:
        for name in ("find_circuit", "component_scores", "edges"):
            assert calls.CALLS[name](model, executor=client).tobytes() == expected[name].tobytes(), name
        np.testing.assert_array_equal(edges(model, executor=client.get_executor()), expected["edges"])
        assert client.submit(metrics.threads_to_use).result() == 1, "one thread was given to each"


def test_a_worker_of_dask_that_is_killed(model, cluster):
    """Dask starts another and gives the piece to it."""
    from distributed import Client

    wanted = heads(model, metric=metrics.METRICS["values"])
    with Client(cluster) as client:
        found = heads(model, metric=metrics.METRICS["killing"], executor=client)
    np.testing.assert_array_equal(found, wanted)
    assert len(Path(os.environ[metrics.MARK]).read_text()) > 2, "it was killed in the middle"


def test_a_cluster_that_is_closed_in_the_middle(model, cluster):
    from distributed import Client

    mark = Path(os.environ[metrics.MARK])
    mark.unlink(missing_ok=True)

    def close():
        while not mark.exists():
            time.sleep(0.01)
        cluster.close()

    with Client(cluster) as client:
        thread = threading.Thread(target=close)
        thread.start()
        with pytest.raises(RuntimeError, match=r"knock-out of model gated, task 'random': the piece of rows"):
            heads(model, metric=metrics.METRICS["slow"], executor=client)
        thread.join()


def test_mpi(folder, expected, tmp_path):
    """Under mpirun: one process asks, the other one works."""
    pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    mpirun = Path(sys.executable).with_name("mpirun")
    if not mpirun.exists():
        pytest.skip("there is no mpirun beside this Python; the package mpich has one")
    paths = [str(Path(asp.__file__).parents[1]), *(p for p in sys.path if "tests" in p)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    for name in THREAD_VARIABLES:
        environment.pop(name, None)
    script = Path(calls.__file__)
    command = [
        mpirun,
        "-n",
        "2",
        sys.executable,
        "-m",
        "mpi4py.futures",
        script,
        folder,
        tmp_path / "found.npz",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(tmp_path / "found.npz") as found:
        assert set(found) == {*expected, "threads"}
        for name, values in expected.items():
            assert found[name].tobytes() == values.tobytes(), name
        assert found["threads"] <= max(1, len(os.sched_getaffinity(0)) // 2), "the cores are shared"


def test_metrics_of_the_user(model):
    expected = heads(model, metric=metrics.METRICS["values"])
    with ProcessPoolExecutor(2, spawn) as pool:
        np.testing.assert_array_equal(heads(model, metric=metrics.METRICS["values"], executor=pool), expected)
        with pytest.raises(TypeError, match="must be importable by the workers"):
            heads(model, metric=asp.tasks.CustomMetric(lambda *a: 0), executor=pool)


def test_a_piece_that_fails_three_times(model):
    with ThreadPoolExecutor(1) as pool:
        text = (
            r"knock-out of model gated, task 'random': the piece of rows 0\.\.2 of prompts 0\.\.1 failed 3 "
            "times: ZeroDivisionError: no such logit"
        )
        with pytest.raises(RuntimeError, match=text):
            heads(model, metric=metrics.METRICS["failing"], executor=pool)


def test_wrong_arguments_are_the_same_kind_of_error(model):
    with ThreadPoolExecutor(1) as pool, pytest.raises(IndexError, match="item 0 has head 9"):
        knock_out(model, TASK, [[0, 9]], executor=pool)
    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="failed 3 times: ValueError: sizes"):
        calls.keep_only(model, TASK, [[0, 0]], [2], executor=pool)
    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="threads"):
        knock_out(model, TASK, [[0, 0]], executor=pool, threads=-1)


def test_a_piece_that_fails_twice(model):
    left = [2]

    class Pool(ThreadPoolExecutor):
        def submit(self, function, data, asked):
            def run():
                if asked.piece.rows[0] and left[0]:
                    left[0] -= 1
                    raise ConnectionError("the worker is gone")
                return function(data, asked)

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
    np.testing.assert_array_equal(heads(model, executor=ThreadPoolExecutor(2), **options), expected)


def test_an_executor_that_is_closed(model):
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(RuntimeError, match=r"cannot be given to the executor.*make a new one"):
        edges(model, executor=pool)


@pytest.mark.serial
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


@pytest.mark.parametrize("variable", ["MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE"])
def test_processes_of_mpi_share_the_cores_unless_they_are_bound(variable, monkeypatch):
    monkeypatch.setattr(pieces, "get_num_threads", lambda: 8)
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pieces, "_is_bound", lambda: False)
    assert pieces.threads_here() == 8
    monkeypatch.setenv(variable, "4")
    assert pieces.threads_here() == 2
    monkeypatch.setenv(THREAD_VARIABLES[0], "8")
    assert pieces.threads_here() == 8
    monkeypatch.delenv(THREAD_VARIABLES[0])
    monkeypatch.setattr(pieces, "_is_bound", lambda: True)
    assert pieces.threads_here() == 8


def test_pieces_in_one_worker_of_dask_share_its_cores(monkeypatch):
    distributed = pytest.importorskip("distributed", reason="Dask is not installed")
    monkeypatch.setattr(pieces, "get_num_threads", lambda: 8)
    with (
        distributed.LocalCluster(1, threads_per_worker=2, processes=False, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        assert client.submit(metrics.threads_to_use).result() == 4


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs affinity, which Linux has")
def test_a_worker_that_is_bound_uses_its_cores_alone():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); import executor_metrics as m"
    paths = [str(Path(asp.__file__).parents[1]), str(Path(metrics.__file__).parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    for name in THREAD_VARIABLES:
        environment.pop(name, None)
    command = [sys.executable, "-c", f"{code}; print(m.threads_to_use())"]
    assert subprocess.run(command, env=environment, capture_output=True, check=True).stdout == b"1\n"


@pytest.mark.parametrize(("n_workers", "expected"), [(1, 4), (2, 2), (3, 1), (8, 1)])
def test_workers_share_the_cores(n_workers, expected, monkeypatch):
    monkeypatch.setattr(pieces, "get_num_threads", lambda: 4)
    with ThreadPoolExecutor(n_workers) as pool:
        assert pieces.threads_of_one(pool) == expected
    assert pieces.threads_of_one(object()) is None


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc/self/stat")
def test_n_workers_do_not_start_n_times_n_threads(model):
    before = asp.get_num_threads()
    asp.set_num_threads(4)
    try:
        with ProcessPoolExecutor(4, multiprocessing.get_context("fork")) as pool:
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
