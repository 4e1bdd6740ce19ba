"""Circuits of many models, tasks and seeds, one cell after the other or on the workers of an executor."""

from __future__ import annotations

import contextlib
import os
import pickle
import tempfile
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from .. import _check
from .._display import progress_bar
from ..circuits.pieces import TRIES, as_executor, threads_of_one
from ..circuits.wanted import Wanted
from ..errors import printable
from ..model.model import Model
from ..model.tokenizer import Tokenizer
from ..tasks.task import Task
from .cell import Cell, Failed, Found, Options, Work, compute, compute_there, packed
from .sources import AnyModel, AnyTask, ModelSource, TaskSource, model_sources, task_sources
from .status import status_of
from .store import Plan, Store
from .tables import arrow

if TYPE_CHECKING:
    import pandas as pd

Done: TypeAlias = "tuple[Cell, Found | Failed]"

_IN_FLIGHT = 64  # cells that are given to an executor that does not say how many workers it has
_EACH = 2  # cells in flight for each worker, so that none waits for the next one


class Pending(NamedTuple):
    """A cell that is to be computed, and what with."""

    cell: Cell
    model: Model
    task: Task
    arguments: dict[str, Any]


def sweep(
    models: AnyModel | Iterable[AnyModel] | Mapping[Any, AnyModel],
    tasks: AnyTask | Iterable[AnyTask] | Mapping[str, AnyTask],
    seeds: int | Iterable[int] = 0,
    *,
    out: str | os.PathLike[str],
    n: int = 80,
    tokenizer: Tokenizer | str | os.PathLike[str] | None = None,
    executor: Any = None,
    retry_failed: bool = False,
    threads: int | None = None,
    progress: bool | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Find the circuit of every model, task and seed, and keep all results as Parquet files.

    Cells that are in `out` already, of the same weights, prompts and options, are skipped: the same call
    continues a sweep that was stopped or killed, and adds models, tasks and seeds to one that has ended. A
    cell that fails becomes a row with its error, and the sweep goes on.

    Parameters
    ----------
    models : str, path, Model, sequence of these, or mapping
        What `load` takes; a pattern such as ``"checkpoints/*"`` means all models that it matches. A mapping
        gives names, or, with int as keys, steps of training; otherwise a model's name is the last part of its
        path, and its step of training the number after "step" or "checkpoint" there.
    tasks : str, path, Task, function, sequence of these, or mapping
        Names of built-in tasks, files of prompts (.json, .csv), tasks, or, in a mapping by name, functions of
        a tokenizer and a seed that make a task.
    seeds : int or iterable of int, default 0
        Of the prompts that are drawn, and of resamples and random orders. 0..2^63-1.
    out : path
        Folder of the results; made if there is none.
    n : int, default 80
        Prompts of each built-in task.
    tokenizer : Tokenizer, str or path, optional
        As for `load`, for models given by name or path.
    executor : concurrent.futures.Executor or Dask Client, optional
        Whose workers compute the cells, one at a time; a bounded number of cells waits there. See
        docs/cluster.md. Default: this process.
    retry_failed : bool, default False
        Try cells again that failed before.
    threads : int, optional
        Of each cell. Default: here, the number set by `set_num_threads`; in workers, that number shared among
        the workers of the executor, if it says how many it has, else what the workers are told.
    progress : bool, optional
        Show a bar on stderr. Default: in terminals and notebooks only.
    **options
        Arguments of `find_circuit`: unit, method, ablation, normalize, metric, rank_by, steps, sizes,
        reference, n_bootstrap, n_random, confidence, greedy_step.

    Returns
    -------
    pandas.DataFrame
        As `sweep_status`, of the cells of this call.

    Raises
    ------
    ImportError
        Without pyarrow: ``pip install attnsparse[sweep]``.
    TypeError
        For arguments of another kind, and with `executor` for models and metrics that cannot be pickled.
    ValueError
        For unknown names, options that `find_circuit` refuses, and two models or tasks of one name.
    FileNotFoundError
        For a pattern that matches no model.
    OSError
        If a result cannot be written.
    RuntimeError
        If the executor takes no more work; cells that are there stay.
    KeyboardInterrupt
        On Ctrl-C; workers of this machine stop within two seconds, and cells that are there stay.

    Warns
    -----
    UserWarning
        If cells failed.
    """
    arrow()
    asked = Options.of(options)
    sources = model_sources(models)
    makers = task_sources(tasks, _check.integer(n, "n", 1))
    numbers = _seeds(seeds)
    _check.flag(retry_failed, "retry_failed")
    _check.threads(threads)
    pool = None if executor is None else as_executor(executor)
    store = Store(Path(_check.path(out, "out")))
    names = [source.name for source in sources], [maker.name for maker in makers]
    plan = Plan(*names, numbers, asked.told)
    store.write_plan(plan)
    keys, known = plan.keys(), store.places(failed=not retry_failed)
    with progress_bar(progress, len(keys), "sweep", "cell", sum(key in known for key in keys)) as bar:
        todo = _pending(sources, makers, numbers, asked, store, tokenizer, retry_failed)
        done = _here(todo, threads) if pool is None else _there(todo, pool, threads)
        with contextlib.closing(done):
            n_failed = 0
            for cell, result in done:
                store.write(cell, result)
                n_failed += isinstance(result, Failed)
                if bar is not None:
                    bar.set_postfix_str(f"{n_failed} failed" if n_failed else "", refresh=False)
                    bar.update()
    found = status_of(store, [plan])
    _warn_of_failed(found)
    return found


def _seeds(seeds: object) -> list[int]:
    if isinstance(seeds, int):
        seeds = [seeds]
    found = [
        _check.integer(seed, "each of seeds", 0, 2**63 - 1)
        for seed in _check.items(seeds, "seeds", "integers")
    ]
    if not found or len(set(found)) < len(found):
        raise ValueError(f"seeds must be one or more different integers, got {found!r:.60}")
    return found


def _warn_of_failed(found: pd.DataFrame) -> None:
    failed = found[found["state"] == "failed"]
    if len(failed):
        worst = failed.iloc[0]
        warnings.warn(
            f"{len(failed):,} of {len(found):,} cells failed, the first of them model {worst['model']}, task "
            f"{worst['task']}, seed {worst['seed']}: {worst['error']}",
            stacklevel=3,
        )


# ------------------------------------------------------------------------------------------------ cells


def _pending(
    sources: list[ModelSource],
    makers: list[TaskSource],
    seeds: list[int],
    options: Options,
    store: Store,
    tokenizer: Tokenizer | str | os.PathLike[str] | None,
    retry_failed: bool,
) -> Iterator[Pending | Done]:
    """The cells that are not there, model after model; those whose model or task cannot be made, with why."""
    for source in sources:
        model: Model | Failed
        try:
            model = source.load(tokenizer)
        except Exception as error:
            model = Failed.of(error)
        for maker in makers:
            for seed in seeds:
                cell = Cell(source, maker.name, seed, options)
                if isinstance(model, Failed):
                    yield cell, model
                    continue
                cell = cell._replace(model_digest=model.digest, dtype=model.dtype.name)
                try:
                    task = _task(maker, model, seed)
                except Exception as error:
                    yield cell, Failed.of(error)
                    continue
                n_ranking = int(task.is_ranking.sum())
                cell = cell._replace(task_digest=task.digest, n_ranking=n_ranking)
                if store.has(cell) or (store.has_failed(cell) and not retry_failed):
                    continue
                yield Pending(cell, model, task, {**options.arguments, "seed": seed})


def _task(maker: TaskSource, model: Model, seed: int) -> Task:
    if model.tokenizer is None and maker.needs_tokenizer:
        raise ValueError("this model has no tokenizer; give one with tokenizer=")
    return _check.instance(maker.make(model.tokenizer, seed), Task, f"what the task {maker.name!r} makes")


def _here(todo: Iterator[Pending | Done], threads: int | None) -> Generator[Done, None, None]:
    """Every cell, computed in this process."""
    for each in todo:
        if isinstance(each, Pending):
            arguments = {**each.arguments, "progress": False}
            yield each.cell, compute(each.model, each.task, arguments, threads)
        else:
            yield each


def _there(todo: Iterator[Pending | Done], pool: Any, threads: int | None) -> Generator[Done, None, None]:
    """Every cell, computed by the workers of an executor, as they end.

    Whatever ends it early, an error, Ctrl-C or `close`, cancels what is queued and stops what runs.
    """
    workers = _n_workers(pool)
    limit = _EACH * workers if workers else _IN_FLIGHT
    if threads is None:
        threads = threads_of_one(pool)
    running: dict[Future[Found | Failed], tuple[Cell, Work, int]] = {}
    with tempfile.NamedTemporaryFile(prefix="attnsparse-wanted-") as file:
        wanted = Wanted.here(file.name)
        pickled: tuple[Model, bytes] | None = None
        try:
            for each in todo:
                if not isinstance(each, Pending):
                    yield each
                    continue
                if pickled is None or pickled[0] is not each.model:
                    pickled = (each.model, pickle.dumps(each.model))
                data = packed(pickled[1], each.model.tokenizer, each.task, each.arguments)
                work = Work(*data, threads, wanted)
                running[_submitted(pool, work, each.cell, None)] = (each.cell, work, 1)
                while len(running) >= limit:
                    yield from _ended(pool, running)
            while running:
                yield from _ended(pool, running)
        finally:
            for future in running:
                future.cancel()


def _ended(pool: Any, running: dict[Future[Found | Failed], tuple[Cell, Work, int]]) -> Iterator[Done]:
    """Wait for one cell or several; one that a worker lost is given to the executor again."""
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        cell, work, tries = running.pop(future)
        try:
            yield cell, future.result()
        except Exception as error:
            if tries < TRIES:
                running[_submitted(pool, work, cell, error)] = (cell, work, tries + 1)
            else:
                lost = Failed.of(error)
                yield cell, lost._replace(error=f"lost {TRIES} times by its worker: {lost.error}")


def _submitted(pool: Any, work: Work, cell: Cell, reason: Exception | None) -> Future[Found | Failed]:
    """RuntimeError if the executor takes no more work."""
    try:
        future: Future[Found | Failed] = pool.submit(compute_there, work)
    except Exception as error:
        why = reason or error
        raise RuntimeError(
            f"model {cell.model.name}, task {cell.task_name!r:.60}, seed {cell.seed} cannot be given to the "
            f"executor: {type(why).__name__}: {printable(why)[:300]}; make a new one and call sweep again, "
            "which continues"
        ) from error
    return future


def _n_workers(pool: Any) -> int | None:
    """How many workers an executor has, if it says so."""
    ways: tuple[Callable[[], Any], ...] = (
        lambda: pool._max_workers,
        lambda: pool.num_workers,
        lambda: sum(pool._client.nthreads().values()),
    )
    for way in ways:
        with contextlib.suppress(Exception):
            found = way()
            if isinstance(found, int) and found > 0:
                return found
    return None
