"""What a Model, its runs and its gradients offer to a reader, an editor and a type checker."""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest
import tiny_training as tiny

import attnsparse as asp
from attnsparse.model.recorded import CORE_NAMES

ARRAYS = sorted(name for name in CORE_NAMES if name != "loss")


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("kind", [asp.Run, asp.Gradients])
def test_arrays_are_properties_that_say_their_shape(kind, name):
    found = inspect.getattr_static(kind, name)
    assert isinstance(found, property)
    assert re.search(r"\[[LT], ?|\[T", found.__doc__), found.__doc__
    assert inspect.signature(found.fget).return_annotation == "np.ndarray"


def test_gradients_have_no_tables_of_a_run():
    found = tiny.model().gradients([1, 2, 3], wrt=["pattern", "parameters"])
    assert found.pattern.shape == tiny.model().run([1, 2, 3]).pattern.shape
    assert found.recorded == ("pattern",)
    assert not any(hasattr(found, name) for name in ("heads", "open_edges", "logits", "_repr_html_"))


def test_initialised_is_a_pure_function_of_its_arguments():
    config = tiny.model().config
    one, same, other = (asp.Model.initialised(config, seed, std=0.3) for seed in (3, 3, 4))
    assert one.digest == same.digest != other.digest
    assert asp.Model.initialised(config, 3).digest != one.digest
    assert one.parameter("wte.weight").std() == pytest.approx(0.3, rel=0.2)
    named = asp.Model.initialised(config, 3, std=0.3, name="new", dtype="float64")
    assert (named.name, named.dtype) == ("new", np.float64)
    np.testing.assert_array_equal(named.parameter("wte.weight"), one.parameter("wte.weight"))


WRONG = {
    "config": (TypeError, "config must be a Config, got dict", lambda m: asp.Model.initialised({}, 0)),
    "seed": (ValueError, "seed must be in", lambda m: asp.Model.initialised(m.config, -1)),
    "std": (ValueError, "std must be", lambda m: asp.Model.initialised(m.config, 0, std="wide")),
    "negative std": (ValueError, "std must be", lambda m: asp.Model.initialised(m.config, 0, std=-1.0)),
    "batch": (ValueError, "batch must be at least 1, got 0", lambda m: m.evaluate([[1, 2]], batch=0)),
    "no sequences": (ValueError, "at least one sequence", lambda m: m.evaluate([])),
    "other weights": (
        ValueError,
        "one number for each token of sequences",
        lambda m: m.evaluate([[1, 2]], [[1]]),
    ),
    "nothing to predict": (ValueError, "a weight above 0 in loss_weights", lambda m: m.evaluate([[1]])),
    "record": (ValueError, "record: unknown name 'nothing'; choose from", lambda m: m.run([1], "nothing")),
    "logits": (ValueError, "logits must be one of", lambda m: m.run([1], logits="some")),
    "edge_threshold": (ValueError, "edge_threshold must be", lambda m: m.run([1], edge_threshold=-1.0)),
    "wrt": (
        ValueError,
        "wrt: unknown name 'x'; choose from parameters",
        lambda m: m.gradients([1, 2], wrt="x"),
    ),
    "gate_gradient": (ValueError, "gate_gradient must be", lambda m: m.gradients([1, 2], gate_gradient="x")),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_named(name):
    kind, text, call = WRONG[name]
    with pytest.raises(kind, match=text):
        call(tiny.model())
