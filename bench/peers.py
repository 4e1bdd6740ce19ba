"""Other tools that do the same forward pass, where they are installed, with random weights."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np

from attnsparse import Config

#: takes token ids, int32 [batch, T], and runs them
Forward = Callable[[np.ndarray], Any]


def torch_with_threads(threads: int) -> Any:
    """The torch module, told to use `threads` threads; ImportError where it is not installed."""
    torch = importlib.import_module("torch")
    torch.set_num_threads(threads)
    return torch


def forward_peers(config: Config, threads: int) -> tuple[dict[str, Callable[[], Forward]], list[str]]:
    """Peer name -> maker of its forward call, made once; and a sentence for each peer that is left out."""
    makers: dict[str, Callable[[], Forward]] = {}
    notes = []
    for name, module, make in (
        ("transformers", "transformers", _transformers),
        ("TransformerLens", "transformer_lens", _transformer_lens),
    ):
        try:
            torch = torch_with_threads(threads)
            loaded = importlib.import_module(module)
        except ImportError as error:
            notes.append(f"{name} is left out: {error}")
        else:
            makers[name] = functools.cache(functools.partial(make, torch, loaded, config))
            notes.append(f"{name} {version(module)}, torch {torch.__version__}")
    return makers, notes


def _transformers(torch: Any, transformers: Any, config: Config) -> Forward:
    """Eager attention with output_attentions: the only way to get patterns from it."""
    settings = transformers.GPT2Config(
        n_layer=config.n_layer, n_head=config.n_head, n_embd=config.d_model, n_inner=config.d_mlp,
        n_positions=config.n_ctx, vocab_size=config.n_vocab, attn_implementation="eager", use_cache=False,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(settings).eval()

    def forward(tokens: np.ndarray) -> Any:
        with torch.no_grad():
            return model(torch.from_numpy(tokens).long(), output_attentions=True)

    return forward


def _lens_model(transformer_lens: Any, config: Config) -> Any:
    """A model with random weights."""
    settings = transformer_lens.HookedTransformerConfig(
        n_layers=config.n_layer, n_heads=config.n_head, d_model=config.d_model, d_head=config.d_head,
        d_mlp=config.d_mlp, n_ctx=config.n_ctx, d_vocab=config.n_vocab, act_fn="gelu_new",
        normalization_type="LN", device="cpu",
    )  # fmt: skip
    return transformer_lens.HookedTransformer(settings)


def _transformer_lens(torch: Any, transformer_lens: Any, config: Config) -> Forward:
    """run_with_cache that keeps nothing but the patterns."""
    model = _lens_model(transformer_lens, config)

    def forward(tokens: np.ndarray) -> Any:
        with torch.no_grad():
            return model.run_with_cache(
                torch.from_numpy(tokens).long(), names_filter=lambda name: name.endswith("hook_pattern")
            )

    return forward


#: takes token ids, int32 [batch, T], and how many to add
Generate = Callable[[np.ndarray, int], Any]


def generation_peers(config: Config, threads: int) -> tuple[dict[str, Callable[[], Generate]], list[str]]:
    """Peer name -> maker of its greedy generation, made once; and a sentence for one that is left out."""
    try:
        torch = torch_with_threads(threads)
        loaded = importlib.import_module("transformers")
    except ImportError as error:
        return {}, [f"transformers is left out: {error}"]
    note = f"transformers {version('transformers')}, torch {torch.__version__}"
    make = functools.cache(functools.partial(_transformers_generate, torch, loaded, config))
    return {"transformers": make}, [note]


def _transformers_generate(torch: Any, transformers: Any, config: Config) -> Generate:
    """Its own `generate` with its cache and its default attention."""
    settings = transformers.GPT2Config(
        n_layer=config.n_layer, n_head=config.n_head, n_embd=config.d_model, n_inner=config.d_mlp,
        n_positions=config.n_ctx, vocab_size=config.n_vocab,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(settings).eval()

    def generate(tokens: np.ndarray, n_new: int) -> Any:
        ids = torch.from_numpy(tokens).long()
        with torch.no_grad():
            return model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=n_new,
                max_new_tokens=n_new, pad_token_id=0,
            )  # fmt: skip

    return generate


#: takes a clean and a corrupted prompt, int32 [T], and returns a call that patches every head once
Patching = Callable[[np.ndarray, np.ndarray], Callable[[], Any]]


def patching_peers(config: Config, threads: int) -> tuple[dict[str, Patching], list[str]]:
    """Peer name -> maker of its head patching sweep; and a sentence for each peer that is left out."""
    try:
        torch = torch_with_threads(threads)
        loaded = importlib.import_module("transformer_lens")
    except ImportError as error:
        return {}, [f"TransformerLens is left out: {error}"]
    note = f"TransformerLens {version('transformer_lens')}, torch {torch.__version__}"
    return {"TransformerLens": functools.partial(_lens_patching, torch, loaded, config)}, [note]


def _lens_patching(
    torch: Any, transformer_lens: Any, config: Config, clean: np.ndarray, corrupted: np.ndarray
) -> Callable[[], Any]:
    """Its own sweep, `get_act_patch_attn_head_out_all_pos`."""
    model = _lens_model(transformer_lens, config)
    patching = importlib.import_module("transformer_lens.patching")
    first, second = (torch.tensor(row[None].tolist()) for row in (clean, corrupted))

    def sweep() -> Any:
        with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            _, cache = model.run_with_cache(second)
            metric = lambda logits: logits[0, -1, 5] - logits[0, -1, 7]  # noqa: E731
            return patching.get_act_patch_attn_head_out_all_pos(model, first, cache, metric)

    return sweep
