"""Texts that a model writes: `Model.generate` and what it returns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check
from .._core_types import Generated, GenerationOptions
from .._display import SHOWN, Html, escaped, html_rows, stage_bars
from .._tables import text_column, text_table
from ..errors import printable
from ..items import shortened
from .batch import Batch, as_batch
from .hooks import Hooks, compile_functions
from .interventions import Ablate, Patch, compile_changes
from .run import Freeze, compile_frozen
from .tokenizer import checked_ids, token_texts

if TYPE_CHECKING:
    import pandas as pd

    from .model import Model

_SIGNS = 60  # characters of a text in a repr


class GenerationInterrupted(KeyboardInterrupt):
    """Ctrl-C during `Model.generate`.

    Attributes
    ----------
    generation : Generation
        What was generated until then.
    """

    def __init__(self, message: str, generation: Any = None) -> None:
        super().__init__(message)
        self.generation = generation


@dataclass(frozen=True)
class _Text:
    """One text."""

    prompt: int
    sample: int
    prompt_tokens: np.ndarray
    tokens: np.ndarray  #: new ones
    logprobs: np.ndarray
    logits: np.ndarray | None
    ended_by: str


class Generation:
    """Texts that a model continued: `len(generation)` of them, those of the first prompt first.

    Made by `Model.generate`; `generation[i]` is the Generation of one text. Of several texts, each attribute
    below is a list with one entry per text. One prompt that did not come in a list, with one sample, is one
    text. Arrays are read-only.
    """

    def __init__(self, model: Model, texts: Sequence[_Text], single: bool, choice: str) -> None:
        self.model = model  #: the `Model`
        self._texts, self._single, self._choice = tuple(texts), single, choice

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, i: int) -> Generation:
        i = _check.integer(i, "a text's number")
        if not -len(self) <= i < len(self):
            raise IndexError(f"there are {len(self)} texts, got number {i}")
        return Generation(self.model, [self._texts[i]], True, self._choice)

    def __iter__(self) -> Iterator[Generation]:
        return (self[i] for i in range(len(self)))

    def _each(self, values: list[Any]) -> Any:
        return values[0] if self._single else values

    @property
    def _new(self) -> list[np.ndarray]:
        return [text.tokens for text in self._texts]

    # --- texts and tokens

    @property
    def text(self) -> Any:
        """str: what the model added. Needs a tokenizer."""
        return self._each([self._split(text)[1] for text in self._texts])

    @property
    def full_text(self) -> Any:
        """str: the prompt and what the model added. Needs a tokenizer."""
        return self._each(["".join(self._split(text)) for text in self._texts])

    def _split(self, text: _Text) -> tuple[str, str]:
        """Prompt and new text, decoded together: a character may have tokens of both."""
        decode = self.model._need_tokenizer().decode
        prompt, both = decode(text.prompt_tokens), decode(_joined(text))
        return (prompt, both[len(prompt) :]) if both.startswith(prompt) else (prompt, decode(text.tokens))

    @property
    def tokens(self) -> Any:
        """int32 [T]: the prompt's tokens and the new ones, as `Model.run` takes them."""
        return self._each([_joined(text) for text in self._texts])

    @property
    def new_tokens(self) -> Any:
        """int32 [n]: the tokens that the model added, the one that ended the text included."""
        return self._each(self._new)

    @property
    def token_strings(self) -> Any:
        """list of str [n]: the new tokens as tables show them; `<id>` without a tokenizer."""
        return self._each([self._strings(text) for text in self._texts])

    def _strings(self, text: _Text) -> list[str]:
        return self._shown_tokens(text.tokens)

    def _shown_tokens(self, tokens: np.ndarray) -> list[str]:
        return token_texts(self.model.tokenizer, tokens)

    @property
    def ended_by(self) -> Any:
        """str: "stop" (a stop token is the last one), "length" or "interrupt"."""
        return self._each([text.ended_by for text in self._texts])

    # --- steps

    @property
    def logprobs(self) -> Any:
        """float64 [n]: log of the model's probability of each new token, whatever the temperature."""
        return self._each([text.logprobs for text in self._texts])

    @property
    def logits(self) -> Any:
        """Real [n, V]: the logits that each new token was chosen by; needs ``logits=True``."""
        if any(text.logits is None for text in self._texts):
            raise AttributeError("logits were not kept; generate with logits=True")
        return self._each([text.logits for text in self._texts])

    def to_pandas(self, *, texts: bool = False) -> pd.DataFrame:
        """One row per new token.

        Parameters
        ----------
        texts : bool, default False
            Also give each prompt as text, in the column prompt_text.

        Returns
        -------
        pandas.DataFrame
            Columns: model; prompt and sample_index, counted from 0; prompt_text; position in the text,
            counted from 0; token_id, token (its string), logprob, probability.
        """

        columns: dict[str, list[Any]] = {
            "prompt": [], "sample_index": [], "position": [], "token_id": [], "token": [], "logprob": [],
        }  # fmt: skip
        for text in self._texts:
            n, first = len(text.tokens), len(text.prompt_tokens)
            rows = ([text.prompt] * n, [text.sample] * n, range(first, first + n), text.tokens.tolist(),
                    self._strings(text), text.logprobs.tolist())  # fmt: skip
            for column, values in zip(columns.values(), rows):
                column.extend(values)
        types = {"prompt": int, "sample_index": int, "position": int, "token_id": int, "logprob": float}
        table: pd.DataFrame = text_table(columns).astype(types)
        table.insert(0, "model", text_column([self.model.name] * len(table)))
        if _check.flag(texts, "texts"):
            whole = {text.prompt: "".join(self._shown_tokens(text.prompt_tokens)) for text in self._texts}
            table.insert(2, "prompt_text", text_column(whole[i] for i in table["prompt"].tolist()))
        table["probability"] = [math.exp(logprob) for logprob in table["logprob"]]
        return table

    # --- display

    def _shown(self, text: _Text) -> tuple[str, str]:
        if self.model.tokenizer is not None:
            return self._split(text)
        return "".join(token_texts(None, text.prompt_tokens)), "".join(self._strings(text))

    def _facts(self) -> str:
        n, new = len(self), sum(map(len, self._new))
        return f"{n} text{'s' * (n != 1)}, {new:,} new tokens, {self._choice}, model={self.model.name!r}"

    def __repr__(self) -> str:
        lines = []
        for text in self._texts[:SHOWN]:
            prompt, new = (shortened(part, _SIGNS) for part in self._shown(text))
            note = "" if text.ended_by == "length" else f"  ({text.ended_by})"
            lines.append(f"\n  {prompt!r} -> {new!r}{note}")
        more = f"\n  and {len(self) - SHOWN:,} more" if len(self) > SHOWN else ""
        return f"Generation({self._facts()}){''.join(lines)}{more}"

    def _repr_html_(self) -> str:
        rows = []
        for text in self._texts[:SHOWN]:
            prompt, new = map(printable, self._shown(text))
            shown = Html(f"{escaped(prompt)}<b>{escaped(new)}</b>")
            rows.append((str(text.prompt), str(text.sample), shown, text.ended_by))
        table = html_rows(("prompt", "sample", "text", "ended by"), rows, len(self))
        return f"<p>Generation: {escaped(self._facts())}</p>{table}"


def _joined(text: _Text) -> np.ndarray:
    tokens = np.concatenate([text.prompt_tokens, text.tokens])
    tokens.setflags(write=False)
    return tokens


def generate(
    model: Model,
    prompts: Any,
    max_new_tokens: int,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    n_samples: int,
    stop: Any,
    stop_at_eos: bool,
    logits: bool,
    prepend_bos: bool,
    ablate: Ablate | None,
    patch: Patch | None,
    freeze: Freeze | None,
    hooks: Hooks | None,
    max_bytes: int,
    threads: int | None,
    progress: bool | None,
) -> Generation:
    """See `Model.generate`."""
    batch = as_batch(model, prompts, prepend_bos)
    options = _options(model, batch, max_new_tokens, temperature, top_k, top_p, seed, n_samples, max_bytes)
    stop_tokens = _stop_tokens(model, stop, stop_at_eos)
    options.stop[stop_tokens] = True
    changes = compile_changes(model, batch, ablate, patch, options.max_new_tokens, options.n_samples)
    functions = None if hooks is None else compile_functions(model, hooks)
    frozen = None if freeze is None else compile_frozen(model, batch, freeze)
    generated = _empty(model, len(batch) * options.n_samples, options, _check.flag(logits, "logits"))
    if generated.logits is not None:
        options = options._replace(max_bytes=options.max_bytes - generated.logits.nbytes)
    single = batch.single and options.n_samples == 1
    choice = "greedy" if temperature is None else f"temperature {options.temperature:g}"
    threads = _check.threads(threads)
    try:
        with stage_bars(progress) as tell:
            model._core.generate(
                batch.tokens, batch.offsets, options, generated, changes.interventions, threads, tell,
                functions=functions, frozen=frozen, steering=changes.steering,
            )  # fmt: skip
    except KeyboardInterrupt:
        texts = _texts(batch, options, generated, "interrupt")
        message = (
            f"interrupted after {int(generated.n_new.sum()):,} new tokens, which are in this exception's "
            "attribute `generation`"
        )
        raise GenerationInterrupted(message, Generation(model, texts, single, choice)) from None
    return Generation(model, _texts(batch, options, generated, "stop"), single, choice)


def _options(
    model: Model,
    batch: Batch,
    max_new_tokens: int,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    n_samples: int,
    max_bytes: int,
) -> GenerationOptions:
    most = _check.integer(max_new_tokens, "max_new_tokens", 1)
    samples, n_ctx = _check.integer(n_samples, "n_samples", 1), model.config.n_ctx
    for prompt, length in enumerate(batch.lengths.tolist()):
        if most > n_ctx - length:
            where = "the prompt" if batch.single else f"prompt {prompt}"
            raise ValueError(
                f"{where} has {length:,} tokens, to which this model (n_ctx {n_ctx:,}) can add at most "
                f"{n_ctx - length:,}, got max_new_tokens={most:,}"
            )
    if temperature is None:
        drawing = {"top_k": top_k is not None, "top_p": top_p is not None, "n_samples": samples > 1}
        for name, given in drawing.items():
            if given:
                raise ValueError(
                    f"{name} is for drawing tokens, which needs a temperature, such as temperature=1"
                )
    elif temperature == 0:
        raise ValueError("temperature must be above 0, got 0; leave it out for the most probable token")
    return GenerationOptions(
        most,
        samples,
        0.0 if temperature is None else _check.positive(temperature, "temperature"),
        0 if top_k is None else min(_check.integer(top_k, "top_k", 1), model.config.n_vocab),
        1.0 if top_p is None else _check.fraction(top_p, "top_p"),
        _check.seed(seed),
        np.zeros(model.config.n_vocab, bool),
        _check.byte_limit(max_bytes),
    )


def _stop_tokens(model: Model, stop: Any, stop_at_eos: bool) -> list[int]:
    several = not isinstance(stop, str | int | np.integer)
    items = _check.items(stop, "stop", "a token or a sequence of tokens") if several else [stop]
    found = [_stop_token(model, item) for item in items]
    eos = model.tokenizer.eos_id if _check.flag(stop_at_eos, "stop_at_eos") and model.tokenizer else None
    return found if eos is None or eos >= model.config.n_vocab else [*found, eos]


def _stop_token(model: Model, item: Any) -> int:
    if not isinstance(item, str):
        return checked_ids([item], model.config.n_vocab)[0]
    ids = model._need_tokenizer().encode(item)
    if len(ids) != 1:
        raise ValueError(f"stop: {item!r:.80} must be one token, got {len(ids)}; give a token's text or id")
    return checked_ids(ids, model.config.n_vocab)[0]


def _empty(model: Model, n: int, options: GenerationOptions, logits: bool) -> Generated:
    most, n_vocab = options.max_new_tokens, model.config.n_vocab
    n_bytes = n * most * (12 + logits * n_vocab * model.dtype.itemsize)
    if n_bytes > options.max_bytes:
        kept = "tokens and logits" if logits else "tokens"
        raise MemoryError(
            f"the {kept} of {n:,} text{'s' * (n != 1)} need {n_bytes:,} bytes, above "
            f"max_bytes={options.max_bytes:,}; generate fewer tokens, or fewer texts at a time, or no logits"
        )
    return Generated(
        np.zeros(n, np.int64),
        np.zeros((n, most), np.int32),
        np.zeros((n, most)),
        np.zeros((n, most, n_vocab), model.dtype) if logits else None,
    )


def _texts(batch: Batch, options: GenerationOptions, generated: Generated, otherwise: str) -> list[_Text]:
    """otherwise: why a text that is not at its full length and not at a stop token has ended."""
    texts = []
    for array in generated:
        if array is not None:
            array.setflags(write=False)
    for i, n in enumerate(generated.n_new.tolist()):
        prompt, sample = divmod(i, options.n_samples)
        new = generated.tokens[i, :n]
        stopped = n and options.stop[new[-1]]
        ended_by = "stop" if stopped else "length" if n == options.max_new_tokens else otherwise
        logits = None if generated.logits is None else generated.logits[i, :n]
        prompt_tokens = batch.tokens[batch.offsets[prompt] : batch.offsets[prompt + 1]]
        texts.append(_Text(prompt, sample, prompt_tokens, new, generated.logprobs[i, :n], logits, ended_by))
    return texts
