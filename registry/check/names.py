"""The names of an adapter's tensors: as PEFT writes them, and as wrappers, other tools and accidents leave them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

ROOT: Final = "base_model.model."
"""What PEFT puts before the name of every module."""

_LAST = re.compile(r"(?:\.(?:base_layer|token_adapter|modules_to_save|original_module))?\.[^.]+$")
_WRAPPER = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_PATTERNS: Final = (
    re.compile(
        r"(?P<module>.+)\.lora_(?P<part>[AB])(?:\.(?!weight$|bias$)(?P<adapter>[^.]+))?(?P<end>\.weight|\.bias|)"
    ),
    re.compile(r"(?P<module>.+)\.lora_(?P<part>embedding_[AB])(?:\.(?P<adapter>[^.]+))?(?P<end>)"),
    re.compile(
        r"(?P<module>.+)\.lora_(?P<part>magnitude_vector)(?:\.(?!weight$)(?P<adapter>[^.]+))?(?P<end>(?:\.weight)?)"
    ),
)


@dataclass(frozen=True, slots=True)
class TensorName:
    """A tensor's name, taken apart."""

    module: str
    """The base's module that it belongs to; for a foreign tensor, its whole name below PEFT's prefix."""
    part: str
    """`A`, `B`, `embedding_A`, `embedding_B`, `bias`, `magnitude_vector`, or nothing for a foreign tensor."""
    faults: tuple[str, ...] = ()
    """Codes of what PEFT would not have written."""
    own: str = ""
    """The module as the name itself has it, with whatever wraps it there."""

    @property
    def owner(self) -> str:
        """The base's module that a tensor belongs to which is no LoRA matrix."""
        return self.module if self.part else _LAST.sub("", self.module)

    @property
    def side(self) -> str:
        """`A` or `B` for a LoRA matrix, of a linear layer or of an embedding; nothing for anything else."""
        return self.part[-1] if self.part in ("A", "B", "embedding_A", "embedding_B") else ""

    def written(self, module: str = "") -> str:
        """The name that PEFT gives it; with `module`, as that module's."""
        end = {"A": ".lora_A.weight", "B": ".lora_B.weight", "bias": ".lora_B.bias"}
        end[""] = self.module.removeprefix(self.owner)
        return f"{ROOT}{module or self.owner}{end.get(self.part, f'.lora_{self.part}')}"


def parse(name: str) -> TensorName:
    """Take a tensor's name apart; every name can be."""
    faults = []
    bare = _WRAPPER.sub("", name)
    unwrapped = bare.removeprefix("module.")
    inner = unwrapped.removeprefix(ROOT)
    if inner == unwrapped:
        faults.append("prefix-missing")
    elif inner.startswith(ROOT):
        faults.append("prefix-doubled")
        while inner.startswith(ROOT):
            inner = inner.removeprefix(ROOT)
    module = inner.removeprefix("module.")
    if bare != name or unwrapped != bare or module != inner:
        faults.append("wrapper-in-names")
    for pattern in _PATTERNS:
        if match := pattern.fullmatch(module):
            part = "bias" if match["end"] == ".bias" else match["part"]
            if match["adapter"] or (part in ("A", "B") and not match["end"]):
                faults.append("adapter-in-names")
            inside = name.rpartition(ROOT)[2]
            kept = inside[: inside.rfind(".lora_")]
            return TensorName(match["module"], part, tuple(faults), kept)
    return TensorName(module, "")


def parse_all(names: Iterable[str]) -> Mapping[str, TensorName]:
    """Every name, taken apart, but for the `__metadata__` of a header."""
    return {name: parse(name) for name in names}
