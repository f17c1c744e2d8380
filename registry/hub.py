"""The Hugging Face Hub; the only file here that imports huggingface_hub."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from registry.artifact import CONFIG, WEIGHTS
from registry.errors import BadInput, NotFound, Unreachable
from registry.scratch import room

_MODEL_FILES: Final = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "*.txt")
_DATASET_FILES: Final = ("*.jsonl", "*.json", "*.csv", "*.parquet", "README.md")


def snapshot(repository: str, revision: str | None) -> Path:
    """A model repository's safetensors, configuration and tokenizer on this machine, in a directory named by commit.

    Pickled weights are never fetched. Raises NotFound or Unreachable.
    """
    return _snapshot(repository, revision, "model", _MODEL_FILES)


def adapter(repository: str, revision: str | None, *, pickled: bool) -> Path:
    """A repository's adapter on this machine, PEFT's two files alone, in a directory named by commit.

    Pickled weights are fetched where `pickled` asks for them. Raises BadInput, NotFound or Unreachable.
    """
    path = _snapshot(repository, revision, "model", (CONFIG, WEIGHTS, *(["adapter_model.bin"] if pickled else ())))
    if not (path / CONFIG).is_file():
        raise BadInput(
            f"{repository} on the Hub holds no {CONFIG} at its root",
            hint="where it lies deeper, fetch the repository and give that directory",
        )
    return path


def config(repository: str, revision: str | None) -> Path:
    """A directory with a model repository's config.json, and no weights. Raises NotFound or Unreachable."""
    return _snapshot(repository, revision, "model", ("config.json",))


def dataset_snapshot(repository: str, revision: str | None) -> Path:
    """A data set's rows and its README on this machine, in a directory named by commit.

    A loading script is never fetched. Raises NotFound or Unreachable.
    """
    return _snapshot(repository, revision, "dataset", _DATASET_FILES)


def _snapshot(repository: str, revision: str | None, kind: str, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    called = "data set" if kind == "dataset" else "model"
    try:
        with room(Path(HF_HUB_CACHE), hint="make room, or set HF_HOME to a directory that has some"):
            return Path(
                snapshot_download(repository, revision=revision, repo_type=kind, allow_patterns=list(patterns)),
            )
    except GatedRepoError as error:
        raise NotFound(
            f"the {called} {repository!r} is gated",
            hint="ask for access on its page on the Hub, and set HF_TOKEN to a token of that account",
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise NotFound(
            f"the Hub has no {called} {repository!r}" + (f" at {revision!r}" if revision else ""),
            hint="check its name; a gated or private one needs HF_TOKEN",
        ) from error
    except LocalEntryNotFoundError as error:
        raise Unreachable(
            f"the Hub cannot be reached, and {repository!r} is not in its local cache",
            hint="unset HF_HUB_OFFLINE, check the network, or give a directory",
        ) from error
    except HfHubHTTPError as error:
        raise Unreachable(
            f"the Hub does not hand out the {called} {repository!r}: it answers {error.response.status_code}",
            hint="try again later, check HF_TOKEN, or give a directory",
        ) from error
