"""The verbs that list, show and compare: parse, call, print."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from loradock.registry import diff as differences
from loradock.registry import lineage, promotion, refs, replicas
from loradock.registry.cli.completion import complete_name, complete_ref
from loradock.registry.cli.output import emit, emit_tree, json_option, say
from loradock.registry.cli.shared import row
from loradock.registry.distance import Distance
from loradock.registry.errors import BadInput, DigestMismatch
from loradock.registry.records import Version
from loradock.registry.settings import Settings
from loradock.registry.standing import standing
from loradock.registry.store import Family, Store
from loradock.registry.store.families import owned

_COLUMNS = ("version", "aliases", "method", "rank", "base", "created", "servable")


@click.command("list")
@click.argument("name", required=False, shell_complete=complete_name)
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="Versions on a page.")
@click.option("--before", type=click.IntRange(1), metavar="NUMBER", help="The page of versions below this one.")
@click.option("--after", type=click.IntRange(0), metavar="NUMBER", help="The page of versions above this one.")
@json_option
def list_(name: str | None, limit: int, before: int | None, after: int | None, as_json: bool) -> None:
    """List adapters with their aliases, or one adapter's versions, newest first."""
    store = Store(Settings())
    if name is None:
        if before or after is not None:
            raise BadInput("--before and --after need a NAME", hint="they are pages of one adapter's versions")
        rows = [{"name": family.name, "aliases": dict(family.aliases)} for family in store.families()]
        emit(rows, as_json, columns=("name", "aliases"))
        return
    if before is not None and after is not None:
        raise BadInput("--before and --after exclude each other")
    family = owned(store.family(refs.parse_name(name)))
    page = store.page(family.name, limit=limit, before=before, after=after)
    emit([_row(family, version) for version in page], as_json, columns=_COLUMNS)
    if len(page) == limit and page[-1].ref.number > 1 and after is None:
        say(f"older ones: loradock list {family.name} --before {page[-1].ref.number}")


@click.command()
@click.argument("ref", shell_complete=complete_ref)
@json_option
def show(ref: str, as_json: bool) -> None:
    """Show all that is known of one version, where it comes from and what became of it.

    REF is NAME/NUMBER, NAME@ALIAS, or NAME, which means NAME@production. The replicas in LORADOCK_REPLICAS are asked
    what they do with it.
    """
    settings = Settings()
    store = Store(settings)
    version = promotion.resolve(store, refs.parse_ref(ref))
    kin = lineage.kin(store, version)
    graph = lineage.graph(kin)
    facts = {
        "version": str(version.ref),
        "aliases": list(kin.aliases),
        **version.model_dump(mode="json", exclude={"ref"}),
        "reference": _reference(store, version),
    }
    text = facts["facts"]["text"]
    text |= {name: digest or "unknown" for name, digest in text.items()}
    if settings.replica_urls:
        facts["replicas"] = {
            url: status if isinstance(status, str) else standing(version, status)
            for url, status in replicas.statuses(settings).items()
        }
    emit(facts | {"graph": graph.row()} if as_json else facts, as_json)
    if not as_json:
        emit_tree(lineage.tree(graph))


def _reference(store: Store, version: Version) -> str | None:
    """The digest of its reference; one that changed counts for nothing, here as on a replica, and is told."""
    try:
        found = store.find_reference(version.facts.digest, version.facts.base)
    except DigestMismatch as error:
        say(f"warning: {error}\n  -> {error.hint}")
        return None
    return found.digest if found else None


@click.command()
@click.argument("a", shell_complete=complete_ref)
@click.argument("b", shell_complete=complete_ref)
@json_option
def diff(a: str, b: str, as_json: bool) -> None:
    """Show what two versions differ in, and how far apart they are.

    A and B are versions or aliases, of one adapter or of two. The bytes of both are hashed first. A distance is the
    Frobenius norm of the difference between what the two add to the base, relative to what A adds.
    """
    store = Store(Settings())
    one, other = (promotion.resolve(store, refs.parse_ref(ref)) for ref in (a, b))
    found = differences.compare(store, one, other)
    if as_json:
        emit(found.model_dump(mode="json"), as_json)
        return
    emit(list(_changes(found)), as_json, columns=("what", *found.versions))
    if found.weights.why_not:
        say(f"their weights are not compared: {found.weights.why_not}")
    for besides in found.weights.besides:
        say(f"not in the distances: {besides}")
    if found.weights.total:
        emit([_distance(module) for module in (*found.weights.modules, found.weights.total)], as_json, columns=_APART)


_APART = ("module", "distance", "cosine", "norm", "other norm")


def _distance(found: Distance) -> dict[str, str | None]:
    numbers = (found.distance, found.cosine, *found.norms)
    texts = (None if number is None else f"{number:.4g}" for number in numbers)
    return dict(zip(_APART, (found.module, *texts), strict=True))


def _changes(found: differences.Difference) -> Iterator[dict[str, Any]]:
    for group in ("facts", "base", "recipe", "data", "metrics", "config"):
        changed: Mapping[str, differences.Pair] = getattr(found, group)
        for key, pair in changed.items():
            yield {"what": f"{group}.{key}", **dict(zip(found.versions, pair, strict=True))}
    for run_id in found.runs_gone:
        yield {"what": f"run {run_id} is gone: its recipe, data and metrics are not known"}


def _row(family: Family, version: Version) -> dict[str, Any]:
    aliases = sorted(alias for alias, number in family.aliases.items() if number == version.ref.number)
    checked = {"servable": version.servable, "findings": list(version.findings), "doubts": list(version.doubts)}
    return row(version) | {"aliases": aliases} | checked
