"""The Hugging Face Hub; the only file here that imports huggingface_hub."""

from __future__ import annotations

from pathlib import Path

from registry.errors import NotFound, Unreachable


def snapshot(repository: str, revision: str | None) -> Path:
    """A model repository's safetensors, configuration and tokenizer on this machine, in a directory named by commit.

    Pickled weights are never fetched. Raises NotFound or Unreachable.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "*.txt"],
            )
        )
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise NotFound(
            f"the Hub has no model {repository!r}" + (f" at {revision!r}" if revision else ""),
            hint="check its name; a gated or private model needs HF_TOKEN",
        ) from error
    except LocalEntryNotFoundError as error:
        raise Unreachable(
            f"the Hub cannot be reached, and {repository!r} is not in its local cache",
            hint="unset HF_HUB_OFFLINE, check the network, or give a directory",
        ) from error
