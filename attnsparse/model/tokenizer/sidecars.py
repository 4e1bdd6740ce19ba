"""Added and special tokens, as the small files beside a vocabulary declare them.

tokenizer_config.json, special_tokens_map.json, added_tokens.json and the tokenizer's part of config.json are
merged in transformers' order, because the order in which tokens are added is the order of their ids.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from ...errors import ConfigError, FormatError, file_error, quoted
from ...io.limits import Limits
from ...io.regular_file import read_small
from ...io.strict_json import parse_object, shown
from ..hf_config import is_ours, read_config_json

if TYPE_CHECKING:
    import tokenizers

GPT2_BOS = "<|endoftext|>"
GPT2_CLASS = "GPT2Tokenizer"
SETTINGS, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_GPT2_NAMED = ("bos_token", "eos_token", "unk_token")
_LISTS = ("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_UNSAID_BOS_ID = 50_256  # GPT2Config's default, whatever the vocabulary


class Declared(NamedTuple):
    """Tokens that the files declare, in the order in which they are added."""

    added: dict[int, tokenizers.AddedToken]
    """Those that have an id."""
    named: list[str | tokenizers.AddedToken]
    """Those that have a role, such as bos_token."""
    extra: list[str | tokenizers.AddedToken]
    """Further special ones."""
    bos: str | int | None
    """The BOS token by its text, or by its id where only config.json names it."""


@dataclass(frozen=True)
class Sidecars:
    """The parsed files of a folder; a file that does not exist is empty."""

    folder: Path
    settings: dict[str, Any]
    special: dict[str, Any]
    added: dict[str, Any]
    config: dict[str, Any]

    @classmethod
    def read(cls, folder: Path, limits: Limits) -> Sidecars:
        """Read the files of a folder; errors as of `parse_object` and `read_small`."""
        settings, special, added = (_read(folder / name, limits) for name in (SETTINGS, SPECIAL, ADDED))
        return cls(folder, settings, special, added, read_config_json(folder, limits)[1] or {})

    def is_gpt2(self, *, has_json: bool) -> bool:
        """True if transformers reads the folder with GPT-2's class.

        A folder that attnsparse wrote has everything in its tokenizer.json and names a class only if needed.
        """
        name = self.settings.get("tokenizer_class") or self.config.get("tokenizer_class")
        if isinstance(name, str):
            return name.removesuffix("Fast") == GPT2_CLASS
        return not has_json or (self.config.get("model_type") == "gpt2" and not is_ours(self.config))

    def flag(self, name: str) -> bool:
        """A setting that is true or false; false by default."""
        value = self.settings.get(name)
        if value not in (None, True, False):
            raise self._file_error(SETTINGS, f"'{name}' must be true or false, got {shown(value)}", name)
        return bool(value)

    def declared(self, own: Sequence[Mapping[str, Any]], *, gpt2: bool) -> Declared:
        """The tokens that the files declare; `own` are the `added_tokens` of the tokenizer.json.

        `gpt2` adds the tokens that GPT-2's class always has. Raises FormatError `tokenizer` for a value that
        is not a token, ConfigError `config_type` for an invalid bos_token_id.
        """
        for name, value in self.settings.items():
            self._plain(SETTINGS, name, value)
        values = dict(self.settings)  # not yet AddedTokens: `_added` compares texts
        if "additional_special_tokens" in values and not values.get("extra_special_tokens"):
            values["extra_special_tokens"] = values.pop("additional_special_tokens")
        # these count before those of special_tokens_map.json
        own_roles = {role: self._one(SETTINGS, role, value) for role, value in _roles(values).items()}
        if "added_tokens_decoder" in self.settings:
            decoder = self._object(SETTINGS, "added_tokens_decoder", self.settings["added_tokens_decoder"])
            added = {self._id(SETTINGS, i): self._token(SETTINGS, i, token) for i, token in decoder.items()}
        else:
            self._add_special(values)
            added = self._added(values)
            added |= {token["id"]: self._token("tokenizer.json", "added_tokens", token) for token in own}
        values = {name: self._plain(SETTINGS, name, value) for name, value in values.items()}
        by_text = {token.content: token for token in added.values()}
        if gpt2:
            values = dict.fromkeys(_GPT2_NAMED, GPT2_BOS) | values
        given = [values[name] for name in _NAMED if values.get(name)]
        named: list[Any] = [by_text.get(text_of(token), token) for token in given]
        named += (_roles(values) | own_roles).values()
        extra = values.get("extra_special_tokens", values.get("additional_special_tokens")) or []
        return Declared(added, named, extra, self._bos(values))

    def _bos(self, values: Mapping[str, Any]) -> str | int | None:
        """The BOS token that the tokenizer's files name, else config.json's, else GPT-2's."""
        said = "bos_token" in self.settings or (
            "bos_token" in self.special and "added_tokens_decoder" not in self.settings
        )
        if said:
            token = values["bos_token"]
            return text_of(token) if token else None
        number = self.config.get("bos_token_id")
        if number is None or number == _UNSAID_BOS_ID:
            return GPT2_BOS
        if type(number) is not int or number < 0:
            text = f"bos_token_id must be an integer of at least 0, got {shown(number)}"
            raise file_error(
                ConfigError, "config_type", self.folder / "config.json", text, field="bos_token_id"
            )
        return number

    def _add_special(self, values: dict[str, Any]) -> None:
        """Let special_tokens_map.json override tokenizer_config.json; lists of extra tokens are joined."""
        for name, given in self.special.items():
            value = self._plain(SPECIAL, name, given, special=True)
            if name == "extra_special_tokens" and isinstance(value, list):
                before = values.get(name) or []
                value = [*before, *(token for token in value if token not in before)]
            values[name] = value

    def _added(self, values: Mapping[str, Any]) -> dict[int, tokenizers.AddedToken]:
        extra = values.get("extra_special_tokens")
        roles: list[Any] = [values.get(name) for name in _NAMED] + (extra if isinstance(extra, list) else [])
        special = {text_of(token) for token in roles if isinstance(token, str) or _is_added(token)}
        added = {}
        for text, number in self.added.items():
            flags = {"normalized": text not in special, "special": text in special}
            added[self._id(ADDED, number, text)] = self._token(ADDED, text, {"content": text, **flags})
        return added

    def _plain(self, file: str, name: str, value: Any, *, special: bool = False) -> Any:
        """A value of a settings file, with tokens as text or AddedToken; other settings unchanged."""
        if not (name in _LISTS or _names_a_token(name)) or value is None or _is_added(value):
            return value
        if name in _LISTS and isinstance(value, list):
            return [self._one(file, name, token, special=special) for token in value]
        if name in _LISTS and isinstance(value, dict):
            return {role: self._one(file, role, token) for role, token in value.items()}
        if name in _LISTS:
            raise self._file_error(file, f"'{name}' must be a list of tokens, got {shown(value)}", name)
        return self._one(file, name, value, special=special)

    def _one(self, file: str, name: str, value: Any, *, special: bool = False) -> str | tokenizers.AddedToken:
        if isinstance(value, str):
            return value
        if _is_added(value):
            return cast("tokenizers.AddedToken", value)
        if not isinstance(value, dict):
            raise self._file_error(file, f"{quoted(name)} must be a token, got {shown(value)}", name)
        return self._token(file, name, value | ({"special": True} if special else {}))

    def _token(self, file: str, name: str, value: Any) -> tokenizers.AddedToken:
        """An AddedToken from a JSON object; missing flags have the library's defaults."""
        import tokenizers

        value = self._object(file, name, value)
        content, flags = value.get("content"), {flag: value[flag] for flag in _FLAGS if flag in value}
        if not isinstance(content, str) or not all(type(flag) is bool for flag in flags.values()):
            raise self._file_error(
                file, f"{quoted(name)}: {shown(value)} is not a token with its flags", name
            )
        return tokenizers.AddedToken(content, **flags)

    def _object(self, file: str, name: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._file_error(file, f"{quoted(name)} must be an object, got {shown(value)}", name)
        return value

    def _id(self, file: str, number: Any, text: str = "") -> int:
        if isinstance(number, str) and number.isascii() and number.isdecimal() and len(number) < 10:
            number = int(number)
        if type(number) is not int or not 0 <= number < 2**31:
            what = f"token {quoted(text)} has" if text else "'added_tokens_decoder' has"
            raise self._file_error(file, f"{what} the id {shown(number)}, expected an integer", text or None)
        return number

    def _file_error(self, file: str, text: str, field: str | None) -> BaseException:
        return file_error(FormatError, "tokenizer", self.folder / file, text, field=field)


def text_of(token: str | tokenizers.AddedToken) -> str:
    """The text of a token."""
    return token if isinstance(token, str) else token.content


def add_tokens(inner: tokenizers.Tokenizer, declared: Declared, path: str | os.PathLike[str]) -> None:
    """Add the tokens to `inner`, and set the flags of those that it has already.

    ConfigError `vocab` if a token then has an id other than the declared one.
    """
    import tokenizers

    present = inner.get_added_tokens_decoder().values()
    new: list[Any] = [token for _, token in sorted(declared.added.items())]
    known = {text_of(token) for token in (*present, *new)}
    for token in (*declared.named, *declared.extra):
        if text_of(token) not in known and token not in new:
            new.append(token)
    roles = {text_of(token) for token in declared.named}
    for i, token in enumerate(new):
        if isinstance(token, str):
            new[i] = tokenizers.AddedToken(token, special=True)
        elif token.content in roles:
            token.special = True
    inner.add_tokens(new)
    for number, token in declared.added.items():
        found = inner.token_to_id(token.content)
        if token.content and found != number:
            text = (
                f"added token {quoted(token.content)} has id {number:,}, but after the vocabulary and the "
                f"added tokens before it its id is {found:,}; ids must have no gaps and belong to one token"
            )
            raise file_error(ConfigError, "vocab", path, text, field=token.content)


def _roles(values: dict[str, Any]) -> dict[str, Any]:
    """Remove the roles beyond the usual ones, such as image_token, from `values` and return them."""
    found: dict[str, Any] = {}
    for name in list(values):
        value = values[name]
        if name in _LISTS and isinstance(value, dict):
            found |= values.pop(name)
        elif _names_a_token(name) and name not in _NAMED and (isinstance(value, str) or _is_added(value)):
            found[name] = values.pop(name)
    return found


def _names_a_token(field: str) -> bool:
    """True for bos_token and image_token, false for add_bos_token, which is a switch."""
    return field.endswith("_token") and not field.startswith("add_")


def _is_added(value: Any) -> bool:
    """True for an AddedToken."""
    return hasattr(value, "single_word")


def _read(path: Path, limits: Limits) -> dict[str, Any]:
    if not path.exists():
        return {}
    data = read_small(path, "max_tokenizer_bytes", limits=limits, code="tokenizer_limit")
    return parse_object(data, path, limits=limits)
