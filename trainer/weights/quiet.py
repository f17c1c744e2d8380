"""The libraries below, made to speak of errors only."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import transformers

from registry.errors import LoradockError


@contextmanager
def quiet() -> Iterator[None]:
    """Show no warnings and no bars of theirs, and let a full memory leave as LoradockError."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    with warnings.catch_warnings():
        for library in ("transformers", "peft", "torch", "bitsandbytes"):
            warnings.filterwarnings("ignore", module=rf"{library}(\.|$)")
        try:
            yield
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise LoradockError("memory ran out", hint="take a machine that holds the base in float32") from error
