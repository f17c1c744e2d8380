"""The file of API keys: who may call what, and how much. It holds hashes, never a secret.

A secret is 256 random bits, so its plain SHA-256 can be stored: nobody finds such a secret by trying, and a slow hash,
as for passwords that people think up, would only cost every request.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError
from pydantic import model_validator as validates
from pydantic_core import to_json

from loradock.registry import scratch
from loradock.registry.errors import BadInput, NotFound, faults_of
from loradock.serving.quota import Limit

BASE: Final = "@base"
"""How a key names the base model, whatever it is called on the endpoint."""
EVERYTHING: Final = "**"
"""How a key names every adapter in every form, and the base."""

OWN: Final = "vllm-api-key"
"""The name of the keys that vLLM itself was given, which stand in no file."""

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_PATTERN: Final = re.compile(r"[a-z0-9._*-]+(@[a-z0-9*-]+|/[0-9*]+)?")


def _pattern(text: object) -> str:
    if not isinstance(text, str) or (text not in (BASE, EVERYTHING) and not _PATTERN.fullmatch(text)):
        raise ValueError(
            f"{text!r} names no models; write NAME, NAME@ALIAS or NAME/NUMBER, with * for any part, or {BASE}, "
            f"or {EVERYTHING} for all"
        )
    return text


_Limits = tuple[Annotated[Limit, BeforeValidator(Limit.parse), PlainSerializer(str)], ...]


class Key(BaseModel):
    """One key: whom it knows by the hash of their secret, what they may call, and how much."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    may: tuple[Annotated[str, BeforeValidator(_pattern)], ...] = ()
    """What it may call, as requests name it: `support-*` plain names, `support-*@*` aliases, `support-*/*` versions."""
    requests: _Limits = ()
    tokens: _Limits = ()
    """Of prompts and answers together."""
    admin: bool = False
    """Whether it may ask the routes that change how the server runs; it may call everything, too."""
    expires: AwareDatetime | None = None

    def allows(self) -> re.Pattern[str] | None:
        """What the names that it may call look like; None where that is every name."""
        if self.admin or EVERYTHING in self.may:
            return None
        return re.compile("|".join("[^@/]*".join(map(re.escape, pattern.split("*"))) for pattern in self.may) or "(?!)")

    def expired(self, now: datetime) -> bool:
        """Whether its time is over."""
        return self.expires is not None and self.expires <= now


class KeyFile(BaseModel):
    """All keys, by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: dict[str, Key] = {}

    @validates(mode="after")
    def _tell_apart(self) -> KeyFile:
        if wrong := [name for name in self.keys if not _NAME.fullmatch(name) or name == OWN]:
            raise ValueError(f"no key can be named {', '.join(map(repr, wrong))}; use 1 to 63 of a-z 0-9 . _ -")
        if len({key.sha256 for key in self.keys.values()}) < len(self.keys):
            raise ValueError("two keys have the same hash, so their requests cannot be told apart")
        return self


def parse(data: bytes, *, what: str) -> KeyFile:
    """The keys in a file's bytes; raises BadInput with every fault, none of which quotes a hash.

    An empty file is one that something emptied, or has not written yet; one that has no keys says so: `{}`.
    """
    if not data.strip(b" \t\r\n\0"):
        raise BadInput(f"{what} is empty", hint="a file that admits nobody contains {}")
    try:
        return KeyFile.model_validate_json(data)
    except ValidationError as error:
        raise BadInput(f"{what} holds no keys that can be used", problems=faults_of(error)) from None


def read(path: Path) -> KeyFile:
    """The keys in a file; raises NotFound where there is none, BadInput for one that cannot be meant."""
    try:
        return parse(path.read_bytes(), what=str(path))
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {path}", hint="`loradock keys --add NAME` makes it") from error
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error


def add(path: Path, name: str, **facts: object) -> str:
    """Write a new key into a file, and return its secret, which is kept nowhere.

    Raises BadInput for a name that is taken, and for what a key cannot be.
    """
    secret = f"ldk-{secrets.token_urlsafe(32)}"
    with _changing(path) as keys:
        if name in keys:
            raise BadInput(f"there is a key {name!r} in {path} already", hint="remove it first, or choose another name")
        keys[name] = {"sha256": digest(secret).hex(), **facts}
    return secret


def remove(path: Path, name: str) -> None:
    """Take a key out of a file; raises NotFound."""
    with _changing(path) as keys:
        if name not in keys:
            raise NotFound(f"there is no key {name!r} in {path}", hint="`loradock keys` lists them")
        del keys[name]


def digest(secret: str) -> bytes:
    """What is stored of a secret."""
    return hashlib.sha256(secret.encode()).digest()


@contextmanager
def _changing(path: Path) -> Iterator[dict[str, object]]:
    """The keys of a file, written back whole by one rename; a second writer waits, and who could read it still can."""
    target = path.resolve()  # a link stays, and leads to the new file
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.with_name(f".{target.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            keys: dict[str, object] = {**read(target).keys} if target.exists() else {}
            yield keys
            text = parse(to_json({"keys": keys}), what="this").model_dump_json(indent=2, exclude_defaults=True)
            mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o600
            scratch.replace(target, f"{text}\n", mode=mode)
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror}") from error
