"""The `serve` verb: parse, call, print."""

from __future__ import annotations

import click

from loradock.cli.command import Command
from loradock.cli.options import base_option
from loradock.registry.settings import Settings


@click.command(cls=Command)
@base_option(required=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535), help="The port to listen on.")
@click.option(
    "--max-loras",
    type=click.IntRange(1),
    metavar="NUMBER",
    help="Adapters in one batch; during a move, the old and the new version both count.  "
    "[default: 4 to 16, by what is promoted]",
)
@click.option(
    "--adapter-memory",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GIB",
    help="Memory for adapters, in batches and in CPU cache slots.  [default: an eighth of the machine's]",
)
@click.option(
    "--open",
    "open_",
    is_flag=True,
    help="Serve without API keys: anyone who reaches --host can call every model.",
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

    Example:
      loradock serve --base Qwen/Qwen2.5-0.5B-Instruct -- --max-model-len 4096

    VLLM_ARGS, after a `--`, are passed to vLLM unchanged. Each adapter answers under its own name, the base under
    the last part of its own. After a promotion, the next request gets the new version, without a restart. With a
    --host that other machines can reach, it starts only with API keys (`loradock keys`) or --open.
    """
    from loradock.serving.launch import ServeOptions, serve

    serve(ServeOptions(base, host, port, max_loras, vllm_args, adapter_memory, open_), Settings())
