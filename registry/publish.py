"""Publishing a version to the Hugging Face Hub: the bytes that were registered and a card, in one commit.

The commit's message names the digest. So the Hub itself says whether a version was published, whatever became of the
command that did it, and whether the newest commit of a repository is ours or somebody else's.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from loradock.registry import artifact, hub, hubcard, versions
from loradock.registry.base import is_hub_id
from loradock.registry.errors import BadInput, Conflict, LoradockError, NotFound, Refused, Unreachable
from loradock.registry.hub import Repository
from loradock.registry.hubcard import MERGED, Told
from loradock.registry.outside import inside
from loradock.registry.records import Manifest, Record, Version
from loradock.registry.store import Store
from loradock.registry.store.lineage import Publication

log = logging.getLogger(__name__)

_CARD: Final = "README.md"
_MARK: Final = "loradock-digest: "
"""What stands before the digest in a commit's message."""
_LOCAL = re.compile(r"(/|~|[A-Za-z]:[\\/]).*")


@dataclass(frozen=True, slots=True)
class Wish:
    """Where to publish, and how."""

    repo: str
    public: bool = False
    licence: str = ""
    """Its id on the Hub; empty for the base's own."""
    base_model: str = ""
    """The base's ORG/NAME on the Hub; empty for where it was loaded from."""
    forced: str = ""
    """Why to write into a repository whose newest commit is somebody else's; empty not to."""


class Published(Record):
    """A version on the Hub."""

    version: str
    digest: str
    repo: str
    commit: str
    private: bool
    new: bool
    """Whether this made the commit; False where the version was there already."""


def merged_from(store: Store, version: Version) -> Version:
    """The newest model that a version was folded into its base as; raises NotFound."""
    found = [child for ref in store.children(version.ref) if (child := store.version(ref)).facts.method == MERGED]
    if not found:
        raise NotFound(
            f"there is no merged model of {version.ref}", hint=f"make one first: loradock merge {version.ref}"
        )
    return max(found, key=lambda child: child.created_at)


def publish(store: Store, version: Version, wish: Wish, *, now: datetime) -> Published:
    """Publish a version, once: what the repository holds already is not committed again.

    Its bytes are hashed first. Killed at any step, it can be called again. Raises BadInput, DigestMismatch, Refused
    for a repository that is not ours to write to, Conflict when somebody wrote to it meanwhile, and Unreachable.
    """
    if not is_hub_id(wish.repo) or "@" in wish.repo:
        raise BadInput(f"{wish.repo!r} is no repository's name", hint="write it as ORG/NAME")
    if wish.base_model and (not is_hub_id(wish.base_model) or "@" in wish.base_model):
        raise BadInput(f"{wish.base_model!r} is no model's name on the Hub", hint="write it as ORG/NAME")
    hub.ready()
    with versions.fetched(store, version) as directory:
        manifest = artifact.verify(directory, version.facts.digest, what=str(version.ref))
        found, new = hub.repository(wish.repo), False
        if found is None or not _holds(found, directory, manifest):
            _permitted(found, wish)
            found, new = _committed(store, version, wish, directory, manifest, found)
    return _recorded(store, version, found, new=new, now=now, forced=wish.forced)


def _permitted(found: Repository | None, wish: Wish) -> None:
    """Raise Refused where a repository is not ours to write to."""
    if found is None:
        return
    if not found.private and not wish.public:
        raise Refused(f"{found.name} is public", hint="--public publishes there for all to see; else another --repo")
    if found.private and wish.public:
        log.warning("warning: %s stays private: it is made public on its page on the Hub", found.name)
    newest = found.commits[0]
    if set(found.files) <= {".gitattributes"} or _MARK in newest.text or wish.forced:
        return
    title = newest.text.splitlines()[0]
    raise Refused(
        f"the newest commit of {found.name} is not loradock's: {newest.id[:12]}, {title!r}",
        hint="take another --repo; --force --reason WHY writes over the files of the same names, and leaves the others",
    )


def _committed(
    store: Store, version: Version, wish: Wish, directory: Path, manifest: Manifest, found: Repository | None
) -> tuple[Repository, bool]:
    """Make the commit, and look at what the Hub holds then; whether the commit is ours."""
    told = _told(store, version, wish)
    card = hub.card(hubcard.metadata(told), hubcard.text(told))
    hub.validate(card)
    for name, path in _local_paths(directory):
        log.warning("warning: %s publishes a path of a local machine: %s", name, path)
    if found is None:
        hub.create(wish.repo, private=not wish.public)
        found = _there(wish.repo)
        _permitted(found, wish)
    files: dict[str, Path | bytes] = {
        name: inside(directory, name, what=str(version.ref)) for name in (*_names(manifest), artifact.MANIFEST)
    }
    try:
        hub.commit(
            wish.repo,
            files | {_CARD: card.encode()},
            without=frozenset(_stale(found) - files.keys() - {_CARD}),
            parent=found.commits[0].id,
            title=f"Publish {version.ref}",
            message=f"{_MARK}{version.facts.digest}",
        )
    except (Conflict, Unreachable) as error:
        after = _there(wish.repo)
        if not _holds(after, directory, manifest):
            raise
        return after, isinstance(error, Unreachable)  # the answer was lost, or another published the same
    after = _there(wish.repo)
    if not _holds(after, directory, manifest):
        raise LoradockError(
            f"{wish.repo} does not hold what was published to it",
            hint="see whether a .gitignore in it leaves files out, or somebody wrote to it just now; run it again",
        )
    return after, True


def _recorded(store: Store, version: Version, found: Repository, *, new: bool, now: datetime, forced: str) -> Published:
    """Write the publication into the version's lineage, unless it stands there."""
    digest = version.facts.digest
    made = next((commit.id for commit in found.commits if _MARK + digest in commit.text), found.commits[0].id)
    if (found.name, made) not in {(one.repo, one.revision) for one in store.publications(version.ref)}:
        store.add_publication(version.ref, Publication(repo=found.name, revision=made, at=now, forced=forced))
    return Published(
        version=str(version.ref), digest=digest, repo=found.name, commit=made, private=found.private, new=new
    )


def _there(repo: str) -> Repository:
    found = hub.repository(repo)
    if found is None:
        raise Refused(f"{repo} is somebody else's, and this token cannot see it", hint="take another --repo")
    return found


def _names(manifest: Manifest) -> list[str]:
    """The files to publish: all but a card of the version's own, whose place ours takes."""
    return [entry.path for entry in manifest.files if entry.path != _CARD]


def _holds(found: Repository, directory: Path, manifest: Manifest) -> bool:
    """Whether a repository has every file of a version, byte for byte."""
    expected = {entry.path: entry.sha256 for entry in manifest.files}
    expected[artifact.MANIFEST] = manifest.digest

    def same(name: str) -> bool:
        there = found.files.get(name, "")
        return there == (expected[name] if len(there) == 64 else _git_hash(inside(directory, name, what="it")))

    return all(same(name) for name in (*_names(manifest), artifact.MANIFEST))


def _git_hash(path: Path) -> str:
    """The name that git gives to a file's content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _stale(found: Repository) -> set[str]:
    """The files of the version that a repository holds now."""
    if artifact.MANIFEST not in found.files:
        return set()
    try:
        content = hub.read(found.name, artifact.MANIFEST, found.commits[0].id).decode()
        manifest = artifact.parse_manifest(content, what=found.name)
    except (BadInput, UnicodeDecodeError):  # one of the same name that says something else
        return set()
    return {entry.path for entry in manifest.files} & set(found.files)


def _told(store: Store, version: Version, wish: Wish) -> Told:
    base = version.facts.base
    base_model = wish.base_model or (base.id if base.revision else "")
    revision = base.revision if base_model == base.id else ""
    if not base_model:
        log.warning("warning: %s is not on the Hub, so the card has no base_model: --base-model names it", base.id)
    return Told(
        version=version,
        repo=wish.repo,
        licence=_licence(wish, base_model, revision),
        base_model=base_model,
        base_revision=revision,
        evidence=store.find_evidence(version.ref.name, version.facts.digest),
        parameters=store.parameters_of(version.facts.run_id),
    )


def _licence(wish: Wish, base_model: str, revision: str) -> Mapping[str, str]:
    """The licence that was given, or the base's own; raises BadInput where neither is known."""
    if wish.licence:
        return {"license": wish.licence}
    found = hub.licence(base_model, revision) if base_model else {}
    if "license" not in found:
        where = f"the card of {base_model} names none" if base_model else "the base is not on the Hub"
        raise BadInput(f"a card needs a licence, and {where}", hint="--license ID, for example --license apache-2.0")
    return found


def _local_paths(directory: Path) -> Iterator[tuple[str, str]]:
    """Paths on a machine that a configuration holds: they are part of the digest, and cannot be taken out."""
    for name in (artifact.CONFIG, "config.json"):
        path = directory / name
        if path.is_file():
            yield from ((name, text) for text in _texts(json.loads(path.read_text(encoding="utf-8"))))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str) and _LOCAL.fullmatch(value):
        yield value
    elif isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(inner)
