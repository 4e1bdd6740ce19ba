"""Texts and tokens of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .. import _check
from .._tables import text_column, text_table
from .batch import as_batch, listed
from .tokenizer import Tokenizer, checked_ids, token_texts

if TYPE_CHECKING:
    import pandas as pd

    from .config import Config
    from .model import Model


class ModelText:
    """How a `Model` turns texts into tokens and back; needs its tokenizer."""

    config: Config
    name: str
    tokenizer: Tokenizer | Any

    def to_tokens(self, text: str, prepend_bos: bool = False) -> np.ndarray:
        """Token ids of a text.

        Parameters
        ----------
        text : str
        prepend_bos : bool, default False
            Put the tokenizer's BOS token first.

        Returns
        -------
        numpy.ndarray
            int32 [T].

        Raises
        ------
        ValueError
            If the model has no tokenizer, or the text has no encoding.
        """
        return np.array(self._need_tokenizer().encode(text, prepend_bos=prepend_bos), dtype=np.int32)

    def to_str_tokens(self, text: str | Sequence[int] | np.ndarray, prepend_bos: bool = False) -> list[str]:
        """Token strings as tables and figures show them; `<id>` for an id without a name.

        Parameters
        ----------
        text : str or sequence of int
            A text, or token ids.
        prepend_bos : bool, default False
            Put the tokenizer's BOS token before a text.

        Returns
        -------
        list of str
            One string per token, leading space included.

        Raises
        ------
        TypeError
            For ids that are not integers.
        IndexError
            For ids that neither the model nor its tokenizer has.
        ValueError
            If the model has no tokenizer.
        """
        tokenizer = self._need_tokenizer()
        if isinstance(text, str):
            return tokenizer.token_strings(tokenizer.encode(text, prepend_bos=prepend_bos))
        return tokenizer.token_strings(checked_ids(text, max(self.config.n_vocab, tokenizer.n_vocab)))

    def to_string(self, tokens: int | Sequence[Any] | np.ndarray) -> str | list[str]:
        """The text of token ids, special tokens included.

        Parameters
        ----------
        tokens : int, or sequence of int, or a sequence of these
            An id, the ids of a prompt, or of several prompts.

        Returns
        -------
        str or list of str
            One text, or one for each prompt.

        Raises
        ------
        TypeError
            For ids that are not integers.
        IndexError
            For an id that no model has.
        ValueError
            If the model has no tokenizer.
        """
        tokenizer = self._need_tokenizer()
        if isinstance(tokens, (int, np.integer)):
            return tokenizer.decode([int(tokens)])
        prompts, single = listed(tokens)
        texts = [tokenizer.decode(prompt) for prompt in prompts]
        return texts[0] if single else texts

    def to_single_token(self, text: str) -> int:
        """The id of a text that is a single token.

        Parameters
        ----------
        text : str
            With its leading space, if the token has one.

        Returns
        -------
        int

        Raises
        ------
        ValueError
            If the text is no token or several, which the message lists, or if the model has no tokenizer.
        """
        if not isinstance(text, str):
            raise TypeError(f"text must be a string, got {type(text).__name__}")
        tokenizer = self._need_tokenizer()
        ids = tokenizer.encode(text)
        if len(ids) == 1:
            return ids[0]
        parts = ", ".join(map(repr, tokenizer.token_strings(ids[:8])))
        more = ", ..." if len(ids) > 8 else ""
        raise ValueError(f"{text[:80]!r} is {len(ids)} tokens ({parts}{more}), expected one")

    def get_token_position(
        self,
        token: str | int,
        text: str | Sequence[int] | np.ndarray,
        mode: str = "first",
        prepend_bos: bool = False,
    ) -> int:
        """Where a token stands in a text.

        Parameters
        ----------
        token : str or int
            A single token, with its leading space if it has one, or its id.
        text : str or sequence of int
            A text, or token ids.
        mode : {"first", "last"}, default "first"
            Which occurrence.
        prepend_bos : bool, default False
            Put the tokenizer's BOS token before a text.

        Returns
        -------
        int
            Counted from 0.

        Raises
        ------
        ValueError
            If the text does not have the token, `token` is several tokens, or the model has no tokenizer.
        """
        _check.choice(mode, "mode", ("first", "last"))
        wanted = self.to_single_token(token) if isinstance(token, str) else _check.integer(token, "token", 0)
        given = self.to_tokens(text, prepend_bos) if isinstance(text, str) else text
        ids = np.asarray(checked_ids(given, self.config.n_vocab))
        found = np.flatnonzero(ids == wanted)
        if not len(found):
            raise ValueError(f"{token!r:.80} is not among the {len(ids)} tokens of the text")
        return int(found[0 if mode == "first" else -1])

    def tokens_of(self, prompts: Any, prepend_bos: bool = False, base: int = 0) -> pd.DataFrame:
        """The tokens of prompts with their positions, to be looked at before positions are named.

        Parameters
        ----------
        prompts : str, sequence of int, or a list of these
            As for `Model.run`.
        prepend_bos : bool, default False
            Put the tokenizer's BOS token first.
        base : int, default 0
            Number of the first position, 0 or 1.

        Returns
        -------
        pandas.DataFrame
            One row per token. Columns: prompt (number in the batch), position, token, token_id.

        Raises
        ------
        ValueError, IndexError, TypeError
            As `Model.run`.
        """

        base = _check.base(base)
        batch = as_batch(cast("Model", self), prompts, prepend_bos)
        prompt = np.repeat(np.arange(len(batch)), batch.lengths)
        tokens = token_texts(self.tokenizer, batch.tokens.tolist())
        columns = {
            "prompt": prompt,
            "position": np.arange(len(prompt)) - batch.offsets[prompt] + base,
            "token": text_column(tokens),
            "token_id": batch.tokens.astype(np.int64),
        }
        table: pd.DataFrame = text_table(columns)
        return table

    def _need_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError(
                f"model {self.name!r} has no tokenizer; give token ids, or load(..., tokenizer=...)"
            )
        return self.tokenizer
