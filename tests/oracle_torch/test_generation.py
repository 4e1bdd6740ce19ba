"""Greedy texts beside those of transformers' `generate`, on the same random weights."""

import numpy as np
import pytest

import attnsparse as asp

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import make_reference_state as reference  # noqa: E402

SHAPES = {
    **reference.SHAPES,
    "longer": {"n_layer": 4, "n_head": 4, "n_embd": 64, "n_positions": 128, "vocab_size": 300},
}


def texts_of(model, prompt: list[int], n_new: int):
    """New tokens, and the logits of every step."""
    ids = torch.tensor([prompt])
    found = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=n_new, pad_token_id=0,
        eos_token_id=-1, return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    return found.sequences[0, len(prompt) :].tolist(), torch.stack(found.logits)[:, 0].numpy()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", [11, 12, 13])
def test_greedy_texts(shape, seed, tmp_path):
    """Token for token, in float64, where no two logits are close; and the logits themselves."""
    model = reference.random_gpt2(seed, SHAPES[shape])
    model.save_pretrained(tmp_path / "gpt2")
    ours, n_ctx = asp.load(tmp_path / "gpt2", dtype="float64"), model.config.n_positions
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(0, model.config.vocab_size, n).tolist() for n in (1, n_ctx // 2, n_ctx // 3)]
    n_new = n_ctx // 2
    found = ours.generate(prompts, n_new, logits=True)
    for prompt, text in zip(prompts, found):
        tokens, logits = texts_of(model.double(), prompt, n_new)
        assert np.abs(text.logits - logits).max() < 2e-7 * np.abs(logits).max()  # theirs become float32
        assert text.new_tokens.tolist() == tokens


def test_another_weight_is_noticed(tmp_path):
    model = reference.random_gpt2(11, SHAPES["longer"])
    model.save_pretrained(tmp_path / "gpt2")
    ours = asp.load(tmp_path / "gpt2", dtype="float64")
    name = "h.0.attn.c_proj.weight"
    ours.assign({name: -ours.parameter(name)})
    _, logits = texts_of(model.double(), [1, 2, 3], 10)
    assert np.abs(ours.generate([1, 2, 3], 10, logits=True).logits - logits).max() > 1e-2
