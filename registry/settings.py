"""Settings from the environment. Everything has a default that works on one machine with no server."""

from __future__ import annotations

import getpass
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from loradock.registry.errors import BadInput
from loradock.registry.secret import from_files


class FromEnvironment(BaseSettings):
    """Settings whose meanings are their docstrings, and whose faults name the variable; raises BadInput.

    An empty variable is one that is not set. A secret may stand in a file, which NAME_FILE names.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        populate_by_name=True,
        env_ignore_empty=True,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,  # a traceback would show it
    )

    def __init__(self, **given: Any) -> None:
        from_files(os.environ)
        try:
            super().__init__(**given)
        except (ValidationError, SettingsError) as error:
            raise BadInput(
                f"invalid setting: {self._told(error)}",
                hint="change or unset it; `loradock settings` explains each",
            ) from error

    @classmethod
    def variables(cls) -> Mapping[str, FieldInfo]:
        """Each setting by the variable that it is read from."""
        return {cls._variable(name): field for name, field in cls.model_fields.items()}

    @classmethod
    def _variable(cls, name: str) -> str:
        field = cls.model_fields.get(name)  # pydantic names a field that has an alias by that
        if field is None:
            return name
        return str(field.validation_alias or f"{cls.model_config['env_prefix']}{name.upper()}")

    @classmethod
    def _told(cls, error: ValidationError | SettingsError) -> str:
        """Which variables, and what is wrong; not their values, since a secret may stand in the wrong one."""
        if isinstance(error, SettingsError):
            return str(error)
        faults = error.errors(include_url=False, include_input=False)
        return "; ".join(f"{cls._variable(str(fault['loc'][0]))}: {fault['msg']}" for fault in faults)


class Settings(FromEnvironment):
    """Read once, at the edge, by the command that needs them."""

    model_config = SettingsConfigDict(env_prefix="LORADOCK_")

    home: Path = Field(default=Path.home() / ".loradock")
    """The directory of the embedded MLflow store, its logs, and a replica's cache."""
    cache: Path = Field(default=Path.home() / ".cache" / "loradock")
    """The directory of what can be made again: converted base models, and the figures of plans."""
    tracking_uri: str = Field(default="", validation_alias="MLFLOW_TRACKING_URI", repr=False)
    """The MLflow server; unset, the embedded store under `LORADOCK_HOME`."""
    workspace: str = Field(default="", validation_alias="MLFLOW_WORKSPACE")
    """The workspace of that server; unset, its default one."""
    experiment: str = Field(default="loradock", validation_alias="MLFLOW_EXPERIMENT_NAME")
    """The MLflow experiment of training runs."""
    actor: str = Field(default_factory=getpass.getuser)
    """The name that histories record for a move; unset, the login name."""
    signing_key_file: Path | None = None
    """Your private Ed25519 key, as ssh-keygen writes it, which signs your entries in histories; unset, none."""
    keep: int = Field(default=10, ge=0)
    """How many of an adapter's newest versions, and of each alias's rollback targets, `gc` keeps."""
    replicas: str = Field(default="", repr=False)
    """The URLs of the serving replicas, comma-separated: nudged by moves, and asked by `gc`, `promote` and `show`."""
    api_key: SecretStr = Field(default=SecretStr(""), validation_alias="VLLM_API_KEY")
    """The API key that a replica requires, and that commands send."""

    @property
    def store_uri(self) -> str:
        """The tracking and registry URI in force."""
        return self.tracking_uri or f"sqlite:///{self.root / 'mlflow.db'}"

    @property
    def registry(self) -> str:
        """What tells one registry from another: a server has as many as it has workspaces."""
        return f"{self.store_uri} in workspace {self.workspace}" if self.workspace else self.store_uri

    @property
    def which(self) -> str:
        """What files below `home` that belong to one registry have in their names: another's must not be read."""
        return hashlib.sha256(self.registry.encode()).hexdigest()[:12]

    @property
    def replica_urls(self) -> tuple[str, ...]:
        """The replicas' URLs."""
        return tuple(url.strip() for url in self.replicas.split(",") if url.strip())

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
