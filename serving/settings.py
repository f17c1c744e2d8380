"""What a serving replica reads from the environment, beside `registry.settings`."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServingSettings(BaseSettings):
    """Read once, when the replica starts."""

    model_config = SettingsConfigDict(env_prefix="LORADOCK_SERVE_", frozen=True)

    poll_seconds: float = Field(default=1.0, gt=0, le=3600)
    """How often the registry is asked what is promoted; each wait varies by a fifth, so replicas do not ask in step."""
    drain_seconds: float = Field(default=300.0, ge=0, le=86400)
    """How long a version that nothing points at stays loaded after its last request; a rollback loads nothing."""
    retry_seconds: float = Field(default=30.0, gt=0, le=3600)
    """The first wait before a version that failed is tried again; it doubles each time."""
