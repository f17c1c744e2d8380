"""A function of the user's, out of a Python file of his own."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loradock.registry.errors import BadInput, NotFound, first_line


def load(path: Path, name: str, *, hint: str) -> Callable[..., Any]:
    """The function `name` of a Python file, which is run; raises NotFound, with `hint`, or BadInput."""
    if not path.is_file():
        raise NotFound(f"there is no file {path}", hint=hint)
    spec = importlib.util.spec_from_file_location(f"loradock_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise BadInput(f"{path} is no Python module")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a user's module raises what it likes
        raise BadInput(f"{path} cannot be loaded: {type(error).__name__}: {first_line(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise BadInput(f"{path} has no function {name}")
    found: Callable[..., Any] = function
    return found
