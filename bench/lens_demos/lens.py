"""TransformerLens's models with the weights of ours; needs torch, transformers and transformer_lens."""

from __future__ import annotations

import tempfile
import warnings
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformer_lens
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from attnsparse import Model


def note() -> str:
    """Which versions were measured."""
    return f"TransformerLens {version('transformer_lens')}, torch {torch.__version__}"


def state(demo: str, model: Model, inputs: dict[str, Any]) -> SimpleNamespace:
    """What their steps begin with. The main demo looks at the weights of the file; the other one, like the
    demo, folds LayerNorms and centres, but leaves value biases in the heads: zeroing a head means something
    else otherwise."""
    repeated = torch.from_numpy(inputs["repeated"]).long()
    weights = _weights(model)
    with tempfile.TemporaryDirectory() as folder:  # they read it again from there
        tokenizer = _tokenizer(Path(folder))
        folded = _lens_model(model, weights, tokenizer, fold=True)
        plain = _lens_model(model, weights, tokenizer, fold=False) if demo == "main" else folded
    plain(repeated[:1])
    return SimpleNamespace(**{**inputs, "repeated": repeated, "model": plain, "folded": folded})


def _lens_model(model: Model, weights: dict[str, torch.Tensor], tokenizer: Any, fold: bool) -> Any:
    c = model.config
    settings = transformer_lens.HookedTransformerConfig(
        n_layers=c.n_layer, n_heads=c.n_head, d_model=c.d_model, d_head=c.d_head, d_mlp=c.d_mlp,
        n_ctx=c.n_ctx, d_vocab=c.n_vocab, act_fn="gelu_new", normalization_type="LN", eps=c.ln_eps,
        default_prepend_bos=False, device="cpu",
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        found = transformer_lens.HookedTransformer(settings, tokenizer)
    found.load_and_process_state_dict(
        dict(weights), fold_ln=fold, center_writing_weights=fold, center_unembed=fold, fold_value_biases=False
    )
    return found.eval()


def _weights(model: Model) -> dict[str, torch.Tensor]:
    """Under TransformerLens's names; copies, because it changes them in place."""
    arrays: dict[str, np.ndarray] = {
        "embed.W_E": model.W_E, "pos_embed.W_pos": model.W_pos, "unembed.W_U": model.W_U,
        "unembed.b_U": model.b_U, "ln_final.w": model.ln_final_w, "ln_final.b": model.ln_final_b,
    }  # fmt: skip
    for layer in range(model.config.n_layer):
        block = {f"attn.{name}": getattr(model, name)[layer] for name in
                 ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O")}  # fmt: skip
        block |= {f"mlp.{name}": getattr(model, name)[layer] for name in ("W_in", "b_in", "W_out", "b_out")}
        for norm in ("ln1", "ln2"):
            block |= {f"{norm}.{part}": getattr(model, f"{norm}_{part}")[layer] for part in "wb"}
        arrays |= {f"blocks.{layer}.{name}": array for name, array in block.items()}
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def _tokenizer(folder: Path) -> Any:
    """That of the demo models; it needs a BOS token there, which no prompt gets."""
    text = files("attnsparse").joinpath("pretrained", "demo-dense", "tokenizer.json").read_text("utf-8")
    path = folder / "tokenizer.json"
    path.write_text(text, encoding="utf-8")
    special = {"bos_token": "!", "eos_token": "!", "pad_token": "!"}
    PreTrainedTokenizerFast(tokenizer_file=str(path), **special).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)
