"""Work on weights: the libraries silent, and a full memory as one clear line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from loradock.registry.errors import LoradockError
from loradock.trainer import quiet as libraries


@contextmanager
def quiet() -> Iterator[None]:
    """Show no warnings and no bars of the libraries, and let a full memory leave as LoradockError."""
    with libraries.quiet():
        try:
            yield
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise LoradockError("memory ran out", hint="take a machine that holds the base in float32") from error
