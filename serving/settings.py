"""What a serving replica reads from the environment, beside `loradock.registry.settings`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from loradock.registry.errors import BadInput
from loradock.registry.refs import CANARY, PRODUCTION, SHADOW, parse_alias
from loradock.registry.settings import FromEnvironment


class ServingSettings(FromEnvironment):
    """Read once, when the replica starts."""

    model_config = SettingsConfigDict(env_prefix="LORADOCK_SERVE_")

    poll_seconds: float = Field(default=1.0, gt=0, le=3600)
    """Seconds between two polls of the registry; varied by a fifth, so that replicas do not poll in step."""
    drain_seconds: float = Field(default=300.0, ge=0, le=86400)
    """Seconds that a version stays loaded after its last request once no name points at it, for a rollback."""
    retry_seconds: float = Field(default=30.0, gt=0, le=3600)
    """Seconds until a quarantined version is tried again; doubles at each failure."""
    aliases: str = f"{PRODUCTION},{CANARY}"
    """The aliases that clients may request as NAME@ALIAS, comma-separated."""
    pinned: int = Field(default=0, ge=0)
    """How many versions without a served alias may be requested at once, as NAME/3; 0 refuses such names."""
    cold_seconds: float = Field(default=60.0, gt=0, le=3600)
    """Seconds that a request waits at most for a cold version."""
    stop_seconds: float = Field(default=30.0, ge=0, le=3600)
    """Seconds that requests in flight may take after a SIGTERM."""
    proof: Literal["parity", "effect"] = "parity"
    """What a version must prove before it serves: `effect`, that its output differs from the base's; `parity`, also
    that it matches its PEFT reference."""
    cache_gib: float | None = Field(default=None, gt=0)
    """Size limit of the adapters on disk, in GiB: the least recently used are deleted, except promoted and loaded ones.
    Unset, adapters are deleted when the disk is full."""
    keys: Path | None = None
    """The file of API keys; without it and vLLM's own key only this machine may call, or everyone with `--open`."""
    webhook_secret: SecretStr = SecretStr("")
    """The secret that signs MLflow's webhooks to /loradock/nudge; without it, only callers with a key can nudge."""
    body_mib: float = Field(default=32.0, gt=0, le=1024)
    """Size limit of a request's body, in MiB."""
    metrics_open: bool = True
    """Whether /metrics is open without a key."""
    metrics_adapters: int = Field(default=100, ge=1)
    """How many adapters have their own series in /metrics; further ones are counted under `_other`."""

    @field_validator("aliases")
    @classmethod
    def _are_aliases(cls, text: str) -> str:
        for alias in filter(None, map(str.strip, text.split(","))):
            try:
                parse_alias(alias)
            except BadInput as error:
                raise ValueError(str(error)) from error
        return text

    @property
    def public(self) -> frozenset[str]:
        """The aliases that clients may ask for."""
        return frozenset(filter(None, map(str.strip, self.aliases.split(","))))

    @property
    def cache_bytes(self) -> int | None:
        """How much the adapters kept on disk may take; None for as much as there is."""
        return None if self.cache_gib is None else int(self.cache_gib * 2**30)

    @property
    def followed(self) -> frozenset[str]:
        """The aliases that the registry is read for."""
        return self.public | {PRODUCTION, CANARY, SHADOW}
