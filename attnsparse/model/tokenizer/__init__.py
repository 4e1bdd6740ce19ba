"""Text to token ids and back; the files that a tokenizer comes in."""

from .tokenizer import Tokenizer, checked_ids, token_texts

__all__ = ["Tokenizer", "checked_ids", "token_texts"]
