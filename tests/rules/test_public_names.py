"""Public names: each has a docstring and is exported, and the exceptions are as documented."""

import copy
import importlib
import inspect
import pickle

import numpy as np
import pytest
import reliability
from public_calls import CALLS, CLASSES, CORE_CLASSES, Everything, public_names

import attnsparse as asp
from attnsparse import _core, _core64, errors
from attnsparse.model import run
from attnsparse.model import transformer_lens as cache


def documented() -> dict[str, object]:
    """Every public object whose docstring a user may ask for."""
    found: dict[str, object] = {"asp": asp}
    for name in public_names():
        kind, _, attribute = name.rpartition(".")
        owner = {"asp": asp, "cache": cache, "_core": _core}.get(kind) or CLASSES.get(kind)
        if kind.startswith("_core."):
            owner = getattr(_core, kind.partition(".")[2])
        fields = getattr(owner, "__dataclass_fields__", {})
        if owner is None or attribute in fields or (kind == "Run" and not hasattr(owner, attribute)):
            continue
        found[name] = inspect.getattr_static(owner, attribute)
    for module in (
        "figures",
        "tables",
        "recipes",
        "schedules",
        "training_data",
        "evaluation",
        "labels",
        "effects",
        "interventions",
        "circuit",
        "tasks",
        "carriers",
        "graph_edge",
    ):
        found[module] = importlib.import_module(f"attnsparse.{module}")
        names = getattr(found[module], "__all__", None) or [
            n for n in vars(found[module]) if not n.startswith("_")
        ]
        for name in names:
            value = getattr(found[module], name)
            if (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__.startswith(
                "attnsparse"
            ):
                found[f"{module}.{name}"] = value
    for label in ("Tokenizer", "Config", "Limits", "Head"):
        kind = getattr(asp, label)
        members = {n: inspect.getattr_static(kind, n) for n in dir(kind) if not n.startswith("_")}
        found |= {
            f"{label}.{n}": value
            for n, value in members.items()
            if callable(value) or isinstance(value, property)
        }
    return found


@pytest.mark.parametrize("name", sorted(documented()))
def test_everything_public_has_a_docstring(name):
    value = documented()[name]
    text = inspect.getdoc(getattr(value, "__func__", value)) or ""
    assert len(text) >= 8, f"{name} has no docstring"


def test_positions_count_from_0_unless_asked():
    for name, value in documented().items():
        if inspect.isfunction(value) and (base := inspect.signature(value).parameters.get("base")):
            assert base.default in (0, base.empty), name


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
    for name in asp._MODULES:
        assert inspect.ismodule(getattr(asp, name))
        monkeypatch.delattr(asp, name, raising=False)  # as before its first use
        assert name in dir(asp)
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        asp.nothing_of_this_name  # noqa: B018


ERROR_CLASSES = [
    value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, Exception)
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
                assert not twin.weight.flags.writeable
                twin.save(e.folder / "twin")
                graph.save(e.folder / "graph")
                for ending in ("json", "npz"):
                    kept = (e.folder / f"twin.{ending}").read_bytes()
                    assert kept == (e.folder / f"graph.{ending}").read_bytes()
        with pytest.raises(ValueError, match="no model to compute with"):
            copy.copy(e.graph).score_pairs(0, 0, 1, 0)


@pytest.mark.parametrize("by", [pickle.dumps, copy.deepcopy])
def test_what_cannot_be_pickled_says_what_to_do(by):
    with Everything() as e:
        for thing, text in (
            (e.model, r"save it and load.*model\.copy\(\)"),
            (e.one, "take its arrays, or tables"),
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
