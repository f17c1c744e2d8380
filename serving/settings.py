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
    """How often the registry is asked what is promoted; each wait varies by a fifth, so replicas do not ask in step."""
    drain_seconds: float = Field(default=300.0, ge=0, le=86400)
    """How long a version that nothing points at stays loaded after its last request; a rollback loads nothing."""
    retry_seconds: float = Field(default=30.0, gt=0, le=3600)
    """The first wait before a version that failed is tried again; it doubles each time."""
    aliases: str = f"{PRODUCTION},{CANARY}"
    """The aliases that clients may ask for as NAME@ALIAS, with commas between."""
    pinned: int = Field(default=0, ge=0)
    """How many versions that no alias serves may be asked for at once, as NAME/3; 0 refuses such names."""
    cold_seconds: float = Field(default=60.0, gt=0, le=3600)
    """How long a request waits at most for a version that has to be loaded first."""
    stop_seconds: float = Field(default=30.0, ge=0, le=3600)
    """How long requests in flight may take to end after a SIGTERM."""
    proof: Literal["parity", "effect"] = "parity"
    """What a version must show before it takes traffic: `effect`, that it changes what the base says; `parity`, also
    that it says what PEFT says with it."""
    cache_gib: float | None = Field(default=None, gt=0)
    """How much the adapters kept on disk may take, in GiB: the least recently used go, but for what is promoted or
    loaded. Unset, they go when the disk is full."""
    keys: Path | None = None
    """The file of API keys; without it and without vLLM's own key, only this machine may call, or all with `--open`."""
    webhook_secret: SecretStr = SecretStr("")
    """What MLflow signs its webhooks to /loradock/nudge with; without it, only callers with a key can nudge."""
    body_mib: float = Field(default=32.0, gt=0, le=1024)
    """How long the body of a request may be, in MiB."""
    metrics_open: bool = True
    """Whether /metrics needs no key."""
    metrics_adapters: int = Field(default=100, ge=1)
    """How many adapters have series of their own in /metrics; what comes later is counted under `_other`."""

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
