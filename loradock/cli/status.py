"""The `status` verb: parse, call, print."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Final

import click
from pydantic import SecretStr

from loradock.cli.command import Command
from loradock.cli.options import json_option, key_option, replicas_option
from loradock.cli.output import emit
from loradock.registry.errors import LoradockError, Unreachable
from loradock.registry.replicas import fetch_status
from loradock.registry.settings import Settings
from loradock.serving import fleet

_HERE: Final = "http://127.0.0.1:8000"


@click.command(cls=Command)
@replicas_option("A serving replica; give each.  [default: LORADOCK_REPLICAS, else port 8000 here]")
@key_option("The replicas' key, if they have one.")
@json_option
def status(urls: tuple[str, ...], api_key: SecretStr, as_json: bool) -> None:
    """Show the versions that serving replicas hold and answer with.

    Example:
      loradock status --replica http://127.0.0.1:8000

    Quarantined versions are shown too, and differences between the replicas.
    """
    urls = urls or Settings().replica_urls or (_HERE,)
    if len(urls) == 1:
        found = fetch_status(urls[0], api_key)
        emit(found.as_json() if as_json else fleet.page(found), as_json)
        return
    asked = _ask(urls, api_key)
    if as_json:
        emit(fleet.as_json(asked), as_json)
        return
    emit(fleet.replicas(asked), as_json, columns=fleet.COLUMNS)
    for rows, columns in ((fleet.answers(asked), fleet.ANSWERS), (fleet.troubles(asked), fleet.TROUBLES)):
        if rows:
            click.echo()
            emit(rows, as_json, columns=columns)


def _ask(urls: tuple[str, ...], api_key: SecretStr) -> list[fleet.Asked]:
    """All at once; raises Unreachable when none answers as a replica."""

    def ask(url: str) -> fleet.Asked:
        try:
            return fleet.Asked(url, fetch_status(url, api_key))
        except LoradockError as error:
            return fleet.Asked(url, None, str(error))

    with ThreadPoolExecutor(len(urls)) as pool:
        asked = list(pool.map(ask, urls))
    if not any(one.status for one in asked):
        raise Unreachable("; ".join(one.error for one in asked))
    return asked
