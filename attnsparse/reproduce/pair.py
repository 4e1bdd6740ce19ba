"""The two models that a figure compares, and the tasks and circuits that several figures share."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd

from .. import tasks
from ..circuits import effects
from ..circuits.find import find_circuit
from ..model.load import load
from ..model.model import Model
from ..transcoders.load import load_transcoders
from ..transcoders.transcoders import Transcoders

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..circuits.circuit import Circuit
    from ..tasks.task import Task

FRACTION = 0.9
PROMPTS = 40  # of each task, half of them to rank on
SEED = 0
METHODS = {"head": ("exact", "ig"), "edge": ("ig",)}  # rankings by absolute value; see `ModelPair.circuit`
EXACT_HEADS, HEADS_STEP = 48, 8  # numbers of heads evaluated: each up to the first, then in steps
CHOICE_SIZES = (1, 2, 4, 8, 16, 32, 64)
STEPS = 5
N_RANDOM = 1
CAPTION_WIDTH = 140
RANKING_TEXT = (
    "by exact single ablation or by integrated gradients (absolute values), for each model by the one that "
    "explains more of the ranking prompts with few heads"
)

ModelOrPath: TypeAlias = "Model | str | os.PathLike[str]"
TranscodersOrPath: TypeAlias = "Transcoders | str | os.PathLike[str]"


class FigureFiles(NamedTuple):
    """A figure with everything that is written beside it.

    Attributes
    ----------
    name : str
        Name of its files.
    figure : matplotlib Figure
    caption : str
        In lines of at most CAPTION_WIDTH characters.
    tables : dict of str to DataFrame
        Every number that it shows; the keys are the ends of the names of the CSV files.
    """

    name: str
    figure: Figure
    caption: str
    tables: dict[str, pd.DataFrame]


@dataclass
class ModelPair:
    """Models that a figure compares, with the tasks and circuits that several figures share.

    Attributes
    ----------
    models : dict of str to Model
        By role: "dense", "sparse" and perhaps "control".
    announce : callable, optional
        Called with a few words before each long computation.
    transcoders : dict of str to Transcoders, optional
        Those of "dense" and "sparse", for figures that show features; None for figures of attention alone.
    """

    models: dict[str, Model]
    announce: Callable[[str], object] | None = None
    transcoders: dict[str, Transcoders] | None = None
    _tasks: dict[str, Task] = field(default_factory=dict, repr=False)
    _circuits: dict[tuple[str, ...], list[Circuit]] = field(default_factory=dict, repr=False)

    def add(self, task: Task) -> None:
        """Make `task` known by its name, for a task that is not built in."""
        self._tasks[task.name] = task

    def task(self, name: str) -> Task:
        """The prompts of a task, the same for all models.

        Parameters
        ----------
        name : str
            A built-in task, see `asp.tasks.make_task`, or one that was added.

        Raises
        ------
        ValueError
            If the models' tokenizers cut the prompts into different tokens.
        """
        if name not in self._tasks:
            made = {
                role: tasks.make_task(name, model._need_tokenizer(), n=PROMPTS, seed=SEED)
                for role, model in self.models.items()
            }
            first = made["dense"]
            for role, task in made.items():
                if task.digest != first.digest:
                    raise ValueError(
                        f"{self.models['dense'].name!r} and {self.models[role].name!r} have different tokens "
                        f"for the prompts of task {name!r}; models that are compared need one tokenizer"
                    )
            self._tasks[name] = first
        return self._tasks[name]

    def circuit(self, role: str, task: str, unit: str, ablation: str) -> Circuit:
        """The heads or attention edges of one model for one task, ranked and evaluated.

        No ranking is the best one for all models, and a bad one makes a model look as if it needed more than
        it does. Of METHODS the one is taken that explains more with few items on the ranking prompts; the
        evaluation prompts have no part in the choice.

        Parameters
        ----------
        role : str
            Key of `models`.
        task : str
            A built-in task.
        unit : {"head", "edge"}
        ablation : {"zero", "mean"}

        Raises
        ------
        ValueError
            If the model does no better with its heads than without.
        """
        return self.candidates(role, task, unit, ablation)[0]

    def candidates(self, role: str, task: str, unit: str, ablation: str) -> list[Circuit]:
        """The circuits of all METHODS, the one that is taken first; parameters and errors as of `circuit`."""
        key = (role, task, unit, ablation)
        if key not in self._circuits:
            if self.announce is not None:
                self.announce(f"{task}: {unit}s of {role}, {ablation} ablation")
            found = [self._find(role, task, unit, ablation, method) for method in METHODS[unit]]
            if len(found) > 1:
                found.sort(key=lambda circuit: -self._area(role, task, circuit))
            self._circuits[key] = found
        return self._circuits[key]

    def _find(self, role: str, task: str, unit: str, ablation: str, method: str) -> Circuit:
        model = self.models[role]
        circuit = find_circuit(
            model, self.task(task), unit=unit, method=method, ablation=ablation,
            steps=STEPS, sizes=self._sizes(role, unit), n_random=N_RANDOM, seed=SEED, progress=False,
        )  # fmt: skip
        whole, nothing = circuit.full.mean(), circuit.empty.mean()
        if not whole > nothing:
            raise ValueError(
                f"model {model.name!r} does not do the task {task!r} by attention: {circuit.metric} is "
                f"{whole:.3g} with all {unit}s and {nothing:.3g} with none ({ablation} ablation)"
            )
        return circuit

    def _sizes(self, role: str, unit: str) -> list[int] | None:
        """How many heads are kept in the curves; None, what `find_circuit` does, for edges."""
        config = self.models[role].config
        n = config.n_layer * config.n_head
        if unit != "head":
            return None
        return sorted({*range(min(EXACT_HEADS, n) + 1), *range(EXACT_HEADS, n, HEADS_STEP), n})

    def _area(self, role: str, task: str, circuit: Circuit) -> float:
        """Mean explained effect, counted up to 1, at CHOICE_SIZES on the prompts that are ranked on."""
        model, ranking = self.models[role], self.task(task).ranking
        sizes = [0, *(n for n in CHOICE_SIZES if n < len(circuit)), len(circuit)]
        values = effects.keep_only(
            model, ranking, circuit.items, sizes, circuit.ablation, progress=False
        ).mean(axis=1)
        return float(np.minimum((values - values[0]) / (values[-1] - values[0]), 1).mean())

    def circuits(
        self, task: str, unit: str, ablation: str, roles: Iterable[str] = ("dense", "sparse")
    ) -> dict[str, Circuit]:
        """Role -> circuit, as `circuit` gives it."""
        return {role: self.circuit(role, task, unit, ablation) for role in roles}


def as_model(model: ModelOrPath) -> Model:
    """A model from itself, or loaded by name or path."""
    return model if isinstance(model, Model) else load(model)


def as_transcoders(transcoders: TranscodersOrPath, model: Model) -> Transcoders:
    """Transcoders from themselves, or loaded by name or path. Raises ConfigError if they do not fit."""
    if isinstance(transcoders, Transcoders):
        transcoders.check(model, weights=False)
        return transcoders
    return load_transcoders(transcoders, model)


# ----------------------------------------------------------------------------------- words and tables


def wrapped(text: str) -> str:
    """A caption in lines of at most CAPTION_WIDTH characters."""
    return "\n".join(textwrap.wrap(text, CAPTION_WIDTH, break_on_hyphens=False))


def needed_table(candidates: Iterable[tuple[str, list[Circuit]]]) -> pd.DataFrame:
    """`Circuit.summary` of all rankings, given with the role of their model; `taken`: the ranking shown."""
    rows = []
    for role, circuits in candidates:
        for circuit in circuits:
            row = circuit.summary(FRACTION)
            row.insert(0, "role", role)
            row["taken"] = circuit is circuits[0]
            row["digest"] = circuit.model_digest
            rows.append(row)
    return _joined(rows)


def curves_table(circuits: Iterable[tuple[str, Circuit]]) -> pd.DataFrame:
    """`Circuit.curve` of circuits given with their roles, one below the other."""
    return _joined(_named(role, circuit, circuit.curve()) for role, circuit in circuits)


def items_table(circuits: Iterable[tuple[str, Circuit]], n: int | None = None) -> pd.DataFrame:
    """The n best items (None: all) of circuits given with their roles, and whether they are among the
    first and those that stay (see `Circuit.needed`): in_first, in_stays."""
    parts = []
    for role, circuit in circuits:
        table, needed = circuit.to_pandas(), circuit.needed(FRACTION)
        for name in ("first", "stays"):
            most = getattr(needed, name)
            table[f"in_{name}"] = table["item_rank"] <= (0 if most is None else most)
        parts.append(_named(role, circuit, table if n is None else table.head(n)))
    return _joined(parts)


def ratio_row(role: str, more: Circuit, fewer: Circuit) -> dict[str, Any]:
    """How many times more items the circuit of this role needs than the other, counted in both ways."""
    row: dict[str, Any] = {
        "role": role, "model": more.model_name, "than": fewer.model_name, "task": more.task_name,
        "unit": more.unit, "ablation": more.ablation, "fraction": FRACTION,
    }  # fmt: skip
    for by in ("first", "stays"):
        found = more.ratio_to(fewer, FRACTION, by)
        row |= {f"ratio_{by}": found.value, f"ratio_{by}_low": found.low, f"ratio_{by}_high": found.high}
    return row


def _named(role: str, circuit: Circuit, table: pd.DataFrame) -> pd.DataFrame:
    """The table with columns in front that say what it is of."""
    names = {
        "role": role, "model": circuit.model_name, "task": circuit.task_name, "unit": circuit.unit,
        "ablation": circuit.ablation,
    }  # fmt: skip
    table = table.drop(columns="model")  # which comes after the role
    for i, (name, value) in enumerate(names.items()):
        table.insert(i, name, value)
    return table


def _joined(parts: Iterable[pd.DataFrame]) -> pd.DataFrame:
    parts = list(parts)
    for part in parts:
        part.attrs = {}
    return pd.concat(parts, ignore_index=True)


def counts_sentence(circuits: dict[str, Circuit]) -> str:
    """How many items "dense" and "sparse" need, and the ratio, with intervals: one sentence."""
    more, fewer = circuits["dense"], circuits["sparse"]
    ratio = " and ".join(str(more.ratio_to(fewer, FRACTION, by)) for by in ("first", "stays"))
    return (
        f"{more.ablation.capitalize()} ablation: dense {_count_text(more)}; sparse {_count_text(fewer)}; "
        f"ratio {ratio}."
    )


def _count_text(circuit: Circuit) -> str:
    """`69 [60, 75], for good 71 [65, 80]`."""
    n = circuit.needed(FRACTION)
    return (
        f"{_number(n.first)} [{_number(n.first_low)}, {_number(n.first_high)}], for good {_number(n.stays)} "
        f"[{_number(n.stays_low)}, {_number(n.stays_high)}]"
    )


def _number(n: int | None) -> str:
    return "none" if n is None else f"{n:,}"
