"""Model.run_with_hooks beside TransformerLens: the same functions at the same names give the same logits.

Needs transformer-lens, in which only HookedTransformer is used.
"""

import warnings

import engine
import numpy as np
import oracle
import pytest
import tiny_checkpoints

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")  # what others warn of
SHAPE = {"n_layer": 2, "n_head": 3, "d_model": 12, "d_head": 4, "d_mlp": 20, "n_ctx": 12, "n_vocab": 30}
T = 6


@pytest.fixture(scope="module")
def pair():
    """(our model, the same one in TransformerLens, tokens [2, T]), both in float64."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lens = pytest.importorskip("transformer_lens")
    config = oracle.full_config(**SHAPE)
    weights = engine.rounded_model(0, config)
    ours = engine.build(config, weights, "float64")
    theirs = lens.HookedTransformer(
        lens.HookedTransformerConfig(
            n_layers=2, n_heads=3, d_model=12, d_head=4, d_mlp=20, n_ctx=12, d_vocab=30, act_fn="gelu_new",
            normalization_type="LN", dtype=torch.float64, device="cpu", use_attn_result=True,
        )
    )  # fmt: skip
    state = tiny_checkpoints.transformer_lens(weights, ours.config)
    state["unembed.b_U"] = np.zeros(30)
    tensors = {name: torch.tensor(np.ascontiguousarray(array)) for name, array in state.items()}
    theirs.load_state_dict(tensors, strict=False)
    theirs.cfg.use_attn_result = True
    return ours, theirs, np.random.default_rng(0).integers(0, 30, (2, T))


def both(pair, hooks):
    """Logits of the two with functions of NumPy arrays at hooks."""
    ours, theirs, tokens = pair
    found = ours.run_with_hooks(tokens, fwd_hooks=hooks).logits

    def of_tensors(function):
        return lambda value, hook: torch.tensor(np.asarray(function(value.detach().numpy().copy(), hook)))

    given = [(name, of_tensors(function)) for name, function in hooks]
    expected = theirs.run_with_hooks(torch.tensor(tokens), fwd_hooks=given).detach().numpy()
    return found, expected, ours.run(tokens).logits


def test_the_models_are_the_same(pair):
    found, expected, _ = both(pair, [("hook_embed", lambda value, hook: value)])
    np.testing.assert_allclose(found, expected, atol=1e-9)


ENDS = (
    "hook_embed", "hook_pos_embed", "hook_resid_pre", "attn.hook_q", "attn.hook_k", "attn.hook_v",
    "attn.hook_attn_scores", "attn.hook_pattern", "attn.hook_z", "attn.hook_result", "hook_attn_out",
    "hook_resid_mid", "ln1.hook_scale", "ln1.hook_normalized", "ln2.hook_scale", "ln2.hook_normalized",
    "mlp.hook_pre", "mlp.hook_post", "hook_mlp_out", "hook_resid_post", "ln_final.hook_scale",
    "ln_final.hook_normalized",
)  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_each_hook(pair, end):
    outside = end in ("hook_embed", "hook_pos_embed") or end.startswith("ln_final")
    for name in [end] if outside else [f"blocks.{layer}.{end}" for layer in range(2)]:

        def change(value, hook):
            scale = np.linspace(0.5, 1.5, value.shape[-1])
            if end == "attn.hook_attn_scores":
                return np.where(np.tri(value.shape[-1], dtype=bool), value * scale, value)
            return value * (1.3 if value.shape[-1] == 1 else scale)

        found, expected, plain = both(pair, [(name, change)])
        np.testing.assert_allclose(found, expected, atol=1e-9)
        assert np.abs(found - plain).max() > 1e-4


def test_several_at_once(pair):
    hooks = [(f"blocks.{i}.{end}", lambda value, hook: 0.9 * value) for i in range(2) for end in ENDS[3:6]]
    hooks.append(("blocks.0.attn.hook_result", lambda value, hook: value + 0.1))
    hooks.append(("blocks.1.hook_mlp_out", lambda value, hook: value * value))
    found, expected, _ = both(pair, hooks)
    np.testing.assert_allclose(found, expected, atol=1e-9)
