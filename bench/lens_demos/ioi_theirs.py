"""The steps of the exploratory analysis demo in TransformerLens."""
# ruff: noqa: F841, RET504, RUF059, RUF100

import contextlib
import io
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from transformer_lens.utils import get_act_name
from transformer_lens.utils import test_prompt as print_prompt


def test_prompt(s: SimpleNamespace) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        print_prompt(s.prompt, " Tom", s.model, prepend_bos=False)
    return None


def prompts(s: SimpleNamespace) -> Any:
    s.prompts, s.answers, answer_tokens = [], [], []
    for i in range(len(s.formats)):
        for j in range(2):
            s.answers.append((s.names[i][j], s.names[i][1 - j]))
            right = s.model.to_single_token(s.answers[-1][0])
            wrong = s.model.to_single_token(s.answers[-1][1])
            answer_tokens.append((right, wrong))
            s.prompts.append(s.formats[i].format(s.answers[-1][1]))
    s.answer_tokens = torch.tensor(answer_tokens)
    return s.answer_tokens


def difference(s: SimpleNamespace) -> Any:
    s.tokens = s.model.to_tokens(s.prompts)
    s.logits, s.cache = s.model.run_with_cache(s.tokens)

    def logit_difference(logits, answer_tokens, per_prompt=False):
        answer_logits = logits[:, -1, :].gather(dim=-1, index=answer_tokens)
        differences = answer_logits[:, 0] - answer_logits[:, 1]
        return differences if per_prompt else differences.mean()

    s.logit_difference = logit_difference
    per_prompt = logit_difference(s.logits, s.answer_tokens, per_prompt=True)
    s.average = logit_difference(s.logits, s.answer_tokens)
    return per_prompt, s.average


def direction(s: SimpleNamespace) -> Any:
    directions = s.model.tokens_to_residual_directions(s.answer_tokens)
    s.directions = directions[:, 0] - directions[:, 1]
    final = s.cache["resid_post", -1][:, -1, :]
    scaled = s.cache.apply_ln_to_stack(final, layer=-1, pos_slice=-1)
    average = torch.einsum("be,be->", scaled, s.directions) / len(s.prompts)
    return average


def logit_lens(s: SimpleNamespace) -> Any:
    def stack_to_difference(stack, cache):
        scaled = cache.apply_ln_to_stack(stack, layer=-1, pos_slice=-1)
        return torch.einsum("...be,be->...", scaled, s.directions) / len(s.prompts)

    s.stack_to_difference = stack_to_difference
    stack, labels = s.cache.accumulated_resid(layer=-1, incl_mid=True, pos_slice=-1, return_labels=True)
    lens = stack_to_difference(stack, s.cache)
    return lens


def layers(s: SimpleNamespace) -> Any:
    stack, labels = s.cache.decompose_resid(layer=-1, pos_slice=-1, return_labels=True)
    per_layer = s.stack_to_difference(stack, s.cache)
    return per_layer


def heads(s: SimpleNamespace) -> Any:
    stack, labels = s.cache.stack_head_results(layer=-1, pos_slice=-1, return_labels=True)
    s.per_head = s.stack_to_difference(stack, s.cache)
    s.per_head = s.per_head.reshape(s.model.cfg.n_layers, s.model.cfg.n_heads)
    return s.per_head


def look(s: SimpleNamespace) -> Any:
    from circuitsvis.attention import attention_heads

    pages = []
    for top in (s.per_head.flatten().topk(3).indices, (-s.per_head.flatten()).topk(3).indices):
        patterns, labels = [], []
        for head in top:
            layer, index = divmod(head.item(), s.model.cfg.n_heads)
            patterns.append(s.cache["attn", layer][0, index])
            labels.append(f"L{layer}H{index}")
        tokens = s.model.to_str_tokens(s.tokens[0])
        pages.append(str(attention_heads(torch.stack(patterns), tokens, attention_head_names=labels)))
    return None


def corrupted(s: SimpleNamespace) -> Any:
    corrupted_prompts = []
    for i in range(0, len(s.prompts), 2):
        corrupted_prompts += [s.prompts[i + 1], s.prompts[i]]
    s.corrupted_tokens = s.model.to_tokens(corrupted_prompts)
    corrupted_logits, corrupted_cache = s.model.run_with_cache(s.corrupted_tokens, return_type="logits")
    s.corrupted_average = s.logit_difference(corrupted_logits, s.answer_tokens)
    return s.corrupted_average


def resid(s: SimpleNamespace) -> Any:
    def patch_residual_component(component, hook, position):
        component[:, position, :] = s.cache[hook.name][:, position, :]
        return component

    def normalised(logits):
        difference = s.logit_difference(logits, s.answer_tokens)
        return (difference - s.corrupted_average) / (s.average - s.corrupted_average)

    s.patch_residual_component, s.normalised = patch_residual_component, normalised
    patched = torch.zeros(s.model.cfg.n_layers, s.tokens.shape[1])
    for layer in range(s.model.cfg.n_layers):
        for position in range(s.tokens.shape[1]):
            hook = partial(patch_residual_component, position=position)
            logits = s.model.run_with_hooks(
                s.corrupted_tokens, fwd_hooks=[(get_act_name("resid_pre", layer), hook)]
            )
            patched[layer, position] = normalised(logits)
    return patched


def attn_out(s: SimpleNamespace) -> Any:
    patched = torch.zeros(s.model.cfg.n_layers, s.tokens.shape[1])
    for layer in range(s.model.cfg.n_layers):
        for position in range(s.tokens.shape[1]):
            hook = partial(s.patch_residual_component, position=position)
            logits = s.model.run_with_hooks(
                s.corrupted_tokens, fwd_hooks=[(get_act_name("attn_out", layer), hook)]
            )
            patched[layer, position] = s.normalised(logits)
    return patched


def mlp_out(s: SimpleNamespace) -> Any:
    patched = torch.zeros(s.model.cfg.n_layers, s.tokens.shape[1])
    for layer in range(s.model.cfg.n_layers):
        for position in range(s.tokens.shape[1]):
            hook = partial(s.patch_residual_component, position=position)
            logits = s.model.run_with_hooks(
                s.corrupted_tokens, fwd_hooks=[(get_act_name("mlp_out", layer), hook)]
            )
            patched[layer, position] = s.normalised(logits)
    return patched


def z(s: SimpleNamespace) -> Any:
    def patch_head_vector(vector, hook, head):
        vector[:, :, head, :] = s.cache[hook.name][:, :, head, :]
        return vector

    s.patch_head_vector = patch_head_vector
    patched = torch.zeros(s.model.cfg.n_layers, s.model.cfg.n_heads)
    for layer in range(s.model.cfg.n_layers):
        for head in range(s.model.cfg.n_heads):
            hook = partial(patch_head_vector, head=head)
            logits = s.model.run_with_hooks(
                s.corrupted_tokens, fwd_hooks=[(get_act_name("z", layer, "attn"), hook)]
            )
            patched[layer, head] = s.normalised(logits)
    return patched


def v(s: SimpleNamespace) -> Any:
    patched = torch.zeros(s.model.cfg.n_layers, s.model.cfg.n_heads)
    for layer in range(s.model.cfg.n_layers):
        for head in range(s.model.cfg.n_heads):
            hook = partial(s.patch_head_vector, head=head)
            logits = s.model.run_with_hooks(
                s.corrupted_tokens, fwd_hooks=[(get_act_name("v", layer, "attn"), hook)]
            )
            patched[layer, head] = s.normalised(logits)
    return patched


def pattern(s: SimpleNamespace) -> Any:
    def patch_head_pattern(pattern, hook, head):
        pattern[:, head, :, :] = s.cache[hook.name][:, head, :, :]
        return pattern

    patched = torch.zeros(s.model.cfg.n_layers, s.model.cfg.n_heads)
    for layer in range(s.model.cfg.n_layers):
        for head in range(s.model.cfg.n_heads):
            hook = partial(patch_head_pattern, head=head)
            logits = s.model.run_with_hooks(
                s.corrupted_tokens, fwd_hooks=[(get_act_name("attn", layer, "attn"), hook)]
            )
            patched[layer, head] = s.normalised(logits)
    return patched


def kinds(s: SimpleNamespace) -> Any:
    shape = s.model.cfg.n_layers, s.model.cfg.n_heads
    previous, duplicate, induction = torch.zeros(shape), torch.zeros(shape), torch.zeros(shape)

    def previous_token_hook(pattern, hook):
        diagonal = pattern.diagonal(offset=1, dim1=-1, dim2=-2)
        previous[hook.layer()] = diagonal.mean((0, -1))

    def duplicate_token_hook(pattern, hook):
        diagonal = pattern.diagonal(offset=s.half, dim1=-1, dim2=-2)
        duplicate[hook.layer()] = diagonal.mean((0, -1))

    def induction_hook(pattern, hook):
        diagonal = pattern.diagonal(offset=s.half - 1, dim1=-1, dim2=-2)
        induction[hook.layer()] = diagonal.mean((0, -1))

    is_pattern = lambda name: name.endswith("hook_pattern")  # noqa: E731
    s.model.run_with_hooks(
        s.repeated,
        return_type="loss",
        fwd_hooks=[
            (is_pattern, previous_token_hook),
            (is_pattern, duplicate_token_hook),
            (is_pattern, induction_hook),
        ],
    )
    return previous, duplicate, induction


def name_mover(s: SimpleNamespace) -> Any:
    layer, head = divmod(s.per_head.flatten().argmax().item(), s.model.cfg.n_heads)

    def ablate_top_head_hook(z, hook):
        z[:, -1, head, :] = 0
        return z

    s.model.blocks[layer].attn.hook_z.add_hook(ablate_top_head_hook)
    logits, s.ablated = s.model.run_with_cache(s.tokens)
    after = s.logit_difference(logits, s.answer_tokens)
    s.model.reset_hooks()
    expected = s.average - s.per_head[layer, head]
    return after, expected


def backup(s: SimpleNamespace) -> Any:
    stack, labels = s.ablated.stack_head_results(layer=-1, pos_slice=-1, return_labels=True)
    per_head = s.stack_to_difference(stack, s.ablated)
    per_head = per_head.reshape(s.model.cfg.n_layers, s.model.cfg.n_heads)
    return per_head


def scale(s: SimpleNamespace) -> Any:
    ratio = s.cache["ln_final.hook_scale"][:, -1] / s.ablated["ln_final.hook_scale"][:, -1]
    average = ratio.mean()
    return average
