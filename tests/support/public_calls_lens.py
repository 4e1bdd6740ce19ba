"""Right and wrong uses of lens, attribution, detectors, stacks and views of weights: see public_calls.py."""

from __future__ import annotations

from typing import Any

import numpy as np
from public_objects import Everything, Uses, uses

from attnsparse import _core
from attnsparse.model import FactoredMatrix

BY = ("layer", "component", "head", "position", "neuron")
PARTS = (
    "value", "ln_bias", "unembed_bias", "embed", "pos_embed", "head", "value_bias", "attn_bias", "mlp", "key",
    "neuron", "mlp_bias",
)  # fmt: skip
VIEWS = (
    "W_E", "W_pos", "W_U", "W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O", "W_in", "b_in", "W_out",
    "b_out", "ln1_w", "ln1_b", "ln2_w", "ln2_b", "ln_final_w", "ln_final_b",
)  # fmt: skip
STACKS = (
    "accumulated_resid", "apply_ln_to_stack", "decompose_resid", "logit_attrs", "stack_head_results",
)  # fmt: skip
ROWS, ROW, TOKEN = np.array([3, 7]), np.array([7]), np.array([5], np.int32)
NONE_ASKED, ASKED = np.empty((2, 0), np.int32), np.array([[1, 2], [3, 4]], np.int32)
POINTS, LOGITS = np.array([0, 3]), np.ones((2, 9), np.float32)
STACK, SCALE = np.ones((2, 1, 64), np.float32), np.ones(1, np.float32)
SQUARES = np.ones((1, 64))


def attribute(e: Everything, *changes: Any) -> Any:
    """_core.Run.attribute of one row, with the first arguments changed."""
    return e.one._core.attribute(*changes, *(ROW, TOKEN, None, PARTS)[len(changes) :])


LENS_CALLS: dict[str, Uses] = {
    "Model.cfg": uses(lambda e: e.model.cfg),
    **{f"Model.{name}": uses(lambda e, n=name: getattr(e.model, n)) for name in (*VIEWS, "b_U")},
    "Model.OV": uses(lambda e: e.model.OV(1, 2), wrong=(lambda e: e.model.OV(2, 0),)),
    "Model.QK": uses(lambda e: e.model.QK(), wrong=(lambda e: e.model.QK(0, "x"),)),
    "Model.composition_scores": uses(lambda e: e.model.composition_scores(), cost=40),
    "Model.to_string": uses(wrong=(lambda e: e.model.to_string([1, 2]),)),
    "Model.to_single_token": uses(wrong=(lambda e: e.model.to_single_token("x"),)),
    "Model.get_token_position": uses(
        lambda e: e.model.get_token_position(2, [1, 2, 2], mode="last"),
        wrong=(
            lambda e: e.model.get_token_position(3, [1, 2]),
            lambda e: e.model.get_token_position("x", [1]),
        ),
    ),
    "Model.tokens_of": uses(
        lambda e: e.model.tokens_of([1, 2]), wrong=(lambda e: e.model.tokens_of([]),), cost=40
    ),
    "Run.attribute": uses(
        *(lambda e, b=b: e.ragged.attribute([1, 2, 3], 4, b) for b in BY),
        lambda e: e.one.attribute(1, position=None),
        wrong=(
            lambda e: e.one.attribute(96),
            lambda e: e.one.attribute("x"),
            lambda e: e.plain.attribute(1),
            lambda e: e.ragged.attribute([1, 2]),
        ),
        cost=40,
    ),
    "Run.logit_lens": uses(
        lambda e: e.ragged.logit_lens(2, incl_mid=True),
        lambda e: e.one.logit_lens(tokens=[1, 2], scale="held", position=-1),
        wrong=(lambda e: e.plain.logit_lens(), lambda e: e.one.logit_lens(97)),
        cost=40,
    ),
    "Run.top": uses(
        lambda e: e.one.top(3),
        lambda e: e.one.top(tokens=[1, 2], position=-1),
        wrong=(lambda e: e.plain.top(), lambda e: e.one.top(97), lambda e: e.one.top(tokens=[])),
        cost=40,
    ),
    "Run.detect_heads": uses(
        lambda e: e.ragged.detect_heads(),
        lambda e: e.one.detect_heads({"own": np.eye(8)}, error_measure="abs"),
        wrong=(lambda e: e.plain.detect_heads(), lambda e: e.one.detect_heads({"own": np.eye(7)})),
        cost=40,
    ),
    "ActivationCache.accumulated_resid": uses(
        lambda e: e.cache.accumulated_resid(apply_ln=True), wrong=(lambda e: e.cache.accumulated_resid(3),)
    ),
    "ActivationCache.decompose_resid": uses(
        lambda e: e.cache.decompose_resid(apply_ln=True, pos_slice=-1),
        wrong=(lambda e: e.cache.decompose_resid(mode="x"),),
    ),
    "ActivationCache.stack_head_results": uses(
        lambda e: e.cache.stack_head_results(incl_remainder=True),
        wrong=(lambda e: e.short_cache.stack_head_results(),),
    ),
    "ActivationCache.apply_ln_to_stack": uses(
        lambda e: e.cache.apply_ln_to_stack(e.stack, recompute_ln=True),
        wrong=(lambda e: e.cache.apply_ln_to_stack(e.stack[..., 1:]),),
    ),
    "ActivationCache.logit_attrs": uses(
        lambda e: e.cache.logit_attrs(e.stack, 1, 2), wrong=(lambda e: e.cache.logit_attrs(e.stack, 96),)
    ),
    "model.FactoredMatrix": uses(
        lambda e: FactoredMatrix(np.ones((3, 2)), np.ones((2, 3))).svd(),
        wrong=(lambda e: FactoredMatrix(np.ones((3, 2)), np.ones((3, 2))),),
    ),
    # --- the extension
    "_core.Model.stacked": uses(
        lambda e: e.core.stacked("attn.c_attn.weight"),
        wrong=(lambda e: e.core.stacked("wte.weight"), lambda e: e.core.stacked(3)),
    ),
    "_core.Model.composition": uses(lambda e: e.core.composition(), cost=5),
    "_core.Model.lens_project": uses(
        lambda e: e.core.lens_project(STACK, SCALE, TOKEN, None),
        lambda e: e.core.lens_project(STACK, SCALE, TOKEN, TOKEN),
        wrong=(
            lambda e: e.core.lens_project(STACK[..., 1:].copy(), SCALE, TOKEN, None),
            lambda e: e.core.lens_project(STACK, SCALE, TOKEN + 91, None),
            lambda e: e.core.lens_project(STACK, SCALE, ROW, None),
            lambda e: e.core.lens_project(STACK, SCALE, TOKEN, np.zeros(2, np.int32)),
            lambda e: e.core.lens_project(STACK, 1, TOKEN, None),
        ),
    ),
    "_core.Run.attribute": uses(
        lambda e: attribute(e),
        lambda e: attribute(e, ROW, TOKEN, TOKEN, ["head"]),
        wrong=(
            lambda e: attribute(e, ROW + 1),
            lambda e: attribute(e, ROW, TOKEN + 91),
            lambda e: attribute(e, ROWS),
            lambda e: attribute(e, ROW, TOKEN, TOKEN - 6),
            lambda e: attribute(e, ROW, TOKEN, None, ["x"]),
            lambda e: attribute(e, ROW, TOKEN, None, 3),
            lambda e: e.plain._core.attribute(ROW, TOKEN, None, ["head"]),
        ),
    ),
    "_core.Run.lens": uses(
        lambda e: e.one._core.lens(POINTS, ROWS, False, 3, NONE_ASKED),
        lambda e: e.one._core.lens(POINTS, ROWS, True, 0, ASKED),
        wrong=(
            lambda e: e.one._core.lens(POINTS, ROW, False, 1, NONE_ASKED),
            lambda e: e.one._core.lens(POINTS + 2, ROWS, False, 1, NONE_ASKED),
            lambda e: e.one._core.lens(POINTS, ROWS + 1, False, 1, NONE_ASKED),
            lambda e: e.one._core.lens(POINTS, ROWS, False, 97, NONE_ASKED),
            lambda e: e.one._core.lens(POINTS, ROWS, False, 1, ASKED + 93),
            lambda e: e.plain._core.lens(POINTS, ROWS, True, 1, NONE_ASKED),
            lambda e: e.clean.lens(POINTS, ROWS, True, 1, NONE_ASKED),
        ),
    ),
    "_core.Run.detect": uses(
        lambda e: e.one._core.detect(SQUARES, "mul", True, False),
        wrong=(
            lambda e: e.one._core.detect(SQUARES, "x", False, False),
            lambda e: e.one._core.detect(SQUARES[:, 1:].copy(), "abs", False, False),
            lambda e: e.plain._core.detect(SQUARES, "abs", False, False),
        ),
    ),
    "_core.lens_read": uses(
        lambda e: _core.lens_read(LOGITS, 2, NONE_ASKED),
        wrong=(
            lambda e: _core.lens_read(LOGITS, 10, NONE_ASKED),
            lambda e: _core.lens_read(LOGITS, -1, NONE_ASKED),
            lambda e: _core.lens_read(LOGITS, 1, NONE_ASKED[:1]),
            lambda e: _core.lens_read(LOGITS, 1, ASKED + 5),
            lambda e: _core.lens_read(3, 1, NONE_ASKED),
        ),
    ),
    "_core.lens_normalize": uses(
        lambda e: _core.lens_normalize(STACK, SCALE, 1e-5),
        lambda e: _core.lens_normalize(STACK, None, 1e-5),
        wrong=(
            lambda e: _core.lens_normalize(STACK, np.ones(2, np.float32), 1e-5),
            lambda e: _core.lens_normalize(STACK, 1, 1e-5),
            lambda e: _core.lens_normalize(SCALE, None, 1e-5),
        ),
    ),
}

LENS_ARRAYS: dict[str, str] = {
    **{f"Model.{name}": "lent" for name in VIEWS},
    "_core.Model.stacked": "lent",
    **dict.fromkeys(
        ["Model.b_U", "Model.composition_scores", "Model.tokens_of", "model.FactoredMatrix"], "own"
    ),
    **{f"Run.{name}": "own" for name in ("attribute", "logit_lens", "top", "detect_heads")},
    **{f"ActivationCache.{name}": "own" for name in STACKS},
    **{f"_core.Run.{name}": "own" for name in ("attribute", "lens", "detect")},
    **{f"_core.Model.{name}": "own" for name in ("composition", "lens_project")},
    **{f"_core.{name}": "own" for name in ("lens_read", "lens_normalize")},
}
