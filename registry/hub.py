"""The Hugging Face Hub; the only file here that imports huggingface_hub."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from loradock.registry.artifact import CONFIG, WEIGHTS
from loradock.registry.errors import BadInput, Conflict, LoradockError, NotFound, Unreachable
from loradock.registry.outside import weight_map
from loradock.registry.scratch import room

log = logging.getLogger(__name__)

_MODEL_FILES: Final = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "*.txt")
_DATASET_FILES: Final = ("*.jsonl", "*.json", "*.csv", "*.parquet", "README.md")


def snapshot(repository: str, revision: str | None, *, here: bool = False) -> Path:
    """A model repository's safetensors, configuration and tokenizer on this machine, in a directory named by commit.

    Pickled weights are never fetched. With `here` the Hub is asked for nothing. Raises NotFound or Unreachable.
    """
    path = _snapshot(repository, revision, "model", _MODEL_FILES, here=here)
    if here and not _has_weights(path):
        raise _not_here(repository)
    return path


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


def _has_weights(path: Path) -> bool:
    """Whether a snapshot in the cache has them all: other programs, and a broken download, leave a part of it."""
    places = weight_map(path)
    return any(path.glob("*.safetensors")) if places is None else all(map(Path.is_file, {*places.values()}))


def _not_here(repository: str) -> NotFound:
    return NotFound(f"the model {repository!r} of the Hub is not on this machine, or not all of it")


def _snapshot(
    repository: str, revision: str | None, kind: str, patterns: tuple[str, ...], *, here: bool = False
) -> Path:
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
                snapshot_download(
                    repository,
                    revision=revision,
                    repo_type=kind,
                    allow_patterns=list(patterns),
                    local_files_only=here,
                )
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
        if here:
            raise _not_here(repository) from error
        raise Unreachable(
            f"the Hub cannot be reached, and {repository!r} is not in its local cache",
            hint="unset HF_HUB_OFFLINE, check the network, or give a directory",
        ) from error
    except HfHubHTTPError as error:
        raise Unreachable(
            f"the Hub does not hand out the {called} {repository!r}: it answers {error.response.status_code}",
            hint="try again later, check HF_TOKEN, or give a directory",
        ) from error


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit of a repository."""

    id: str
    text: str
    """Its title and what it says below."""


@dataclass(frozen=True, slots=True)
class Repository:
    """A model repository as its branch `main` stands."""

    name: str
    private: bool
    files: Mapping[str, str]
    """By path: the SHA-256 of what the Hub keeps as a large file, and git's SHA-1 of any other."""
    commits: tuple[Commit, ...]
    """Newest first; there is always one, since the Hub begins each repository with `.gitattributes`."""


def ready() -> None:
    """Raise Unreachable where the Hub is switched off, and BadInput where there is no token to write to it with."""
    from huggingface_hub import get_token
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        raise Unreachable("HF_HUB_OFFLINE is set, and publishing needs the Hub", hint="unset it")
    if not get_token():
        raise BadInput(
            "the Hub requires a token, and none is set",
            hint="set HF_TOKEN to one that may write (https://huggingface.co/settings/tokens), or `hf auth login`",
        )


def repository(name: str) -> Repository | None:
    """A model repository, what it holds and its commits; None for one that is not there, or not for this token."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi()
    with _translated(name):
        try:
            found = api.model_info(name, revision="main", files_metadata=True)
            commits = api.list_repo_commits(name, revision=found.sha)
        except RepositoryNotFoundError:
            return None
    files = {file.rfilename: file.lfs.sha256 if file.lfs else str(file.blob_id) for file in found.siblings or ()}
    told = tuple(Commit(commit.commit_id, f"{commit.title}\n{commit.message}") for commit in commits)
    return Repository(name, bool(found.private), files, told)


def create(name: str, *, private: bool) -> None:
    """Make a model repository; one that is there stays as it is."""
    from huggingface_hub import HfApi

    with _translated(name):
        HfApi().create_repo(name, private=private, exist_ok=True)


def commit(
    name: str, files: Mapping[str, Path | bytes], *, without: frozenset[str], parent: str, title: str, message: str
) -> str:
    """Put files into a repository and take others out, in one commit after `parent`; returns its id.

    Raises Conflict when there is another commit after that by now, BadInput, NotFound, and Unreachable, after which
    the commit may have been made all the same.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    changes: list[CommitOperationAdd | CommitOperationDelete] = []
    changes += [CommitOperationAdd(path, content) for path, content in files.items()]
    changes += [CommitOperationDelete(path) for path in sorted(without)]
    with _translated(name, parent), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        made = HfApi().create_commit(
            name, changes, commit_message=title, commit_description=message, parent_commit=parent
        )
    for warning in said:
        log.warning("warning: %s", " ".join(str(warning.message).split()))
    return str(made.oid)


def read(name: str, path: str, revision: str) -> bytes:
    """A small file of a model repository. Raises NotFound or Unreachable."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    with _translated(name):
        try:
            return Path(hf_hub_download(name, path, revision=revision or None)).read_bytes()
        except LocalEntryNotFoundError as error:
            raise Unreachable(f"the Hub does not hand out {path} of {name}", hint=_AGAIN) from error
        except EntryNotFoundError as error:
            raise NotFound(f"{name} on the Hub has no {path}") from error


def card(metadata: Mapping[str, Any], text: str) -> str:
    """A model card: the metadata as the Hub's client writes and reads it, then Markdown. Raises BadInput."""
    from huggingface_hub import ModelCard, ModelCardData

    try:
        written = ModelCard(f"---\n{ModelCardData(**metadata).to_yaml()}\n---\n\n{text}")
    except ValueError as error:
        raise BadInput(f"the model card's metadata cannot be: {error}") from error
    return str(written)


def validate(text: str) -> None:
    """Let the Hub check a model card's metadata; raises BadInput with each fault that it names."""
    from huggingface_hub import ModelCard

    with _translated("the model card"):
        try:
            ModelCard(text).validate()
        except ValueError as error:
            raise _card_fault(str(error)) from error


def licence(name: str, revision: str) -> Mapping[str, str]:
    """What a model's own card says of its licence: `license`, and the name and link of one that has no id."""
    from huggingface_hub import ModelCard

    try:
        told = ModelCard(read(name, "README.md", revision).decode(), ignore_metadata_errors=True).data
    except (NotFound, ValueError):
        return {}
    wanted = ("license", "license_name", "license_link")
    return {key: told.get(key) for key in wanted if isinstance(told.get(key), str)}


def _card_fault(answer: str) -> BadInput:
    try:
        faults = [str(fault["message"]) for fault in json.loads(answer)["errors"]]
    except (ValueError, KeyError, TypeError):
        faults = answer.splitlines()[:5]
    return BadInput(
        "the Hub does not take the model card",
        problems=faults,
        hint="--license takes an id of https://hf.co/docs/hub/repositories-licenses, --base-model a model of the Hub",
    )


@contextmanager
def _translated(name: str, parent: str = "") -> Iterator[None]:
    """Let errors of the Hub's client leave as ours; what it logs of its retries would show the URLs of uploads."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError  # type: ignore[attr-defined]
    from huggingface_hub.utils.tqdm import disable_progress_bars

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    except HFValidationError as error:
        raise BadInput(f"{name!r} is no repository's name", hint="write it as ORG/NAME") from error
    except (HTTPError, RuntimeError, ConnectionError, TimeoutError, json.JSONDecodeError) as error:
        # The client wraps what goes wrong in the upload of a file; through Xet it leaves as Python's own errors.
        cause = error.__cause__ if type(error) is RuntimeError else error
        if isinstance(cause, HfHubHTTPError):
            raise _told(name, cause.response.status_code, parent) from error
        what = "does not answer as the Hub does" if isinstance(cause, ValueError) else "cannot be reached"
        raise Unreachable(f"the Hub {what}: {type(cause).__name__}", hint=_AGAIN) from error
    except PermissionError as error:
        if error.filename is not None:
            raise
        raise _told(name, 401, parent) from error
    except ValueError as error:
        raise LoradockError(f"the Hub does not take it: {' '.join(str(error).split())}") from error


_AGAIN: Final = "check the network and HF_ENDPOINT, then run it again: it looks first at what was done"


def _told(name: str, status: int, parent: str) -> LoradockError:
    """An answer of the Hub's as one of our errors."""
    if status in (409, 412):
        conflict = Conflict(f"{name} on the Hub", expected=parent[:12] or "rest", found="another commit")
        conflict.hint = "somebody wrote to it meanwhile: check it, then run this again"
        return conflict
    if status == 404:
        return NotFound(f"the Hub has no model {name!r} for this token", hint="check its name and the token's rights")
    if status == 400:
        return BadInput(f"the Hub does not take what was sent for {name}", hint="`--debug` shows its answer")
    reasons = {
        401: ("does not know the token", "set HF_TOKEN to a valid one that may write, or `hf auth login`"),
        403: (f"does not give this token the right to {name}", "take a token that may write there, or another --repo"),
        429: ("asks to wait", "run it again in some minutes"),
    }
    why, hint = reasons.get(status, ("answers with an error", _AGAIN))
    return Unreachable(f"the Hub {why} ({status})", hint=hint)
