"""The verb that answers a file of prompts: parse, call, print."""

from __future__ import annotations

from pathlib import Path

import click

from loradock.cli.command import Command
from loradock.cli.options import base_option, json_option
from loradock.cli.output import emit
from loradock.registry.errors import BadInput
from loradock.registry.output import say
from loradock.registry.settings import Settings


@click.command(cls=Command)
@base_option(required=True)
@click.option(
    "--input",
    "prompts",
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Rows as JSONL: model, prompt or messages; or OpenAI's batch format.",
)
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file of answers, in the order of the input; written once every row is answered.",
)
@click.option("--model", default="", metavar="REF", help="The model for rows that name none.  [default: the base]")
@click.option(
    "--max-tokens",
    default=256,
    show_default=True,
    type=click.IntRange(1),
    metavar="NUMBER",
    help="The longest answer, for rows that set none.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(0, 2),
    metavar="NUMBER",
    help="For rows that set none.  [default: the base's]",
)
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="NUMBER",
    help="For rows that set none.  [default: the base's]",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    metavar="NUMBER",
    help="For rows that set none.",
)
@click.option(
    "--stop", multiple=True, metavar="TEXT", help="A text that ends an answer, for rows that set none.  [repeatable]"
)
@click.option(
    "--max-loras",
    type=click.IntRange(1),
    metavar="NUMBER",
    help="Adapters in one batch.  [default: as many as the input names, up to 16]",
)
@click.option("--retry-failed", is_flag=True, help="Answer the rows again that ended in an error.")
@click.option("--overwrite", is_flag=True, help="Delete the output of an earlier run, and answer every row.")
@json_option
@click.argument("vllm_args", nargs=-1, type=click.UNPROCESSED)
def generate(
    base: str,
    prompts: Path,
    output: Path,
    model: str,
    max_tokens: int,
    temperature: float | None,
    top_p: float | None,
    seed: int | None,
    stop: tuple[str, ...],
    max_loras: int | None,
    retry_failed: bool,
    overwrite: bool,
    as_json: bool,
    vllm_args: tuple[str, ...],
) -> None:
    """Answer a file of prompts with many adapters, offline.

    Example:
      loradock generate --base Qwen/Qwen2.5-0.5B-Instruct --input prompts.jsonl --output answers.jsonl

    VLLM_ARGS, after a `--`, are passed to vLLM unchanged. Each name in the input is resolved once; the manifest
    beside the output lists the versions. After an interruption, the same command continues where it stopped.
    """
    from loradock.serving.batch import Job, Sampling, run
    from loradock.serving.settings import ServingSettings

    if overwrite and retry_failed:
        raise BadInput("--retry-failed does nothing with --overwrite", hint="--overwrite answers every row")
    sampling = Sampling(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=list(stop) if stop else None
    )
    job = Job(
        base, prompts, output, model, sampling, max_loras, overwrite, retry_failed, vllm_args, ServingSettings().proof
    )
    done = run(job, Settings())
    if done.failed:
        say(f"{done.failed} rows have an error for an answer; --retry-failed tries them again")
    emit(done.model_dump(mode="json"), as_json)
