"""A cell of a sweep: one model, one task and one seed. What it is, how it travels, and how it is computed.

A cell is computed by `find_circuit` as it would be without a sweep, so its bits do not depend on where.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import pickle
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from .. import _check
from .._display import telling
from .._engine import core_for
from .._version import __version__
from ..circuits.circuit import Circuit
from ..circuits.find import check_reference, checked_options, checked_sizes, find_circuit
from ..circuits.pieces import threads_here
from ..circuits.wanted import Wanted, Watch
from ..errors import printable
from ..model.model import Model
from ..tasks.custom import CustomMetric, metric_name
from ..tasks.metrics import METRICS
from ..tasks.task import Task
from .sources import ModelSource

VERSION = 1
"""Of the results: cells of another version are computed again."""
DEFAULTS: Mapping[str, Any] = {
    name: parameter.default
    for name, parameter in inspect.signature(find_circuit).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
}
LEFT_OUT = ("seed", "resume", "executor", "threads", "progress")  # arguments of find_circuit that no cell has
OPTIONS = tuple(name for name in DEFAULTS if name not in LEFT_OUT)
_MOST_SIZES = 2**31
_TOKENIZER = "tokenizer"  # stands in a pickled task for the tokenizer of its model
_MOST_TEXT = 500  # characters of an error


class Options(NamedTuple):
    """What all cells of a sweep are asked."""

    arguments: dict[str, Any]  # of find_circuit
    told: dict[str, Any]  # the same as JSON values, as tables and digests have them

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """Checked; TypeError for an argument that find_circuit does not have or a sweep decides itself."""
        for name in given:
            if name not in OPTIONS:
                known = ", ".join(OPTIONS)
                raise TypeError(f"sweep got an unexpected argument {name!r:.60}; find_circuit takes {known}")
        asked: dict[str, Any] = {name: given.get(name, DEFAULTS[name]) for name in OPTIONS}
        metric, sizes, reference = asked["metric"], asked["sizes"], asked["reference"]
        numbers = {name: asked[name] for name in OPTIONS if name not in ("metric", "sizes", "reference")}
        told = {**numbers, **checked_options(seed=0, **numbers)}
        del told["seed"]
        if metric is not None and not isinstance(metric, CustomMetric):
            _check.choice(metric, "metric", METRICS)
        if sizes is not None:
            asked["sizes"] = checked_sizes(sizes, _MOST_SIZES)
        if reference is not None:
            check_reference(_check.instance(reference, Task, "reference"), asked["ablation"])
        told["metric"] = None if metric is None else metric_name(metric)
        told["sizes"] = None if sizes is None else asked["sizes"].tolist()
        told["reference"] = None if reference is None else reference.digest
        return cls(asked, told)


class Cell(NamedTuple):
    """A place of the sweep, and what is known of it before it is computed."""

    model: ModelSource
    task_name: str
    seed: int
    options: Options
    model_digest: str | None = None
    task_digest: str | None = None
    dtype: str | None = None
    n_ranking: int | None = None

    @property
    def key(self) -> str:
        """Of the place: the names and options of the cell, not what the names mean."""
        return cell_key(self.model.name, self.task_name, self.seed, self.options.told)

    @property
    def digest(self) -> str:
        """Of all that the result depends on."""
        asked = {
            "version": VERSION,
            "model": self.model_digest,
            "dtype": self.dtype,
            "task": self.task_digest,
            "seed": self.seed,
            **self.options.told,
        }
        return _digest(asked)[:16]

    @property
    def name(self) -> str:
        """Of the result: its place and its question."""
        return f"{self.key}-{self.digest}"


def cell_key(model: str, task: str, seed: int, told: Mapping[str, Any]) -> str:
    """12 hexadecimal digits: a name for the place of a cell."""
    return _digest([model, task, seed, dict(told)])[:12]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------ results


class Found(NamedTuple):
    """What came of a cell."""

    circuit: Circuit
    prompts: tuple[str, ...]  # digests of the evaluation prompts
    machine: dict[str, Any]
    seconds: float


class Failed(NamedTuple):
    """Why nothing came of it."""

    error: str
    seconds: float = 0.0

    @classmethod
    def of(cls, error: BaseException, seconds: float = 0.0) -> Failed:
        """As a row says it: the kind of the error and its sentence."""
        text = printable(" ".join(str(error).split()))
        return cls(f"{type(error).__name__}: {text}"[:_MOST_TEXT], seconds)


def compute(model: Model, task: Task, arguments: Mapping[str, Any], threads: int | None) -> Found | Failed:
    """The circuit of a cell, or the error that it ends in; Ctrl-C passes."""
    begun = time.monotonic()
    try:
        circuit = find_circuit(model, task, threads=threads, **arguments)
    except Exception as error:
        return Failed.of(error, time.monotonic() - begun)
    return Found(circuit, task.evaluation.prompt_digests, machine_of(model), time.monotonic() - begun)


def machine_of(model: Model) -> dict[str, Any]:
    """What the bits depend on besides the question."""
    machine = core_for(model.dtype.name).machine()
    return {"attnsparse_version": __version__, "isa": machine["isa"], "blas_core": machine["blas_core"]}


# ------------------------------------------------------------------------------------------------ workers


class Work(NamedTuple):
    """What is sent to a worker: pickles of the model and of the rest, apart because the rest refers to the
    tokenizer of the model."""

    model: bytes
    rest: bytes
    threads: int | None
    wanted: Wanted


def packed(model: bytes, tokenizer: Any, task: Task, arguments: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """The pickles of a cell; TypeError for functions that cannot be pickled."""
    data = io.BytesIO()
    try:
        _Pickler(data, tokenizer).dump((task, dict(arguments)))
    except (pickle.PicklingError, AttributeError) as error:
        text = f"with executor= the functions of a metric must be importable by the workers: {error}"
        raise TypeError(text) from error
    return model, data.getvalue()


def compute_there(work: Work) -> Found | Failed:
    """In a worker: one cell."""
    model = pickle.loads(work.model)
    task, arguments = _Unpickler(io.BytesIO(work.rest), model.tokenizer).load()
    threads = threads_here() if work.threads is None else work.threads
    with Watch(work.wanted) as watch, telling(watch.tell):
        return compute(model, task, {**arguments, "progress": True}, threads)


class _Pickler(pickle.Pickler):
    """Leaves out one tokenizer, which a task shares with its model."""

    def __init__(self, file: io.BytesIO, tokenizer: object) -> None:
        super().__init__(file)
        self._left_out = tokenizer

    def persistent_id(self, value: object) -> str | None:
        return _TOKENIZER if value is self._left_out and value is not None else None


class _Unpickler(pickle.Unpickler):
    """Puts it in again."""

    def __init__(self, file: io.BytesIO, tokenizer: object) -> None:
        super().__init__(file)
        self._tokenizer = tokenizer

    def persistent_load(self, name: object) -> object:
        return self._tokenizer
