"""What others wrote: their names of files joined to a directory, and their words quoted, in one way each."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Final

from loradock.registry.errors import BadInput

QUOTED: Final = 200
"""The most characters of a file, or of a name from outside, that a message has."""
INDEX: Final = "model.safetensors.index.json"

_LONGEST_PART: Final = 255  # bytes, of one part of a path: what file systems take
_LONGEST_NAME: Final = 1024  # characters
_LONGEST_INDEX: Final = 64 * 2**20  # bytes; that of a model with 100,000 tensors has 10

_SHORT: Final = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = QUOTED
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 20


def inside(directory: Path, name: object, *, what: str, deep: bool = True) -> Path:
    """A file in `directory`, by the name that `what` gives it; raises BadInput for one that is not plainly below it.

    A name is relative, with `/` between its parts, and written in one way only: no part is `.`, `..` or empty. Without
    `deep` it has one part. Links are not looked at: the Hub's cache is made of them.
    """
    if not isinstance(name, str) or not _is_plain(name, deep=deep):
        raise BadInput(f"{what} names a file outside its own directory: {quoted(name)}")
    return directory / name


def _is_plain(name: str, *, deep: bool) -> bool:
    parts = PurePosixPath(name).parts
    return (
        "/".join(parts) == name
        and not name.startswith("/")
        and 0 < len(parts) <= (len(name) if deep else 1)
        and len(name) <= _LONGEST_NAME
        and not any(part == ".." or len(part.encode(errors="replace")) > _LONGEST_PART for part in parts)
        and not any(char == "\\" or ord(char) < ord(" ") or 0xD800 <= ord(char) < 0xE000 for char in name)
    )


def weight_map(directory: Path) -> Mapping[str, Path] | None:
    """The file of each of a model's tensors, by its index; None where it has no index. Raises BadInput.

    A file lies beside the index and is safetensors: only such files are looked at where a base is told apart.
    """
    index = directory / INDEX
    if not index.is_file():
        return None
    try:
        if index.stat().st_size > _LONGEST_INDEX:
            raise BadInput(f"{index} is larger than any model's")
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"].items()
        files = {name: inside(directory, name, what=str(index), deep=False) for name in {file for _, file in places}}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(f"{index} is damaged") from error
    if others := [name for name in files if not name.endswith(".safetensors")]:
        raise BadInput(f"{index} names what is no .safetensors file: {quoted(others[0])}")
    return {name: files[file] for name, file in places}


def printable(text: str, most: int = QUOTED) -> str:
    """A text without control characters, cut to `most` characters."""
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text[: most + 1])
    return shown if len(shown) <= most else f"{shown[:most]}..."


def quoted(value: object) -> str:
    """A value as Python writes it, cut short: what a file holds, or what somebody called something."""
    return printable(repr(value[: QUOTED + 1]) if isinstance(value, str) else _SHORT.repr(value))
