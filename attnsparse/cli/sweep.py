"""The command `attnsparse sweep`: circuits of many models, tasks and seeds, here or on an engine."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import multiprocessing
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

from .. import sweep, sweep_status
from ..circuits.choices import METHODS, NORMALIZATIONS, RANK_BY, UNITS
from ..model.interventions import ABLATIONS
from ..sweeps import STATES
from ..tasks import METRICS
from .text import say, say_table

if TYPE_CHECKING:
    import pandas as pd

EXECUTORS = ("none", "processes", "dask", "mpi")
EXAMPLE = "attnsparse sweep --models 'checkpoints/*' --tasks ioi copy --seeds 0 1 --out results"
_SHOWN = 10  # cells that failed

# options of find_circuit: name -> what the parser is told; the rest has the defaults there
_OPTIONS: dict[str, dict[str, Any]] = {
    "unit": {"choices": UNITS, "help": "what an item is (default: head)"},
    "method": {"choices": METHODS, "help": "how items are ranked (default: exact)"},
    "ablation": {"choices": ABLATIONS, "help": "what replaces items (default: zero)"},
    "normalize": {"choices": NORMALIZATIONS, "help": "how f is defined (default: mib)"},
    "metric": {"choices": METRICS, "help": "default: the task's own"},
    "rank_by": {"choices": RANK_BY, "help": "default: absolute"},
    "steps": {"type": int, "help": "of the method ig (default: 10)"},
    "sizes": {"type": int, "nargs": "+", "help": "numbers of items to evaluate (default: see find_circuit)"},
    "n_bootstrap": {"type": int, "help": "resamples of the prompts (default: 1000)"},
    "n_random": {"type": int, "help": "orders of the random baseline (default: 5)"},
    "confidence": {"type": float, "help": "share of the resamples in intervals (default: 0.95)"},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything after `attnsparse sweep`."""
    parser.add_argument(
        "--models", nargs="+", metavar="MODEL", help="names, folders, files or patterns in quotation marks"
    )
    parser.add_argument(
        "--tasks", nargs="+", metavar="TASK", help="names of built-in tasks, files of prompts (.json, .csv)"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="default: 0")
    parser.add_argument("--out", metavar="DIR", help="folder of the results; it continues what is there")
    parser.add_argument("--status", metavar="DIR", help="say how far the sweep in this folder is, and end")
    parser.add_argument("--n", type=int, default=80, help="prompts of each built-in task (default: 80)")
    parser.add_argument("--tokenizer", help="for models that have none: a name, folder or file")
    parser.add_argument(
        "--executor",
        choices=EXECUTORS,
        default="none",
        help="where cells are computed: none (default), processes of this machine, a Dask cluster, or the "
        "ranks of mpirun",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="of processes, or of a Dask cluster made here"
    )
    parser.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster, such as tcp://host:8786")
    parser.add_argument("--threads", type=int, help="of each cell (default: the cores shared among workers)")
    parser.add_argument("--retry-failed", action="store_true", help="try cells again that failed")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    for name, told in _OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **told)
    parser.set_defaults(
        wrong_usage=parser.error, stopped="; the same command continues with the cells that are missing"
    )


def run(arguments: argparse.Namespace) -> None:
    """The command; RuntimeError if cells failed, so that its exit code says so."""
    if arguments.status is not None:
        _say_status(sweep_status(arguments.status))
        return
    missing = [name for name in ("models", "tasks", "out") if getattr(arguments, name) is None]
    if missing:
        arguments.wrong_usage(f"--{missing[0]} is needed (or --status DIR)")
    for name, wanted in {"workers": ("processes", "dask"), "scheduler": ("dask",)}.items():
        if getattr(arguments, name) is not None and arguments.executor not in wanted:
            arguments.wrong_usage(f"--{name} is for --executor {' or '.join(wanted)}")
    options = {name: value for name in _OPTIONS if (value := getattr(arguments, name)) is not None}
    with _executor(arguments) as (is_master, pool):
        if not is_master:
            return
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* cells failed", UserWarning)  # said below
            table = sweep(
                arguments.models, arguments.tasks, arguments.seeds, out=arguments.out, n=arguments.n,
                tokenizer=arguments.tokenizer, executor=pool, retry_failed=arguments.retry_failed,
                threads=arguments.threads, progress=False if arguments.quiet else None, **options,
            )  # fmt: skip
    if not arguments.quiet:
        _say_status(table)
    n_failed = int((table["state"] == "failed").sum())
    if n_failed:
        raise RuntimeError(f"{n_failed:,} of {len(table):,} cells failed; --retry-failed tries them again")


@contextlib.contextmanager
def _executor(arguments: argparse.Namespace) -> Iterator[tuple[bool, Any]]:
    """Whether this process runs the sweep, and its executor; another rank of MPI only serves."""
    if arguments.executor == "none":
        yield True, None
    elif arguments.executor == "processes":
        with ProcessPoolExecutor(arguments.workers, multiprocessing.get_context("spawn")) as pool:
            yield True, pool
    elif arguments.executor == "dask":
        with _dask(arguments.scheduler, arguments.workers) as client:
            yield True, client
    else:
        with _mpi() as (is_master, pool):
            yield is_master, pool


@contextlib.contextmanager
def _dask(scheduler: str | None, workers: int | None) -> Iterator[Any]:
    """A client of a cluster that is there, or of one made on this machine."""
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError as error:
        raise ImportError("--executor dask needs Dask: pip install distributed") from error
    with contextlib.ExitStack() as opened:
        cluster: Any = scheduler
        if scheduler is None:
            made = distributed.LocalCluster(workers, threads_per_worker=1, dashboard_address=None)
            cluster = opened.enter_context(made)
        elif workers is not None:
            raise ValueError("--workers is for a Dask cluster made here; the one at --scheduler has its own")
        yield opened.enter_context(distributed.Client(cluster))


@contextlib.contextmanager
def _mpi() -> Iterator[tuple[bool, Any]]:
    """Rank 0 runs the sweep, all others compute for it; a single rank computes by itself."""
    try:
        world = importlib.import_module("mpi4py.MPI").COMM_WORLD
        executor: Any = importlib.import_module("mpi4py.futures").MPICommExecutor
    except ImportError as error:
        raise ImportError("--executor mpi needs mpi4py: pip install mpi4py") from error
    if world.size == 1:
        yield True, None
        return
    with executor(world, root=0) as pool:
        yield pool is not None, pool


# ------------------------------------------------------------------------------------------------ status


def _say_status(table: pd.DataFrame) -> None:
    """How many cells of each task are in which state, and why the first ones failed."""
    counts = {state: int((table["state"] == state).sum()) for state in STATES}
    parts = ", ".join(f"{n:,} {state}" for state, n in counts.items() if n)
    say(f"{len(table):,} cells: {parts}")
    by_task = table.groupby("task", sort=False)["state"].value_counts().unstack(fill_value=0)
    by_task = by_task.reindex(columns=list(STATES), fill_value=0).reset_index()
    say_table(by_task)
    failed = table[table["state"] == "failed"]
    for cell in failed.head(_SHOWN).to_dict("records"):
        say(f"failed: model {cell['model']}, task {cell['task']}, seed {cell['seed']}: {cell['error']}")
    if len(failed) > _SHOWN:
        say(f"and {len(failed) - _SHOWN:,} more")
