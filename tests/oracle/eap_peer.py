"""EAP-IG, the public implementation of edge attribution patching, asked about an oracle's model and task.

EAP-IG (the package `eap`) runs on TransformerLens before 4.0: later ones have no HookedTransformer. Import
this module only where both can be imported. Nothing is tokenized: prompts are padded on the right as EAP-IG's
own function does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from eap import attribute, attribute_node, evaluate, graph, utils
from oracle import Array
from torch_components import measured
from transformer_lens import HookedTransformer, HookedTransformerConfig

METHODS = {
    "eap": "EAP",
    "eap-ig-inputs": "EAP-IG-inputs",
    "eap-ig-activations": "EAP-IG-activations",
    "clean-corrupted": "clean-corrupted",
    "exact": "exact",
    "information-flow-routes": "information-flow-routes",
}


def _tokenize_plus(model: Any, prompts: Sequence[Array], max_length: int | None = None) -> tuple:
    lengths = torch.tensor([len(tokens) for tokens in prompts])
    tokens = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.long)
    for row, prompt in zip(tokens, prompts):
        row[: len(prompt)] = torch.as_tensor(np.array(prompt, np.int64))
    mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).long()
    return tokens, mask, lengths, tokens.shape[1]


for _module in (utils, attribute, attribute_node, evaluate):
    _module.tokenize_plus = _tokenize_plus


def model_of(config: Mapping, weights: Mapping[str, Array], dtype: str = "float64") -> HookedTransformer:
    """A dense oracle model in TransformerLens, with one residual stream for each input of each head."""
    kind = getattr(torch, dtype)
    cfg = HookedTransformerConfig(
        n_layers=config["n_layer"], d_model=config["d_model"], n_ctx=config["n_ctx"], d_head=config["d_head"],
        n_heads=config["n_head"], d_mlp=config["d_mlp"], d_vocab=config["n_vocab"],
        act_fn=config["activation"], normalization_type="LN", eps=config["ln_eps"],
        use_attn_scale=config["scale_attn"],
        scale_attn_by_inverse_layer_idx=config["scale_by_inverse_layer"], use_attn_result=True,
        use_split_qkv_input=True, use_hook_mlp_in=True, dtype=kind, device="cpu",
    )  # fmt: skip
    model = HookedTransformer(cfg)
    state = {name: torch.as_tensor(value).to(kind) for name, value in _state(config, weights).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith(("mask", "IGNORE")) for name in missing)
    return model.eval()


def _state(config: Mapping, weights: Mapping[str, Array]) -> dict[str, Array]:
    def bias(name: str, width: int) -> Array:
        return weights.get(f"{name}.bias", np.zeros(width))

    E, H, D, M, V = (config[name] for name in ("d_model", "n_head", "d_head", "d_mlp", "n_vocab"))
    unembed = weights["wte.weight" if config["tied"] else "lm_head.weight"]
    state = {
        "embed.W_E": weights["wte.weight"],
        "pos_embed.W_pos": weights["wpe.weight"],
        "ln_final.w": weights["ln_f.weight"],
        "ln_final.b": bias("ln_f", E),
        "unembed.W_U": unembed.T,
        "unembed.b_U": bias("lm_head", V),
    }
    for layer in range(config["n_layer"]):
        old, new = f"h.{layer}", f"blocks.{layer}"
        block = np.split(weights[f"{old}.attn.c_attn.weight"], 3, axis=1)
        for letter, weight, b in zip("QKV", block, np.split(bias(f"{old}.attn.c_attn", 3 * H * D), 3)):
            state[f"{new}.attn.W_{letter}"] = weight.reshape(E, H, D).transpose(1, 0, 2)
            state[f"{new}.attn.b_{letter}"] = b.reshape(H, D)
        state |= {
            f"{new}.attn.W_O": weights[f"{old}.attn.c_proj.weight"].reshape(H, D, E),
            f"{new}.attn.b_O": bias(f"{old}.attn.c_proj", E),
            f"{new}.mlp.W_in": weights[f"{old}.mlp.c_fc.weight"],
            f"{new}.mlp.b_in": bias(f"{old}.mlp.c_fc", M),
            f"{new}.mlp.W_out": weights[f"{old}.mlp.c_proj.weight"],
            f"{new}.mlp.b_out": bias(f"{old}.mlp.c_proj", E),
        }
        for norm, name in (("ln1", "ln_1"), ("ln2", "ln_2")):
            state[f"{new}.{norm}.w"] = weights[f"{old}.{name}.weight"]
            state[f"{new}.{norm}.b"] = bias(f"{old}.{name}", E)
    return state


class Peer:
    """EAP-IG about one model and task, `batch` prompts at a time."""

    def __init__(self, config, weights, task, *, dtype: str = "float64", batch: int = 1, metric=None):
        self.model, self.task, self.kind = model_of(config, weights, dtype), task, getattr(torch, dtype)
        self.metric = metric or task.metric
        blocks = [range(len(task.clean))[i : i + batch] for i in range(0, len(task.clean), batch)]
        self.loader = [([task.clean[i] for i in b], [task.corrupted[i] for i in b], b) for b in blocks]

    def graph(self, **options: bool) -> graph.Graph:
        """Without any scores."""
        made = graph.Graph.from_model(self.model, **options)
        made.scores = made.scores.to(self.kind)
        for name in ("nodes_scores", "neurons_scores"):
            if getattr(made, name) is not None:
                setattr(made, name, getattr(made, name).to(self.kind))
        return made

    def values(self, logits, clean_logits, lengths, prompts) -> torch.Tensor:
        """The metric of each prompt of a batch."""
        rows = torch.arange(len(logits))
        last = logits[rows, lengths - 1]
        clean = last if clean_logits is None else clean_logits[rows, lengths - 1]
        return torch.stack(
            [
                measured(self.metric, one, self.task.answers[i], self.task.wrong[i], whole)
                for one, whole, i in zip(last, clean, prompts)
            ]
        )

    def loss(self, *arguments) -> torch.Tensor:
        """Sum over a batch, so that its size does not matter: EAP-IG divides by the number of prompts."""
        return (1 if self.metric == "kl" else -1) * self.values(*arguments).sum()

    def mean_loss(self, *arguments) -> torch.Tensor:
        """Mean over a batch, as the examples of EAP-IG have it."""
        return self.loss(*arguments) / len(arguments[-1])

    def losses(self, *arguments) -> torch.Tensor:
        """Of each prompt."""
        return (1 if self.metric == "kl" else -1) * self.values(*arguments)

    def edge_scores(self, method: str, *, steps: int = 5, ablation: str = "patching", mean: bool = False):
        """float64 [senders, receivers] and the graph that has them."""
        made, loss = self.graph(), self.mean_loss if mean else self.loss
        options: dict[str, Any] = {} if method == "information-flow-routes" else {"intervention": ablation}
        attribute.attribute(
            self.model, made, self.loader, self.losses if method == "exact" else loss, METHODS[method],
            ig_steps=steps, intervention_dataloader=self.loader, quiet=True, **options,
        )  # fmt: skip
        return made.scores.double().numpy(), made

    def node_scores(self, method: str, *, steps: int = 5, ablation: str = "patching", neuron: bool = False):
        """float64 [senders], or [senders, d_model]."""
        made = self.graph(neuron_level=neuron, node_scores=not neuron)
        attribute_node.attribute_node(
            self.model, made, self.loader, self.loss, METHODS[method], intervention=ablation, ig_steps=steps,
            intervention_dataloader=self.loader, quiet=True, neuron=neuron,
        )  # fmt: skip
        return (made.neurons_scores if neuron else made.nodes_scores).double().numpy()

    def evaluate(self, mask: Array, ablation: str = "patching") -> Array:
        """The metric of each prompt where the circuit `mask` [senders, receivers] is kept, pruned first."""
        made = self.graph()
        made.in_graph[:] = torch.as_tensor(mask)
        values = evaluate.evaluate_graph(
            self.model, made, self.loader, self.values, quiet=True, intervention=ablation,
            intervention_dataloader=self.loader, skip_clean=False,
        )  # fmt: skip
        return values.double().numpy()

    def whole(self, corrupted: bool = False) -> Array:
        """The metric of each prompt of the plain model."""
        found = evaluate.evaluate_baseline(
            self.model, self.loader, self.values, run_corrupted=corrupted, quiet=True
        )
        return found.double().numpy()
