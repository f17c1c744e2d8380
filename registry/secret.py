"""Secrets: which variables hold one, files in their place, and how a key goes to a server."""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from loradock.registry.errors import BadInput

VARIABLES: Final = (
    *("VLLM_API_KEY", "LORADOCK_SERVE_WEBHOOK_SECRET", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
    *("MLFLOW_TRACKING_URI", "HF_TOKEN"),
)
"""Variables that hold a secret, ours and those that MLflow's and the Hub's clients read; a URI may hold a password."""
SUFFIX: Final = "_FILE"
"""What a variable's name ends in that names the file of a secret."""

NO_KEY: Final = SecretStr("")

_LONGEST: Final = 65536  # bytes


def from_files(environ: MutableMapping[str, str]) -> None:
    """Set each variable that has a NAME_FILE to what that file holds, without the space around it; or none of them.

    NAME_FILE is taken out, so that processes that are begun from here read NAME alone. Raises BadInput, which quotes
    nothing: what stands in the wrong place may be the secret itself.
    """
    named = {name: path for name in VARIABLES if (path := environ.get(name + SUFFIX))}
    if both := [name for name in named if environ.get(name)]:
        raise BadInput(f"{both[0]} and {both[0]}{SUFFIX} are both set", hint="unset one of them")
    environ.update({name: _read(name + SUFFIX, Path(path)) for name, path in named.items()})
    for name in named:
        del environ[name + SUFFIX]


def _read(variable: str, path: Path) -> str:
    try:
        with path.expanduser().open("rb") as file:
            text = file.read(_LONGEST + 1).decode("utf-8").strip()
    except UnicodeDecodeError:
        raise _unusable(variable, "is no text") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: of a home that nobody has
        raise _unusable(variable, f"cannot be read: {getattr(error, 'strerror', None) or 'no such home'}") from None
    if not text or len(text) > _LONGEST or not text.isprintable():
        raise _unusable(variable, "is empty, or holds more than one line of text")
    return text


def _unusable(variable: str, why: str) -> BadInput:
    return BadInput(f"the file that {variable} names {why}", hint="put the secret into it, and nothing else")


def bearer(key: SecretStr) -> dict[str, str]:
    """The header that carries a key; none for an empty one."""
    return {"Authorization": f"Bearer {key.get_secret_value()}"} if key.get_secret_value() else {}
