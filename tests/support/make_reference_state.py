"""Writes tests/fixtures/reference_state_*.npz with torch and transformers; run by hand, rarely.

    python tests/support/make_reference_state.py

Each file holds one random-weight GPT-2 and what PyTorch makes of it, so that a machine without torch can
compare the C core with it (test_gpt2.py). Contents:

    config            JSON text, our own key names
    weight:<name>     float32, Hugging Face names without "transformer."
    tokens            int32 (B, T); the first sequence is the one of logits, attentions and gradients
    logits_float32, logits_float64          (T, V)
    loss_float32, loss_float64              mean next-token cross-entropy
    attentions        float32 (L, H, T, T), computed in float64
    gradient:<name>   float32, of that loss, computed in float64
    training_float32, training_float64      losses before each of ten AdamW steps on the whole batch
    training_options  JSON text: lr, beta1, beta2, eps, weight_decay (only on arrays of two dimensions)
"""

import json

import numpy as np
import torch
import transformers
from places import FIXTURES

FOLDER = FIXTURES
BATCH = 3
STEPS = 10
TRAINING = {"lr": 2e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}

SHAPES = {
    "gelu_new": {"n_layer": 2, "n_head": 4, "n_embd": 24, "n_positions": 20, "vocab_size": 67},
    "untied": {
        "n_layer": 3, "n_head": 1, "n_embd": 15, "n_inner": 37, "n_positions": 33, "vocab_size": 90,
        "activation_function": "gelu", "tie_word_embeddings": False, "scale_attn_by_inverse_layer_idx": True,
    },
    "relu": {
        "n_layer": 1, "n_head": 5, "n_embd": 40, "n_inner": 56, "n_positions": 48, "vocab_size": 53,
        "activation_function": "relu", "layer_norm_epsilon": 1e-3,
    },
}  # fmt: skip


def random_gpt2(seed: int, shape: dict) -> transformers.GPT2LMHeadModel:
    """A float32 GPT2LMHeadModel with weights large enough to matter, biases and LayerNorms included."""
    torch.manual_seed(seed)
    config = transformers.GPT2Config(attn_implementation="eager", bos_token_id=0, eos_token_id=0, **shape)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.2)
            elif parameter.ndim == 1:
                parameter.normal_(1.0, 0.2)
            elif "wte" in name or "wpe" in name or "lm_head" in name:
                parameter.normal_(0.0, 0.5)
            else:
                parameter.normal_(0.0, parameter.shape[0] ** -0.5)
    return model


def our_config(config: transformers.GPT2Config) -> dict:
    """The configuration in the package's own key names."""
    return {
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "d_model": config.n_embd,
        "d_head": config.n_embd // config.n_head,
        "d_mlp": config.n_inner or 4 * config.n_embd,
        "n_ctx": config.n_positions,
        "n_vocab": config.vocab_size,
        "activation": config.activation_function,
        "ln_eps": config.layer_norm_epsilon,
        "tied": config.tie_word_embeddings,
        "scale_attn": config.scale_attn_weights,
        "scale_by_inverse_layer": config.scale_attn_by_inverse_layer_idx,
    }


def named(model) -> dict[str, torch.nn.Parameter]:
    """Parameters without the "transformer." prefix; a tied lm_head appears once, as wte."""
    return {name.removeprefix("transformer."): p for name, p in model.named_parameters()}


def loss_of(model, tokens: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross-entropy in the model's own precision (transformers would use float32)."""
    logits = model(tokens).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def train(model, tokens: torch.Tensor) -> np.ndarray:
    """Losses (STEPS,) of AdamW on one batch; changes the model."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": TRAINING["weight_decay"]},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (TRAINING["beta1"], TRAINING["beta2"])
    optimiser = torch.optim.AdamW(groups, lr=TRAINING["lr"], betas=betas, eps=TRAINING["eps"])
    losses = []
    for _ in range(STEPS):
        loss = loss_of(model, tokens)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return np.array(losses)


def reference_state(seed: int, shape: dict) -> dict[str, np.ndarray]:
    """Everything one file holds."""
    model = random_gpt2(seed, shape)
    config = model.config
    tokens = torch.randint(config.vocab_size, (BATCH, config.n_positions))
    state = {
        "config": np.array(json.dumps(our_config(config))),
        "training_options": np.array(json.dumps(TRAINING)),
        "tokens": tokens.numpy().astype(np.int32),
    }
    state |= {f"weight:{name}": p.detach().numpy().copy() for name, p in named(model).items()}
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    for precision in ("float32", "float64"):
        model = model.to(getattr(torch, precision))
        model.load_state_dict(saved)
        output = model(tokens[:1], output_attentions=True)
        loss = loss_of(model, tokens[:1])
        model.zero_grad()
        loss.backward()
        state[f"logits_{precision}"] = output.logits[0].detach().numpy()
        state[f"loss_{precision}"] = np.array(loss.item())
        if precision == "float64":
            attentions = torch.stack(output.attentions)[:, 0].detach().numpy()
            state["attentions"] = attentions.astype(np.float32)
            state |= {f"gradient:{n}": p.grad.numpy().astype(np.float32) for n, p in named(model).items()}
        state[f"training_{precision}"] = train(model, tokens)
    return state


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for seed, (name, shape) in enumerate(SHAPES.items()):
        path = FOLDER / f"reference_state_{name}.npz"
        np.savez_compressed(path, **reference_state(seed, shape))
        print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
