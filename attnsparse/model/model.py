"""Model: configuration, weights and tokenizer of a GPT-2-family transformer, and the calls that run it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .. import _check
from .batch import as_batch
from .config import Config
from .evaluation import Evaluation, evaluate
from .generation import Generation, generate
from .gradients import Gradients, compute_gradients
from .hooks import Hooks, run_with_hooks
from .initial_weights import initial_weights
from .interventions import Ablate, Patch, compile_changes
from .lens import composition
from .run import DEFAULT_MAX_BYTES, Freeze, Run, compute_run
from .text import ModelText
from .tokenizer import Tokenizer
from .transformer_lens import run_with_cache
from .travel import ModelTravel
from .weights import ModelWeights


class Model(ModelWeights, ModelText, ModelTravel):
    """A GPT-2-family transformer, dense or with gated attention.

    Made by `attnsparse.load`, by `Model.initialised`, or from a `Config` and weights.  Weights are kept in
    one block of memory and lent as read-only arrays; `assign` changes them.  Runs made before a change keep
    their arrays.

    Parameters
    ----------
    config : Config
        Sizes and kind of the model.
    weights : mapping of str to array, optional
        All of `config.parameter_shapes()`, under Hugging Face's names such as "h.0.attn.c_attn.weight";
        they are copied. None: all weights are 0.
    tokenizer : Tokenizer, optional
        Without one the model takes token ids only.
    name : str, optional
        As tables and figures show it.
    dtype : {"float32", "float64"}
        Of weights and activations; float64 is the same code in double precision.

    Raises
    ------
    ConfigError
        ``missing_tensor``, ``unexpected_tensor`` or ``config_value`` (a wrong shape).
    ValueError
        For another dtype.
    """

    def __init__(
        self,
        config: Config,
        weights: Mapping[str, np.ndarray] | None = None,
        tokenizer: Tokenizer | None = None,
        name: str = "",
        dtype: str = "float32",
    ) -> None:
        super().__init__(config, weights, dtype)
        #: the `Tokenizer`, or None; `Any` spares those who know that it is there a check for None
        self.tokenizer: Tokenizer | Any = tokenizer
        self.name = name  #: as tables and figures show it
        self._origin = None

    @classmethod
    def initialised(
        cls,
        config: Config,
        seed: int,
        *,
        std: float | str = 0.02,
        tokenizer: Tokenizer | None = None,
        name: str = "",
        dtype: str = "float32",
    ) -> Model:
        """A new model with random weights as in GPT-2, a pure function of `config`, `seed` and `std`.

        Parameters
        ----------
        config : Config
            Sizes and kind of the model.
        seed : int
            0..2^64-1; every array has a random stream of its own.
        std : float or "fan_in", default 0.02
            Standard deviation of all matrices, above 0; "fan_in" gives linear maps 1/sqrt(inputs) and
            embeddings 0.02. What writes into the residual stream (c_proj) is divided by sqrt(2 n_layer).
            LayerNorm weights are 1, biases 0.
        tokenizer, name, dtype
            As for `Model`.

        Returns
        -------
        Model
        """
        _check.instance(config, Config, "config")
        return cls(config, initial_weights(config, _check.seed(seed), std), tokenizer, name, dtype)

    def copy(self) -> Model:
        """A model with its own copy of the weights, all taken at one moment.

        Returns
        -------
        Model

        Raises
        ------
        RuntimeError
            While another thread changes the weights.
        """
        with self._core.reading():
            twin = Model(self.config, self.parameters(), self.tokenizer, self.name, str(self.dtype))
            if self._origin is not None and self._is_as_loaded():
                twin._set_origin(self._origin[0], self._origin[2])
        return twin

    # --- runs

    def run(
        self,
        prompts: Any,
        record: str | Sequence[str] = "attention",
        *,
        logits: str = "all",
        prepend_bos: bool = False,
        edge_threshold: float = 0.0,
        ablate: Ablate | None = None,
        patch: Patch | None = None,
        freeze: Freeze | None = None,
        stop_at_layer: int | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
        threads: int | None = None,
    ) -> Run:
        """One forward pass.

        Parameters
        ----------
        prompts : str, sequence of int, or a list of these
            Texts or token ids. Prompts may differ in length: nothing is padded.
        record : str or sequence of str, default "attention"
            What to keep, see `Run`: names of arrays, "attention" (pattern, q, k, v and ln_final_scale),
            "all", "none", "attribution" (what `Run.attribute` and `Run.logit_lens` need), or "edges" (the
            open edges with their weights, without ever holding a T x T array).
        logits : {"all", "last", "none"}
            At which positions of each prompt logits are computed.
        prepend_bos : bool, default False
            Put the tokenizer's BOS token first, also before given ids; the Run records it.
        edge_threshold : float, default 0
            record="edges" keeps weights above it; a closed gate is never an edge.
        ablate : item, Ablation, or sequence of these, optional
            Items to zero: heads such as "L9H6", edges such as "a9.h6[5->8]", `HeadPosition`, `Mlp`; an
            `Ablation` for means, counterfactuals and keep-only. Of several for one place the last counts.
        patch : mapping of item to array, optional
            Values that take an item's place; where `ablate` names the same place, the patch counts. An array
            is the same for every prompt; with one more axis in front, or as a list of arrays, it has one
            value for each. `Add` adds values to what is there. Recorded arrays are those of the changed run:
            z with its replaced rows, pattern with 0 where an edge is ablated.
        freeze : {"pattern", "gate", "ln_scale"}, several of these, or mapping to Run, optional
            What stays as it is in a clean run of the same prompts, or in the runs given, whatever changes
            before it: patterns (used as they are, without gate and softmax), gates, scales of all
            LayerNorms. Ablated and patched edges stay so. A given Run has prompts of the same lengths and
            recorded what is frozen; it may be of another model of as many layers and heads.
        stop_at_layer : int, optional
            Compute only the layers before this one, in 1..n_layer or negative from the end: -1 leaves out the
            last layer. What is asked for in later layers does not happen. See `Run` for what there is then.
        max_bytes : int, default 4 GiB
            Most memory that the run may take.
        threads : int, optional
            1..64; None: as `set_num_threads` says. Bits do not depend on it.

        Returns
        -------
        Run

        Raises
        ------
        MemoryError
            Before more than `max_bytes` are allocated.
        IndexError
            For token ids out of range.
        ValueError
            For a prompt that is empty or longer than n_ctx.
        TypeError
            For other kinds of input.
        RuntimeError
            While another thread trains this model.
        KeyboardInterrupt
            On Ctrl-C.
        """
        batch = as_batch(self, prompts, prepend_bos)
        changes = compile_changes(self, batch, ablate, patch)
        return compute_run(
            self, batch, record, logits, edge_threshold, max_bytes, threads, changes, freeze=freeze,
            stop_at_layer=stop_at_layer,
        )  # fmt: skip

    run_with_cache = run_with_cache
    run_with_hooks = run_with_hooks

    def generate(
        self,
        prompts: Any,
        max_new_tokens: int = 20,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        n_samples: int = 1,
        stop: str | int | Sequence[str | int] = (),
        stop_at_eos: bool = True,
        logits: bool = False,
        prepend_bos: bool = False,
        ablate: Ablate | None = None,
        patch: Patch | None = None,
        freeze: Freeze | None = None,
        hooks: Hooks | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
        threads: int | None = None,
        progress: bool | None = None,
    ) -> Generation:
        """Continue texts token by token; keys and values of earlier tokens are kept.

        Parameters
        ----------
        prompts : str, sequence of int, or a list of these
            As for `run`.
        max_new_tokens : int, default 20
            Tokens to add to each text, at most; prompt and new tokens fit into n_ctx.
        temperature : float, optional
            Logits are divided by it before a token is drawn. None: always the most probable token, of equal
            ones the one with the lower id.
        top_k : int, optional
            Draw among so many tokens of the highest logits; of equal ones the lower ids come first.
        top_p : float, optional
            Draw among the fewest of these tokens whose probabilities add up to `top_p`, in (0, 1].
        seed : int, default 0
            0..2^64-1. A text is a function of the model, its prompt, the options, the seed and the number
            of the sample; other prompts, other samples and the number of threads change no bit of it.
        n_samples : int, default 1
            Texts for each prompt.
        stop : str, int, or a list of these, default none
            Tokens that end a text, as single tokens or ids.
        stop_at_eos : bool, default True
            Also end a text at ``"<|endoftext|>"``, if the tokenizer has it.
        logits : bool, default False
            Keep the logits of every step.
        prepend_bos : bool, default False
            As for `run`.
        ablate, patch : optional
            As for a `run` of the whole text, prompt and max_new_tokens: an item without a position counts at
            every position. Negative positions count from the end of the prompt. Reference prompts of means
            and counterfactuals reach to the last position that is replaced, and may be longer.
        freeze : {"pattern", "gate", "ln_scale"}, several of these, or mapping to Run, optional
            As for a `run` of the prompts: held at their positions. New tokens have no clean run: their
            patterns, gates and scales are their own.
        hooks : sequence of (name, function), or mapping of name to function, optional
            As for `run_with_hooks`. A function first sees each prompt as a whole, then position by position
            what is new: [batch, 1, ...], and [batch, head, 1, key] of scores, patterns and masks.
            ``hook.prompts`` are numbers of texts, as in the Generation, ``hook.positions`` their positions.
            Texts at the same positions come in one call, others one by one; a prompt's samples share the call
            for the prompt, which has the number of the first one. Functions at one place come after the rest.
        max_bytes : int, default 4 GiB
            Most memory that the call may take.
        threads : int, optional
            As for `run`.
        progress : bool, optional
            Show a progress bar; None: in a terminal or notebook, after a second.

        Returns
        -------
        Generation

        Raises
        ------
        ValueError
            For a prompt that is empty or too long, and for options out of range.
        RuntimeError
            While another thread trains this model, or if its logits are not numbers.
        GenerationInterrupted
            On Ctrl-C: a KeyboardInterrupt that holds the texts so far.

        Notes
        -----
        Logits are those of a `run` of the text so far under the same `ablate`, `patch` and functions: bit for
        bit where ``build_info()["batch_invariant"]``, else within 5e-6 (float32) or 1e-14 (float64) of the
        largest one.
        """
        return generate(
            self, prompts, max_new_tokens, temperature, top_k, top_p, seed, n_samples, stop, stop_at_eos,
            logits, prepend_bos, ablate, patch, freeze, hooks, max_bytes, threads, progress,
        )  # fmt: skip

    def gradients(
        self,
        prompts: Any,
        *,
        dlogits: np.ndarray | None = None,
        targets: Any = None,
        loss_mask: Any = None,
        wrt: str | Sequence[str] = "parameters",
        gate_gradient: str = "none",
        prepend_bos: bool = False,
        max_bytes: int = DEFAULT_MAX_BYTES,
        threads: int | None = None,
    ) -> Gradients:
        """Gradients of one scalar with respect to weights and activations, gates as at evaluation.

        The scalar is sum(dlogits * logits), or else the cross-entropy of the targets, weighted by
        `loss_mask` and divided by the sum of the weights.

        Parameters
        ----------
        prompts : str, sequence of int, or a list of these
            As for `run`.
        dlogits : array of float [N, V], optional
            N: tokens of all prompts; [batch, T, V] for equally long prompts.
        targets : array of int [N], optional
            Default: the next token. A target of -100, the usual mark for "ignore", has the weight 0.
        loss_mask : array of float [N], optional
            Weights, at least 0. Default: 1, and 0 at the last token of a prompt.
        wrt : str or sequence of str, default "parameters"
            "parameters" and names of activations: pattern, scores, q, k, v, z, resid_pre, resid_mid,
            resid_post, mlp_pre, mlp_post.
        gate_gradient : {"none", "straight-through"}
            "none": a gate is a step, whose derivative is 0; "straight-through": the derivative is that of the
            sigmoid, as in training.
        prepend_bos, max_bytes, threads
            As for `run`.

        Returns
        -------
        Gradients

        Raises
        ------
        IndexError
            For a target below 0 other than -100, or outside the vocabulary.
        """
        batch = as_batch(self, prompts, prepend_bos)
        return compute_gradients(
            self, batch, dlogits, targets, loss_mask, wrt, gate_gradient, max_bytes, threads
        )

    def evaluate(
        self,
        sequences: Iterable[Any] | np.ndarray,
        loss_weights: Sequence[Any] | None = None,
        *,
        batch: int = 256,
        progress: bool | None = None,
    ) -> Evaluation:
        """How well the model predicts the next tokens of given sequences, with hard gates and no noise.

        Parameters
        ----------
        sequences : list of str or of int arrays, Series, Index, generator, or int array [n, T]
            Texts or token ids; lengths may differ.
        loss_weights : like `sequences`, optional
            Weight of predicting that token, default 1; that of a first token is not used, because nothing
            comes before it.
        batch : int, default 256
            Sequences run at once.
        progress : bool, optional
            Show a bar on stderr. Default: in terminals and notebooks only.

        Returns
        -------
        Evaluation

        Raises
        ------
        ValueError
            For no sequences, weights of other lengths or below 0, or no weight above 0.
        TypeError
            For what are not rows of token ids, or of numbers.
        IndexError
            For a token id outside the vocabulary.
        """
        return evaluate(self, sequences, loss_weights, batch, progress)

    composition_scores = composition.composition_scores

    # --- the rest

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write a Hugging Face folder, as `attnsparse.save` does.

        Parameters
        ----------
        folder : path
            Created if it does not exist.

        Raises
        ------
        OSError
            With errno and file name.
        RuntimeError
            While another thread trains the model.
        """
        from .load import save

        save(self, folder)

    def __repr__(self) -> str:
        c = self.config
        closed = ", self_closed" if c.self_closed else ""
        kind = f"gated (gate_bias={c.gate_bias:g}{closed})" if c.gated else "dense"
        name = f"{self.name!r}, " if self.name else ""
        return (
            f"Model({name}{c.n_layer} layers x {c.n_head} heads, d_model={c.d_model}, n_vocab={c.n_vocab}, "
            f"{kind}, {self.n_parameters:,} weights, {self.dtype})"
        )
