"""The `show` verb: parse, call, print."""

from __future__ import annotations

import click

from loradock.cli.command import Command
from loradock.cli.completion import complete_ref
from loradock.cli.options import json_option
from loradock.cli.output import emit, emit_tree
from loradock.registry import lineage, promotion, refs, replicas
from loradock.registry.errors import DigestMismatch
from loradock.registry.output import say
from loradock.registry.records import Version
from loradock.registry.settings import Settings
from loradock.registry.standing import standing
from loradock.registry.store import Store


@click.command(cls=Command)
@click.argument("ref", shell_complete=complete_ref)
@json_option
def show(ref: str, as_json: bool) -> None:
    """Show all that is known of one version, where it comes from and what became of it.

    Example:
      loradock show support-bot@production

    REF is NAME/NUMBER, NAME@ALIAS, or NAME, which means NAME@production. The state of the version on each replica
    in LORADOCK_REPLICAS is shown too.
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
