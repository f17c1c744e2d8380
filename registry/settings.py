"""Settings from the environment. Everything has a default that works on one machine with no server."""

from __future__ import annotations

import getpass
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Read once, at the edge, by the command that needs them."""

    model_config = SettingsConfigDict(env_prefix="LORADOCK_", frozen=True, populate_by_name=True)

    home: Path = Field(default=Path.home() / ".loradock")
    """Holds the embedded MLflow store (mlflow.db, artifacts/) and what a serving replica keeps."""
    cache: Path = Field(default=Path.home() / ".cache" / "loradock")
    """Holds what can be made again: base models that were converted."""
    tracking_uri: str = Field(default="", validation_alias="MLFLOW_TRACKING_URI")
    """MLflow's own variable; empty for the embedded store under `home`."""
    experiment: str = Field(default="loradock", validation_alias="MLFLOW_EXPERIMENT_NAME")
    """MLflow's own variable: the experiment that training runs go to."""
    actor: str = Field(default_factory=getpass.getuser)
    """Who moves aliases, as history tells it."""
    keep: int = Field(default=10, ge=0)
    """How many of an adapter's newest versions, and of each alias's versions to roll back to, `gc` leaves."""
    replicas: str = ""
    """The URLs of the serving replicas, with commas between; `gc` asks each what it holds."""

    @property
    def store_uri(self) -> str:
        """The tracking and registry URI in force."""
        return self.tracking_uri or f"sqlite:///{self.root / 'mlflow.db'}"

    @property
    def root(self) -> Path:
        """`home`, absolute."""
        return self.home.expanduser().absolute()

    @property
    def artifacts(self) -> Path:
        """Where the embedded store keeps artifacts."""
        return self.root / "artifacts"

    @property
    def bases(self) -> Path:
        """Base models that were converted here."""
        return self.cache.expanduser().absolute() / "bases"

    @property
    def trainings(self) -> Path:
        """Checkpoints of trainings that have not finished."""
        return self.root / "trainings"

    @property
    def adapters(self) -> Path:
        """Adapters fetched for serving, one read-only directory a digest."""
        return self.root / "adapters"
