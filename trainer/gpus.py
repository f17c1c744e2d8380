"""GPUs by the names that people use, and their memory."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Final

from loradock.registry.errors import BadInput
from loradock.registry.machine import GIB

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(?:gib|gb|g)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU model."""

    name: str
    memory: int
    """Bytes, as its maker gives them, in GiB."""


KNOWN: Final = tuple(
    Gpu(name, gib * GIB)
    for name, gib in (
        *(("RTX 3060", 12), ("RTX 4070", 12), ("T4", 16), ("V100 16GB", 16), ("RTX 4080", 16), ("RTX 5080", 16)),
        *(("RTX 3090", 24), ("RTX 4090", 24), ("A10", 24), ("L4", 24), ("V100 32GB", 32), ("RTX 5090", 32)),
        *(("A100 40GB", 40), ("A40", 48), ("L40S", 48), ("RTX A6000", 48), ("RTX 6000 Ada", 48)),
        *(("A100 80GB", 80), ("H100", 80), ("RTX PRO 6000", 96), ("H200", 141), ("B200", 180), ("MI300X", 192)),
    )
)
COMMON: Final = ("T4", "RTX 4090", "A100 40GB", "L40S", "H100", "H200")
"""Those that are told when nobody asked for one, by memory."""


def find(text: str) -> Gpu:
    """The GPU that `text` names, or one of so many GiB (`24`, `24GiB`); raises BadInput with the nearest names."""
    if size := _SIZE.fullmatch(text.strip()):
        if float(size[1]) <= 0:
            raise BadInput(f"--gpu {text} is no memory", hint="give GiB, as in --gpu 24, or a name")
        return Gpu(f"{float(size[1]):g} GiB", round(float(size[1]) * GIB))
    plain = {_plain(gpu.name): gpu for gpu in KNOWN}
    wanted = _plain(text)
    if found := plain.get(wanted):
        return found
    if starts := [gpu for name, gpu in plain.items() if wanted and name.startswith(wanted)]:
        return min(starts, key=lambda gpu: gpu.memory)
    near = difflib.get_close_matches(wanted, plain, n=3, cutoff=0.4)
    names = [plain[name].name for name in near] or [gpu.name for gpu in KNOWN]
    raise BadInput(
        f"no GPU {text!r} is known here", hint=f"take {', '.join(names)}; or give its memory in GiB: --gpu 24"
    )


def _plain(name: str) -> str:
    found = re.sub(r"[^a-z0-9]", "", name.lower())
    for maker in ("nvidia", "geforce", "tesla", "amd"):
        found = found.removeprefix(maker)
    return found.removesuffix("pcie").removesuffix("sxm")
