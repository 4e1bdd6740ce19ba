"""Values of a wrong kind for arguments that take sequences, arrays or names: one clear sentence, never a bare
text of Python's or NumPy's own conversion.
"""

import numpy as np
import pytest
from messages import check_message
from public_calls import Everything
from reliability import TOKENS

import attnsparse as asp
from attnsparse import _check, circuits

# What none of the arguments below takes.
VALUES = {
    "number": 3.5,
    "object": object(),
    "bytes": b"x",
    "rows of several depths": [[1.0], [1.0, [2.0]]],
    "array without dimensions": np.array(3.5),
    "mapping": {1.5: 2},
    "array of objects": np.array([1, None], object),
}


@pytest.fixture(scope="module")
def e():
    with Everything() as everything:
        everything.scored = circuits.component_scores(everything.model, everything.task)
        everything.ranked = circuits.component_circuit(everything.scored, everything.model)
        everything.read = everything.model.run(TOKENS, "attribution")
        yield everything


def trained(e, **changes):
    options = {"steps": 3, "tau": 3.0, "evaluate_every": 1, "held_out": [[1, 2, 3]], **changes}
    return asp.Trainer(e.model.copy(), e.data, **options)


ARGUMENTS = {
    "Model.generate: stop": lambda e, v: e.model.generate(TOKENS, 2, stop=v),
    "Model.generate: logits": lambda e, v: e.model.generate(TOKENS, 2, logits=v),
    "Model.generate: freeze": lambda e, v: e.model.generate(TOKENS, 2, freeze=v),
    "Model.generate: hooks": lambda e, v: e.model.generate(TOKENS, 2, hooks=v),
    "Model.run: record": lambda e, v: e.model.run(TOKENS, v),
    "Model.run: stop_at_layer": lambda e, v: e.model.run(TOKENS, stop_at_layer=v),
    "Run.open_edges: texts": lambda e, v: e.read.open_edges(texts=v),
    "Model.run: freeze": lambda e, v: e.model.run(TOKENS, freeze=v),
    "Model.run_with_hooks: hooks": lambda e, v: e.model.run_with_hooks(TOKENS, v),
    "Model.run_with_hooks: function": lambda e, v: e.model.run_with_hooks(
        TOKENS, {"hook_embed": lambda *_: v}
    ),
    "Model.evaluate: sequences": lambda e, v: e.model.evaluate(v),
    "Model.evaluate: loss_weights": lambda e, v: e.model.evaluate([[1, 2]], v),
    "Trainer: held_out": lambda e, v: trained(e, held_out=v),
    "Trainer: held_out_weights": lambda e, v: trained(e, held_out_weights=v),
    "Run.attribute: right": lambda e, v: e.read.attribute(v),
    "Run.logit_lens: tokens": lambda e, v: e.read.logit_lens(tokens=v),
    "Run.heads: logit_diff": lambda e, v: e.read.heads(0, -1, logit_diff=v),
    "component_values: masks": lambda e, v: circuits.component_values(e.model, e.task, v),
    "component_mask_gradients: masks": lambda e, v: circuits.component_mask_gradients(e.model, e.task, v),
    "node_values: masks": lambda e, v: circuits.node_values(e.model, e.task, v),
    "ComponentCircuit.evaluate: shares": lambda e, v: e.ranked.evaluate(e.model, e.task, shares=v),
    "component_acdc_sweep: thresholds": lambda e, v: circuits.component_acdc_sweep(e.model, e.task, v),
    "find_component_circuit: ablation": lambda e, v: circuits.find_component_circuit(
        e.model, e.task, ablation=v
    ),
    "keep_only: sizes": lambda e, v: circuits.keep_only(e.model, e.task, [[0, 0]], v),
    "attention_page: effects": lambda e, v: asp.pages.attention_page(e.read, effects=v),
}


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("argument", ARGUMENTS)
def test_wrong_kinds(argument, value, e):
    with pytest.raises((TypeError, ValueError)) as caught:
        ARGUMENTS[argument](e, VALUES[value])
    check_message(caught.value)


@pytest.mark.parametrize("value", [v for v in VALUES if v != "array of objects"])
@pytest.mark.parametrize("argument", ["answer", "wrong"])
def test_wrong_answers_of_entry_effects(argument, value):
    model = asp.load("demo-dense")
    given = {"answer": "small", "wrong": ["cold"], argument: VALUES[value]}
    with pytest.raises((TypeError, ValueError)) as caught:
        circuits.entry_effects(model, PROMPT, "large", -1, **given)
    check_message(caught.value)


PROMPT = 'The opposite of "large" is "'


def test_sequences_and_weights_are_checked_at_once(e):
    """By `Model.evaluate` when it is called, by a `Trainer` when it is made."""
    for sequences, weights, kind, match in (
        ([], None, ValueError, "held_out must hold at least one sequence"),
        ([[1], [2]], None, ValueError, "held_out must have a token after the first"),
        ([[1, 2], []], None, ValueError, r"held_out\[1\] has no tokens"),
        ([[1, 2], [0] * 25], None, ValueError, r"held_out\[1\] has 25 tokens.* at most 24 \(n_ctx\)"),
        ([[1, 96]], None, IndexError, r"96 at position 1 of held_out\[0\] .* 0\.\.95"),
        ([1, 2], None, TypeError, r"held_out\[0\] must be a sequence of token ids, got int"),
        (["ab"], None, TypeError, r"held_out\[0\] must be a sequence of token ids, got str"),
        ([[1, 2]], [[1.0]], ValueError, "held_out_weights must have one number for each token of held_out"),
        ([[1, 2]], [[1.0, -1.0]], ValueError, "held_out_weights must be finite and not negative"),
        ([[1, 2, 3]], [[1.0, -1.0, 3.0]], ValueError, "held_out_weights must be finite and not negative"),
        ([[1, 2]], [[1.0, np.nan]], ValueError, "held_out_weights must be finite and not negative"),
        ([[1, 2]], [[1.0, 0.0]], ValueError, "with a weight above 0 in held_out_weights"),
        ([[1, 2]], [["a", "b"]], TypeError, r"held_out_weights\[0\] must be real numbers"),
        (None, [[1.0, 1.0]], ValueError, "held_out_weights are of held_out sequences, which were not given"),
    ):
        every = {"evaluate_every": 0 if sequences is None else 1}
        with pytest.raises(kind, match=match) as caught:
            trained(e, held_out=sequences, held_out_weights=weights, **every)
        check_message(caught.value)
        if sequences is not None:
            with pytest.raises(kind):
                e.model.evaluate(sequences, weights)


def test_held_out_ids_of_any_integer_type_are_the_same_sequences(e):
    digests = {
        trained(e, held_out=rows)._held_out.digest
        for rows in ([[1, 2, 3]], np.array([[1, 2, 3]], np.uint16), np.array([[1, 2, 3]], np.int64))
    }
    assert len(digests) == 1


def test_numbers_of_tokens_are_at_most_the_vocabulary(e):
    for call in (e.read.logit_lens, e.read.top):
        with pytest.raises(ValueError, match=r"n must be in 1\.\.96, got 1000000000000"):
            call(10**12)


@pytest.mark.parametrize("value", [object(), np.zeros((2, 3)), lambda: None])
def test_a_wrong_value_is_shown_on_one_line(value):
    with pytest.raises(TypeError, match=f"got {type(value).__name__}$"):
        _check.flag(value, "logits")
