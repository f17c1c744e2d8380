"""A base's safetensors files: read one tensor at a time, written anew one file at a time."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from loradock.registry.artifact import TensorInfo, read_header
from loradock.registry.outside import INDEX, inside, weight_map
from loradock.trainer.weights.readers import readable, readable_tokenizer

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_BESIDE: Final = (".json", ".jinja", ".model", ".tiktoken", ".txt")
_NOT_BESIDE: Final = (INDEX, "pytorch_model.bin.index.json", "manifest.json")
_NAMES: Final = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_SPARE: Final = 64 * 2**20  # bytes for a tokenizer and what else is small


class Shards:
    """The weights in a base's directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @cached_property
    def files(self) -> Mapping[str, Mapping[str, TensorInfo]]:
        """By file, its tensors; raises BadInput for a damaged one."""
        places = weight_map(self.directory)
        paths = self.directory.glob("*.safetensors") if places is None else {*places.values()}
        return {path.name: read_header(path) for path in sorted(paths)}

    @cached_property
    def places(self) -> Mapping[str, str]:
        """The file that each tensor lies in."""
        return {name: file for file, tensors in self.files.items() for name in tensors}

    @cached_property
    def dtype(self) -> str:
        """The precision of most of the weights."""
        sizes = dict.fromkeys(_NAMES, 0)
        for tensors in self.files.values():
            for info in tensors.values():
                if info.dtype in sizes:
                    sizes[info.dtype] += math.prod(info.shape)
        return _NAMES[max(sizes, key=lambda kind: sizes[kind])]

    def read(self, name: str) -> torch.Tensor:
        """One tensor, by its name, which is in `places`."""
        with safe_open(self.directory / self.places[name], framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def size(self, dtype: str) -> int:
        """Bytes of all files with the weights in `dtype`, at most."""
        width = torch.empty(0, dtype=DTYPES[dtype]).element_size()
        return _SPARE + sum(
            width * math.prod(info.shape) if info.dtype in _NAMES else info.stop - info.start
            for tensors in self.files.values()
            for info in tensors.values()
        )

    def rewrite(
        self, out: Path, changed: Callable[[str], torch.Tensor | None], dtype: str, more: Mapping[str, str]
    ) -> None:
        """Write every tensor to `out`, as `changed` gives it, or as it is for None; one file is in memory at a time.

        `more` names further tensors, each with the one that it is a copy of but for what `changed` gives.
        """
        total, places = 0, dict[str, str]()
        copies = {source: name for name, source in more.items()}
        for file, names in self.files.items():
            tensors = {}
            for name in names:
                before = self.read(name)
                kind = DTYPES[dtype] if before.is_floating_point() else before.dtype
                after = changed(name)
                tensors[name] = (before if after is None else after).to(kind).contiguous()
                if name in copies:
                    after = changed(copies[name])
                    tensors[copies[name]] = (before if after is None else after).to(kind, copy=True).contiguous()
            save_file(tensors, inside(out, file, what="the base", deep=False), metadata={"format": "pt"})
            places |= dict.fromkeys(tensors, file)
            total += sum(tensor.nbytes for tensor in tensors.values())
        if (self.directory / INDEX).is_file() or len(self.files) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
            (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def copy_beside(self, out: Path, config: Mapping[str, object]) -> None:
        """Copy tokenizer, generation configuration and chat template; config.json gets these keys of `config`.

        What older readers look for elsewhere is written there too.
        """
        for path in sorted(self.directory.iterdir()):
            beside = path.suffix in _BESIDE or path.name.upper().startswith(("LICENSE", "NOTICE"))
            if path.is_file() and beside and path.name not in _NOT_BESIDE:
                shutil.copyfile(path, out / path.name)
        found = json.loads((self.directory / "config.json").read_text(encoding="utf-8"))
        found.pop("torch_dtype", None)
        _write(out / "config.json", readable(found | config))
        if (tokenizer := out / "tokenizer_config.json").is_file():
            _write(tokenizer, readable_tokenizer(json.loads(tokenizer.read_text(encoding="utf-8"))))


def _write(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
