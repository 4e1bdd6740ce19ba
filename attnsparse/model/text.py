"""Texts and tokens of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .tokenizer import Tokenizer, checked_ids

if TYPE_CHECKING:
    from .config import Config


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

    def _need_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError(
                f"model {self.name!r} has no tokenizer; give token ids, or load(..., tokenizer=...)"
            )
        return self.tokenizer
