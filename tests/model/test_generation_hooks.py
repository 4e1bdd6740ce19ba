"""Model.generate with functions at hooks and with what is frozen, against runs of the whole text."""

import numpy as np
import pytest
from circuit_cases import CONFIGS, TOLERANCE
from generation_cases import RAGGED, larger_case, same_logits

import attnsparse as asp
from attnsparse.model.hooks import PLACES
from attnsparse.model.transformer_lens import hook_names

each_config = pytest.mark.parametrize("name", CONFIGS)
NEW = 5


def by_position(amount):
    """A function that moves a row by a number of its own position, in runs and while generating."""

    def move(value, hook):
        steps = np.cos(np.arange(hook.positions.start, hook.positions.stop))
        steps = steps.reshape(1, -1, *[1] * (value.ndim - 2))
        return value + amount * steps * np.linspace(-1, 2, value.shape[-1])

    return move


def scaled(value, hook):
    return value * 1.25


def flipped(value, hook):
    """The gate of each query's own key the other way round."""
    value = value.copy()
    for i, position in enumerate(hook.positions):
        value[:, :, i, position] ^= True
    return value


def thinned(value, hook):
    """Rows of a pattern halved, and nothing left of key 0."""
    value = value * 0.5
    value[..., 0] = 0
    return value


def moved_scores(value, hook):
    return np.where(np.isfinite(value), value * 0.5, value)


FUNCTIONS = {
    "attn.hook_attn_scores": moved_scores, "attn.hook_sparse_mask": flipped, "attn.hook_pattern": thinned,
}  # fmt: skip
FUNCTIONS |= {place: scaled if place.endswith("scale") else by_position(0.3) for place in PLACES
              if place not in FUNCTIONS}  # fmt: skip


def whole(model, text, prompt, hooks, **options):
    """Logits that the new tokens of a text were chosen by, from a run of all of it."""
    return model.run_with_hooks(text.tokens, hooks, **options).logits[len(prompt) - 1 : -1]


@pytest.mark.parametrize(("name", "dtype"), [*((name, "float64") for name in CONFIGS), ("gated", "float32")])
@pytest.mark.parametrize("place", PLACES)
def test_functions_see_and_change_what_a_run_would(name, dtype, place):
    model = larger_case(name).model(dtype)
    inside = place.startswith("ln1") or place.split("_")[-1] in ("q", "k", "v", "scores", "pattern")
    no_effect = name == "all closed" and inside
    hooks = [(hook, FUNCTIONS[place]) for hook in hook_names(model.config.n_layer) if hook.endswith(place)]
    texts = model.generate(RAGGED, NEW, logits=True, hooks=hooks)
    plain = model.generate(RAGGED, NEW, logits=True)
    for prompt, text in zip(RAGGED, texts):
        expected = whole(model, text, prompt, hooks)
        assert np.abs(text.logits - expected).max() <= TOLERANCE[dtype] * np.abs(expected).max()
    changed = [not np.array_equal(a.logits, b.logits) for a, b in zip(texts, plain)]
    assert any(changed) is not no_effect


@each_config
def test_functions_that_look_change_no_bit(name):
    """Every hook, samples and a ragged batch: what they see is what a run records."""
    model = larger_case(name).model("float32")
    seen: dict = {}

    def look(value, hook):
        for i, text in enumerate(hook.prompts):
            seen.setdefault((hook.name, text), []).append((hook.positions, value[i].copy()))

    options = {"temperature": 1.3, "seed": 5, "n_samples": 2, "logits": True}
    texts = model.generate(RAGGED, NEW, hooks=[(lambda name: True, look)], **options)
    plain = model.generate(RAGGED, NEW, **options)
    for text, other in zip(texts, plain):
        assert text.logits.tobytes() == other.logits.tobytes()
    for i, text in enumerate(texts):
        whole_text = text.tokens[:-1]
        n = len(RAGGED[i // 2])
        _, cache = model.run_with_cache(whole_text, return_type=None)
        for hook in hook_names(model.config.n_layer):
            parts = seen.get((hook, i - i % 2), [])[:1] + [
                part for part in seen[hook, i] if part[0].start >= n
            ]
            assert [part[0] for part in parts] == [
                range(n),
                *(range(p, p + 1) for p in range(n, n + NEW - 1)),
            ]
            for positions, value in parts:
                expected = cache[hook][0]
                if value.ndim == 3 and value.shape[0] == model.config.n_head and hook.split("_")[-1] in (
                    "scores", "mask", "pattern"
                ):  # fmt: skip
                    expected = expected[:, positions.start : positions.stop, : positions.stop]
                else:
                    expected = expected[positions.start : positions.stop]
                assert value.shape == expected.shape
                assert np.allclose(value, expected, rtol=1e-4, atol=1e-5)


def test_texts_at_the_same_positions_come_in_one_call():
    model = larger_case("gated").model()
    calls = []
    hooks = [(("z", 0), lambda value, hook: calls.append((hook.prompts, hook.positions, value.shape[:2])))]
    model.generate([[1, 2, 3], [4, 5, 6]], 3, hooks=hooks)
    assert calls == [
        (range(2), range(3), (2, 3)),
        (range(2), range(3, 4), (2, 1)),
        (range(2), range(4, 5), (2, 1)),
    ]
    calls.clear()
    model.generate([[1, 2, 3], [4, 5]], 2, hooks=dict(hooks))
    assert calls == [
        (range(1), range(3), (1, 3)), (range(1, 2), range(2), (1, 2)),
        (range(1), range(3, 4), (1, 1)), (range(1, 2), range(2, 3), (1, 1)),
    ]  # fmt: skip


@each_config
def test_functions_beside_ablations_and_patches(name):
    model = larger_case(name).model("float64")
    options = {"ablate": ["L0H0"], "patch": {asp.Resid(0): asp.Add(np.linspace(0, 1, model.config.d_model))}}
    hooks = [(("pattern", 0), thinned), (("mlp_out", 0), by_position(0.5))]
    for prompt, text in zip(RAGGED, model.generate(RAGGED, NEW, logits=True, hooks=hooks, **options)):
        expected = whole(model, text, prompt, hooks, **options)
        assert np.abs(text.logits - expected).max() < 1e-12 * np.abs(expected).max()


def test_what_a_function_raises_ends_the_generation():
    model = larger_case("gated").model()

    def fail(value, hook):
        if hook.positions.start == 4:
            raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        model.generate([[1, 2, 3]], 5, hooks=[(("z", 0), fail)])
    with pytest.raises(ValueError, match="must have shape"):
        model.generate([1, 2, 3], 5, hooks=[(("z", 0), lambda value, hook: value[0])])
    with pytest.raises(ValueError, match="unknown hook"):
        model.generate([1, 2, 3], 5, hooks=[("hook_x", fail)])


# ------------------------------------------------------------------------------------------ freeze


@each_config
@pytest.mark.parametrize("names", ["pattern", "gate", "ln_scale", ("pattern", "ln_scale")], ids=str)
@pytest.mark.parametrize("n_samples", [1, 2])
def test_prompts_are_frozen_and_new_tokens_are_not(name, names, n_samples):
    """The prompt's positions as in a run of the prompt with `freeze=`; the rest goes by keys and values."""
    model = larger_case(name).model("float64")
    move = [(("resid_pre", 0), by_position(2.0))]
    drawn = {"temperature": 1.0, "n_samples": 2, "seed": 1} if n_samples == 2 else {}
    texts = model.generate(RAGGED, NEW, logits=True, hooks=move, freeze=names, **drawn)
    clean = model.run(RAGGED, "all")
    given = model.generate(
        RAGGED, NEW, logits=True, hooks=move,
        freeze=dict.fromkeys([names] if isinstance(names, str) else names, clean), **drawn,
    )  # fmt: skip
    ends = {"pattern": "hook_pattern", "gate": "hook_sparse_mask", "ln_scale": "hook_scale"}
    for i, text in enumerate(texts):
        prompt, one = RAGGED[i // n_samples], clean[i // n_samples]
        n = len(prompt)
        first = model.run_with_hooks(prompt, move, freeze=names).logits[-1]
        assert np.abs(text.logits[0] - first).max() < 1e-12 * np.abs(first).max()
        assert text.logits.tobytes() == given[i].logits.tobytes()

        def hold(value, hook, n=n, one=one):
            """What the generation does, in a run of the whole text."""
            layer = -1 if hook.name.startswith("ln_final") else hook.layer()
            end = hook.name.split("hook_")[-1]
            if end == "scale":
                where = hook.name.split(".")[-2]
                held = one.ln_final_scale if layer < 0 else getattr(one, f"{where}_scale")[layer]
                value[0, :n, 0] = held
            else:
                held = one.pattern if end == "pattern" else one.gate
                value[0, :, :n, :n] = held[layer]
            return value

        wanted = tuple(ends[kind] for kind in ([names] if isinstance(names, str) else names))
        hooks = [*move, (lambda name, wanted=wanted: name.endswith(wanted), hold)]
        expected = whole(model, text, prompt, hooks)
        assert np.abs(text.logits - expected).max() < 1e-11 * np.abs(expected).max()
    plain = model.generate(RAGGED, NEW, logits=True, hooks=move, **drawn)
    if names != "gate" and (name, names) != ("all closed", "pattern"):
        assert any(not np.array_equal(a.logits, b.logits) for a, b in zip(texts, plain))


@each_config
def test_freezing_what_is_there_changes_no_bit(name):
    model = larger_case(name).model("float32")
    frozen = model.generate(RAGGED, NEW, logits=True, freeze=["pattern", "gate", "ln_scale"])
    for text, plain in zip(frozen, model.generate(RAGGED, NEW, logits=True)):
        assert same_logits(text.logits, plain.logits)


def test_runs_that_do_not_fit():
    model = larger_case("gated").model()
    with pytest.raises(ValueError, match="the run has 2 prompts, expected 3"):
        model.generate(RAGGED, NEW, freeze={"pattern": model.run(RAGGED[:2])})
    with pytest.raises(ValueError, match="stopped before layer 1"):
        model.generate(RAGGED, NEW, freeze={"pattern": model.run(RAGGED, stop_at_layer=1)})
