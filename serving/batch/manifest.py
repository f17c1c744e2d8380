"""What a run was asked for and which versions it answers by, beside its output: what a later start is held against."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ValidationError

from loradock.registry.errors import BadInput
from loradock.registry.records import Base, Record, TextSettings, Version

RESTART: Final = "--overwrite answers every row again; or give another --output"
_ANYHOW: Final = frozenset(
    {
        *("--block-size", "--cpu-offload-gb", "--enforce-eager", "--gpu-memory-utilization", "--kv-cache-memory-bytes"),
        *("--max-cpu-loras", "--max-num-batched-tokens", "--max-num-seqs", "--pipeline-parallel-size"),
        *("--tensor-parallel-size",),
    }
)
"""vLLM's options that say how much of the machine it takes: a run that did not fit goes on with other ones."""


class Manifest(Record):
    """One run."""

    format: Literal[1] = 1
    input: str
    """SHA-256 of the input file."""
    rows: int
    base: Base
    text: TextSettings = TextSettings()
    """The base's; not known of a run of an older loradock."""
    model: str
    """Whom rows ask that name nobody; empty for the base."""
    settings: dict[str, Any]
    """What rows get that do not say otherwise."""
    vllm: tuple[str, ...]
    """vLLM's options, without those that only say how much of the machine it takes."""
    versions: dict[str, Version]
    """What each alias and version that the rows ask for was resolved to, once, when the run began."""
    started_at: datetime


def path_for(output: Path) -> Path:
    """Where the manifest of the run with this output is."""
    return output.with_name(f"{output.name}.manifest.json")


def load(output: Path) -> Manifest | None:
    """The manifest beside an output, or None; raises BadInput for one that cannot be read."""
    path = path_for(output)
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise BadInput(f"{path} cannot be read as the manifest of a run", hint=RESTART) from error


def save(output: Path, manifest: Manifest) -> None:
    """Write it whole, or not at all."""
    path = path_for(output)
    scratch = path.with_name(f".{path.name}")
    with scratch.open("w", encoding="utf-8") as file:
        file.write(manifest.model_dump_json(indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def refuse_another(output: Path, begun: Manifest, asked: Manifest) -> None:
    """Raise BadInput where a run that was begun is not the one that is asked for now."""
    before, now = _settings(begun), _settings(asked)
    changed = [name for name in before | now if before.get(name) != now.get(name)]
    if not begun.base.same_weights(asked.base):
        changed.append("the base")
    changed += (f"the base's {name}" for name in begun.text.unlike(asked.text))
    if changed:
        raise BadInput(f"{output} belongs to a run with other settings; changed: {', '.join(changed)}", hint=RESTART)


def _settings(manifest: Manifest) -> dict[str, Any]:
    options = {f"--{name.replace('_', '-')}": value for name, value in manifest.settings.items()}
    return {"the input": manifest.input, "--model": manifest.model, **options, "vLLM's options": manifest.vllm}


def lasting(arguments: Sequence[str]) -> tuple[str, ...]:
    """Options of vLLM, without those that only say how much of the machine it takes."""
    kept: list[str] = []
    keeps = True
    for word in arguments:
        if word.startswith("--"):
            keeps = word.partition("=")[0].replace("_", "-") not in _ANYHOW
        if keeps:
            kept.append(word)
    return tuple(kept)
