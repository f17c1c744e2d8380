"""The libraries below, made to speak of errors only."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import transformers

_LIBRARIES = ("transformers", "trl", "peft", "torch", "accelerate", "datasets", "bitsandbytes")


@contextmanager
def quiet() -> Iterator[None]:
    """Show no warnings and no bars of theirs."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    with warnings.catch_warnings():
        for library in _LIBRARIES:
            warnings.filterwarnings("ignore", module=rf"{library}(\.|$)")
        yield
