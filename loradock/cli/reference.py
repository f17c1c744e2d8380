"""The `reference` verb: parse, call, print."""

from __future__ import annotations

from typing import Any

import click

from loradock.cli.command import Command
from loradock.cli.options import json_option, trained_on_option
from loradock.cli.output import emit
from loradock.registry import promotion, recording, refs
from loradock.registry.errors import NotServable
from loradock.registry.output import say
from loradock.registry.records import Version
from loradock.registry.settings import Settings
from loradock.registry.store import Store


@click.command(cls=Command)
@click.argument("ref")
@click.option("--all", "every", is_flag=True, help="REF is a name: record every servable version of that adapter.")
@trained_on_option
@json_option
def reference(ref: str, every: bool, base: str | None, as_json: bool) -> None:
    """Record the PEFT reference of a version.

    Example:
      loradock reference support-bot/3

    REF is NAME/NUMBER, NAME@ALIAS, or NAME, which means NAME@production. The reference holds the log-probabilities
    that PEFT computes with the version on fixed prompts. A replica compares its own with them before it serves the
    version. `register` and `import` record it; this verb is for versions that were made without one, for example on a
    machine without torch. A reference that exists stays as it is.
    """
    store = Store(Settings())
    found = _every(store, refs.parse_name(ref)) if every else (_servable(store, ref),)
    recording.record(store, found, say, base)
    emit([_row(store, version) for version in found], as_json, columns=("version", "digest", "reference"))


def _every(store: Store, name: str) -> tuple[Version, ...]:
    store.family(name)
    return tuple(version for version in store.versions(name) if not version.findings)


def _servable(store: Store, ref: str) -> Version:
    version = promotion.resolve(store, refs.parse_ref(ref))
    if version.findings:
        raise NotServable(str(version.ref), version.findings)
    return version


def _row(store: Store, version: Version) -> dict[str, Any]:
    facts = version.facts
    found = store.find_reference(facts.digest, facts.base)
    return {"version": str(version.ref), "digest": facts.digest, "reference": found.digest if found else None}
