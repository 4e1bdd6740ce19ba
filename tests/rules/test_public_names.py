"""Public names: each has a docstring and is exported, and the exceptions are as documented."""

import copy
import inspect
import pickle
import re
from collections import Counter

import numpy as np
import pytest
import reliability
from places import ROOT
from public_calls import CALLS, CORE_CLASSES, Everything
from public_names import CLASSES_OF_OURS, PACKAGES, PUBLIC, methods

import attnsparse as asp
from attnsparse import _core, _core64, errors
from attnsparse.model import run

BEYOND_ALL = ("tasks.prompts.", "reproduce.")  # public, and in no `__all__`
REFERENCE = ROOT / "docs" / "reference"


def test_there_are_packages_with_names():
    names = {package.__name__.partition(".")[2] for package in PACKAGES}
    assert names >= {"model", "tasks", "training", "circuits", "transcoders", "graphs", "figures", "recipes"}
    assert {"find_circuit", "tasks.make_task", "figures.head_grid"} <= set(PUBLIC)


@pytest.mark.parametrize("name", [name for name, value in PUBLIC.items() if callable(value)])
def test_everything_public_has_a_docstring(name):
    value = PUBLIC[name]
    assert len(inspect.getdoc(value) or "") >= 8, f"asp.{name} has no docstring"


@pytest.mark.parametrize("name", CLASSES_OF_OURS)
def test_every_method_has_a_docstring(name):
    silent = [
        m for m, value in methods(CLASSES_OF_OURS[name]).items() if len(inspect.getdoc(value) or "") < 8
    ]
    assert silent == [], f"methods of asp.{name} without a docstring"


def headings() -> list[tuple[str, str]]:
    """(page, address) of every heading of the reference that has a directive below it."""
    found = []
    for page in sorted(REFERENCE.glob("*.md")):
        pattern = r"^## (\S+)\n\n```\{eval-rst\}\n\.\. auto\w+:: attnsparse\.(\S+)$"
        for heading, described in re.findall(pattern, page.read_text(), flags=re.M):
            assert heading == described, page.name
            found.append((page.name, heading))
    return found


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="needs the source tree, not only the package")
def test_everything_public_is_in_the_reference_once():
    counts = Counter(heading for _, heading in headings())
    assert [name for name in PUBLIC if name not in counts] == [], "add a heading in docs/reference"
    assert [name for name, n in counts.items() if n > 1] == []
    for name in counts:
        value: object = asp
        for part in name.split("."):
            value = getattr(value, part)
        assert name in PUBLIC or name.startswith(BEYOND_ALL), name


def test_positions_count_from_0_unless_asked():
    with_methods = [
        *PUBLIC.values(),
        *(m for kind in CLASSES_OF_OURS.values() for m in methods(kind).values()),
    ]
    checked = 0
    for value in filter(inspect.isfunction, with_methods):
        if base := inspect.signature(value).parameters.get("base"):
            assert base.default in (0, base.empty), value
            checked += 1
    assert checked >= 3


def test_arrays_of_runs_are_in_the_docstring():
    text = asp.Run.__doc__
    assert all(name in text for name in (*run.CORE_NAMES, "logits") if name != "loss")
    assert set(dir(_core)) == set(dir(_core64))
    for label in CORE_CLASSES:
        assert dir(getattr(_core, label)) == dir(getattr(_core64, label))


def test_every_name_in_all_exists_and_dir_shows_it(monkeypatch):
    assert sorted(asp.__all__) == sorted(set(asp.__all__))
    for name in asp.__all__:
        assert getattr(asp, name) is not None
        assert name in dir(asp)
    for name in asp._LATE:
        assert inspect.ismodule(getattr(asp, name))
        monkeypatch.delattr(asp, name, raising=False)  # as before its first use
        assert name in dir(asp)
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        asp.nothing_of_this_name  # noqa: B018


ERROR_CLASSES = [
    value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, Exception) and not name.startswith("_")
]


@pytest.mark.parametrize("kind", ERROR_CLASSES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_exceptions_survive_pickling(kind, protocol):
    error = kind("what is wrong", code="some_code", path="a/file", offset=17, field="wte.weight")
    twin = pickle.loads(pickle.dumps(error, protocol))
    assert type(twin) is kind
    assert str(twin) == "what is wrong"
    assert (twin.code, twin.path, twin.offset, twin.field) == ("some_code", "a/file", 17, "wte.weight")
    bare = pickle.loads(pickle.dumps(kind("text", code="c"), protocol))
    assert (bare.path, bare.offset, bare.field) == (None, None, None)


def test_exceptions_have_the_documented_bases():
    for kind in ERROR_CLASSES:
        base = ArithmeticError if kind is errors.TrainingDiverged else ValueError
        assert issubclass(kind, base)
        assert kind.__name__ in asp.__all__
    for kind in (errors.UnsafeFileError, errors.LimitError, errors.CheckpointError, errors.NonFiniteError):
        assert issubclass(kind, errors.FormatError)
    assert not issubclass(errors.ConfigError, errors.FormatError)


def test_errors_raised_by_calls_survive_pickling():
    with Everything() as everything:
        for name, entry in CALLS.items():
            for call in entry.wrong:
                with pytest.raises(Exception) as caught:
                    call(everything)
                twin = pickle.loads(pickle.dumps(caught.value))
                assert (type(twin), str(twin)) == (type(caught.value), str(caught.value)), name


def test_a_pickled_or_copied_graph_is_all_but_its_model():
    with Everything() as e:
        for graph in (e.graph, e.pruned):
            for twin in (pickle.loads(pickle.dumps(graph)), copy.deepcopy(graph), copy.copy(graph)):
                assert twin.origin is None
                assert not twin.weights.flags.writeable
                twin.save(e.folder / "twin")
                graph.save(e.folder / "graph")
                twin, kept = (e.folder / f"{name}.graph.safetensors" for name in ("twin", "graph"))
                assert twin.read_bytes() == kept.read_bytes()
        with pytest.raises(ValueError, match="no model to compute with"):
            copy.copy(e.graph).score_pairs(0, 0, 1, 0)


def test_what_cannot_be_pickled_says_what_to_do():
    with Everything() as e:
        with pytest.raises(TypeError, match=r"save it and load.*model\.to_bytes\(\)"):
            pickle.dumps(e.model)
        for by in (pickle.dumps, copy.deepcopy):
            for thing, text in (
                (e.one, "Run cannot be .* run there, or keep its arrays or tables made of it"),
                (e.gradients, "Gradients cannot be "),
                (e.cache, "Run cannot be "),
                (e.trainer, "a Trainer cannot be pickled: save a checkpoint"),
                (e.features, "send the transcoders, the model and the prompt"),
            ):
                with pytest.raises(TypeError, match=text):
                    by(thing)


def test_divergence_raised_by_the_engine_survives_pickling():
    twin = reliability.model()
    twin.assign({"ln_f.weight": np.full(64, np.nan)})
    with pytest.raises(asp.TrainingDiverged) as caught:
        _core.Trainer(twin._core).step([reliability.micro_batch()], **reliability.step_options())
    error = pickle.loads(pickle.dumps(caught.value))
    assert (type(error), error.code) == (asp.TrainingDiverged, "diverged")
    assert "step 0" in str(error)
