"""What decides an answer beside a base's weights: its tokenizer, its chat template, its settings of generation.

These are digested by what they mean and not by their bytes: the same tokenizer that another library saved is the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from loradock.registry.records import TextSettings, Version, canonical_json

log = logging.getLogger(__name__)

_VOCABULARIES: Final = (
    *("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model"),
    *("tekken.json", "tiktoken.model", "added_tokens.json"),
)
"""What tokenizers without a tokenizer.json are read from."""
_CALLS: Final = ("version", "truncation", "padding")
"""Parts of tokenizer.json that belong to a call, or to the software."""
_MEANING: Final = (
    *("tokenizer_class", "add_bos_token", "add_eos_token", "add_prefix_space", "do_lower_case", "legacy"),
    *("clean_up_tokenization_spaces", "spaces_between_special_tokens", "bos_token", "eos_token", "unk_token"),
)
_SPECIAL: Final = ("bos_token", "eos_token", "unk_token")
_PLAIN: Final = ("PreTrainedTokenizer", "TokenizersBackend")
"""Classes that take tokenizer.json as it is."""
_NO_CHOICE: Final = (
    *("transformers_version", "_from_model_config", "_commit_hash", "use_cache", "cache_implementation"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate"),
    *("bos_token_id", "pad_token_id"),
)
"""Keys of generation_config.json that choose no token, and end no answer."""


def settings_of(directory: Path) -> TextSettings:
    """Those of a base's directory; a file that is not there says nothing, as one that cannot be read."""
    config = _json(directory / "tokenizer_config.json") or {}
    return TextSettings(
        tokenizer=_tokenizer(directory, config),
        template=_digest(_template(directory, config)),
        generation=_digest(generation_of(directory)),
    )


def beside(directory: Path, base: Path) -> tuple[str, ...]:
    """Names of what lies beside an adapter and is other than the base's; what is not there is the base's."""
    config = _json(directory / "tokenizer_config.json") or {}
    theirs = settings_of(directory)
    known = {"tokenizer": theirs.tokenizer, "template": theirs.template if _template(directory, config) else ""}
    return TextSettings(**known).unlike(settings_of(base))


def unlike(version: Version, here: TextSettings) -> str:
    """Words for what is other here than where a version was trained; empty without such, or where it is not known."""
    names = version.facts.text.unlike(here)
    return f"{version.ref} was trained with another {' and '.join(names)} than its base has here" if names else ""


def warn(version: Version, base: Path) -> None:
    """Log these words of a base's directory."""
    if version.facts.text != TextSettings() and (words := unlike(version, settings_of(base))):
        log.warning("warning: %s", words)


def generation_of(directory: Path) -> dict[str, Any]:
    """What is said of how tokens are chosen; a base without the file is one that says nothing."""
    found = _json(directory / "generation_config.json") or {}
    return {key: value for key, value in found.items() if value is not None and key not in _NO_CHOICE}


def _template(directory: Path, config: Mapping[str, Any]) -> str:
    """The template that chats are written in, found in transformers' order; empty where there is none."""
    found: Any
    try:
        found = (directory / "chat_template.jinja").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        found = (_json(directory / "chat_template.json") or config).get("chat_template") or ""
    if isinstance(found, list):  # several by name
        found = next((each.get("template") for each in found if each.get("name") == "default"), "")
    return str(found).removesuffix("\n")  # as Jinja has it


def _tokenizer(directory: Path, config: Mapping[str, Any]) -> str:
    special = _json(directory / "special_tokens_map.json") or {}
    meant: dict[str, Any] = {key: special[key] for key in _SPECIAL if key in special}
    meant |= {key: config[key] for key in _MEANING if config.get(key) is not None}
    for key in _SPECIAL:
        if isinstance(token := meant.get(key), dict):
            meant[key] = token.get("content")
    kind = str(meant.get("tokenizer_class", "")).removesuffix("Fast")
    meant["tokenizer_class"] = "" if kind in _PLAIN else kind
    files = {name: raw for name in ("tokenizer.json", *_VOCABULARIES) if (raw := _bytes(directory / name)) is not None}
    digests: dict[str, Any] = {name: hashlib.sha256(raw).hexdigest() for name, raw in files.items()}
    seen = _digest([digests, meant])
    if seen not in _known:
        inner = _parsed(files.get("tokenizer.json"))
        digests.pop("tokenizer.json", None)
        found = digests if inner is None else {key: value for key, value in inner.items() if key not in _CALLS}
        _known[seen] = _digest([found, meant]) if found else ""  # there is none
    return _known[seen]


_known: Final[dict[str, str]] = {}
"""Digests by meaning of what was read already, by that of the bytes: a tokenizer.json is parsed once in a process."""


def _json(path: Path) -> dict[str, Any] | None:
    return _parsed(_bytes(path))


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _parsed(raw: bytes | None) -> dict[str, Any] | None:
    try:
        found = json.loads((raw or b"").decode())
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
