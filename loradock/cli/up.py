"""The `up` verb: parse, call, and say where things are."""

from __future__ import annotations

import click

from loradock.cli.command import Command
from loradock.registry.errors import BadInput
from loradock.registry.settings import Settings

_PORT = click.IntRange(1, 65535)


@click.command(cls=Command)
@click.option("--base", help="The base model to serve.  [default: that of the promoted adapters]")
@click.option("--port", default=8000, show_default=True, type=_PORT, help="The replica's port.")
@click.option("--ui-port", default=5000, show_default=True, type=_PORT, help="The port of MLflow's UI.")
@click.option("--no-serve", is_flag=True, help="Start MLflow's UI alone.")
@click.argument("vllm_args", nargs=-1, type=click.UNPROCESSED)
def up(base: str | None, port: int, ui_port: int, no_serve: bool, vllm_args: tuple[str, ...]) -> None:
    """Bring up MLflow's UI and a serving replica on this machine's store, until Ctrl-C.

    Example:
      loradock up --base Qwen/Qwen2.5-0.5B-Instruct

    Both listen on this machine only, and write their logs to LORADOCK_HOME/logs. Without --base, and with nothing
    promoted, the UI starts alone. VLLM_ARGS, after a `--`, are passed to vLLM unchanged.
    """
    if no_serve and (base or vllm_args):
        raise BadInput("--base and VLLM_ARGS do nothing with --no-serve")
    from contextlib import nullcontext

    from rich.console import Console

    from loradock.serving import up as stack

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    settings = Settings()
    parts = stack.plan(stack.Wish(base, port, ui_port, not no_serve, vllm_args), settings)
    serves = any(part.name == stack.REPLICA for part in parts)
    console.print(f"the store is {settings.root}", markup=False)
    for part in parts:
        console.print(f"starting {part.name}; its log is {part.log}", markup=False)

    def told(part: stack.Part) -> None:
        if part.name == stack.UI:
            console.print(f"[bold]{part.name}[/] is at {part.url}")
            if not serves and not no_serve:
                console.print("nothing is promoted, so there is nothing to serve; --base BASE serves a base already")
            return
        console.print(f"[bold]{part.name}[/] answers at {part.url}/v1")
        if waiting := stack.waiting_for(part):
            console.print(
                f"not yet with what is promoted of {', '.join(waiting)}: loradock status --replica {part.url}"
            )
        console.print(_next(part.url, settings), markup=False)

    with console.status("starting") if console.is_terminal else nullcontext():
        stack.run(parts, told)
    console.print("stopped")


def _next(url: str, settings: Settings) -> str:
    key = ' -H "Authorization: Bearer $VLLM_API_KEY"' if settings.api_key.get_secret_value() else ""
    return f"""next, in another terminal:
  loradock status --replica {url}
  loradock train RECIPE; loradock register RUN --name NAME; loradock promote NAME/1
  curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} \\
    -d '{{"model": "NAME", "messages": [{{"role": "user", "content": "Hello"}}]}}'
Ctrl-C stops it all"""
