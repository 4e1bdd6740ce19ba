"""The steps of the main demo in TransformerLens."""
# ruff: noqa: F841, RET504, RUF059, RUF100

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from transformer_lens import FactoredMatrix
from transformer_lens.utils import get_act_name


def loss(s: SimpleNamespace) -> Any:
    loss = s.model(s.text, return_type="loss")
    return loss


def cache(s: SimpleNamespace) -> Any:
    s.tokens = s.model.to_tokens(s.text)
    logits, s.cache = s.model.run_with_cache(s.tokens, remove_batch_dim=True)
    s.str_tokens = s.model.to_str_tokens(s.text)
    s.pattern = s.cache["pattern", 0, "attn"]
    return logits[0], s.pattern


def one_layer(s: SimpleNamespace) -> Any:
    name = get_act_name("pattern", 0)
    _, cache = s.model.run_with_cache(s.tokens, remove_batch_dim=True, stop_at_layer=1, names_filter=[name])
    pattern = cache[name]
    return pattern


def look(s: SimpleNamespace) -> Any:
    import circuitsvis as cv

    page = str(cv.attention.attention_patterns(tokens=s.str_tokens, attention=s.pattern))
    return None


def ablation(s: SimpleNamespace) -> Any:
    def head_ablation_hook(value, hook):
        value[:, :, 1, :] = 0.0
        return value

    original = s.model(s.tokens, return_type="loss")
    ablated = s.model.run_with_hooks(
        s.tokens, return_type="loss", fwd_hooks=[(get_act_name("v", 0), head_ablation_hook)]
    )
    return original, ablated


def patching(s: SimpleNamespace) -> Any:
    clean_tokens = s.model.to_tokens(s.clean)
    corrupted_tokens = s.model.to_tokens(s.corrupted)

    def logits_to_logit_diff(logits, correct=" Tom", incorrect=" Emma"):
        correct_index = s.model.to_single_token(correct)
        incorrect_index = s.model.to_single_token(incorrect)
        return logits[0, -1, correct_index] - logits[0, -1, incorrect_index]

    clean_logits, clean_cache = s.model.run_with_cache(clean_tokens)
    clean_difference = logits_to_logit_diff(clean_logits)
    corrupted_difference = logits_to_logit_diff(s.model(corrupted_tokens))

    def patching_hook(resid_pre, hook, position):
        resid_pre[:, position, :] = clean_cache[hook.name][:, position, :]
        return resid_pre

    n_positions = len(clean_tokens[0])
    result = torch.zeros((s.model.cfg.n_layers, n_positions))
    for layer in range(s.model.cfg.n_layers):
        for position in range(n_positions):
            hook = partial(patching_hook, position=position)
            logits = s.model.run_with_hooks(
                corrupted_tokens, fwd_hooks=[(get_act_name("resid_pre", layer), hook)]
            )
            result[layer, position] = (logits_to_logit_diff(logits) - corrupted_difference) / (
                clean_difference - corrupted_difference
            )
    return result


def repeated(s: SimpleNamespace) -> Any:
    logits = s.model(s.repeated)
    losses = s.model.loss_fn(logits, s.repeated, per_token=True)
    by_position = losses.mean(0)
    return by_position


def induction(s: SimpleNamespace) -> Any:
    scores = torch.zeros((s.model.cfg.n_layers, s.model.cfg.n_heads))

    def induction_score_hook(pattern, hook):
        stripe = pattern.diagonal(dim1=-2, dim2=-1, offset=1 - s.half)
        scores[hook.layer(), :] = stripe.mean((0, -1))

    s.model.run_with_hooks(
        s.repeated,
        return_type=None,
        fwd_hooks=[(lambda name: name.endswith("pattern"), induction_score_hook)],
    )
    return scores


def parameters(s: SimpleNamespace) -> Any:
    block, others = {}, {}
    for name, parameter in s.model.named_parameters():
        (block if name.startswith("blocks.0.") else others)[name] = parameter.shape
    return None


def hooks(s: SimpleNamespace) -> Any:
    shapes = {}

    def shape_hook(activation, hook):
        shapes[hook.name] = activation.shape

    s.model.run_with_hooks(
        s.text,
        return_type=None,
        fwd_hooks=[(lambda name: not name.startswith("blocks") or name.startswith("blocks.0."), shape_hook)],
    )
    return shapes


def unembedding_bias(s: SimpleNamespace) -> Any:
    bias = s.folded.unembed.b_U
    values, order = bias.sort(descending=True)
    most = [(values[i].item(), s.folded.to_string(order[i])) for i in range(20)]
    least = [(values[-i].item(), s.folded.to_string(order[-i])) for i in range(20, 0, -1)]
    ratio = torch.exp(bias[s.folded.to_single_token(" Tom")] - bias[s.folded.to_single_token(" Emma")])
    return ratio, most[0][0] - least[-1][0]


def tokens(s: SimpleNamespace) -> Any:
    str_tokens = s.model.to_str_tokens(s.text)
    tokens = s.model.to_tokens(s.text)
    probabilities = s.model(s.text).softmax(dim=-1)
    probability = probabilities[0, -1, s.model.to_single_token(" cat")]
    text = s.model.to_string(tokens.squeeze())
    first = s.model.get_token_position(" cat", s.cats, mode="first")
    last = s.model.get_token_position(" cat", s.cats, mode="last")
    return tokens[0], probability, first, last, len(str_tokens), len(text)


def factored(s: SimpleNamespace) -> Any:
    A, B, C = (s.repeated[:5, :n].double() / 1000 for n in (2, 5, 30))
    AB = FactoredMatrix(A, B[:2])
    norm, eigenvalues, singular = AB.norm(), AB.eigenvalues, AB.S
    sizes = AB.ldim, AB.rdim, AB.mdim
    ABC = AB @ C
    product = AB.AB
    return norm, sorted(eigenvalues.abs()), singular, sizes, ABC.norm(), product


def copying(s: SimpleNamespace) -> Any:
    eigenvalues = s.model.OV.eigenvalues
    score = eigenvalues.sum(dim=-1).real / eigenvalues.abs().sum(dim=-1)
    return score


def full_copying(s: SimpleNamespace) -> Any:
    full = s.model.embed.W_E @ s.model.OV @ s.model.unembed.W_U
    eigenvalues = full.eigenvalues
    score = eigenvalues.sum(dim=-1).real / eigenvalues.abs().sum(dim=-1)
    return score


def generation(s: SimpleNamespace) -> Any:
    tokens = s.model.generate(
        s.clean, max_new_tokens=50, do_sample=False, stop_at_eos=False, verbose=False, return_type="tokens"
    )
    return tokens[0]
