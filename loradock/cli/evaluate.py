"""The `evaluate` verb: parse, call, print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from pydantic import SecretStr

from loradock.cli.command import Command
from loradock.cli.completion import complete_ref
from loradock.cli.openmp import quieten
from loradock.cli.options import is_typed, json_option, key_option, limit_option, no_samples_option, trained_on_option
from loradock.cli.output import emit
from loradock.registry import refs
from loradock.registry.errors import BadInput
from loradock.registry.evidence import PERPLEXITY, Interval, Subject
from loradock.registry.output import say
from loradock.registry.settings import Settings
from loradock.trainer.evaluation import metrics
from loradock.trainer.evaluation.task import Task, prepare

if TYPE_CHECKING:
    from loradock.trainer.evaluation.run import Outcome

_SUBJECTS: tuple[Subject, ...] = ("candidate", "incumbent", "base")


@click.command(cls=Command)
@click.argument("ref", shell_complete=complete_ref)
@click.option("--data", required=True, help="Held-out rows: a file, a directory, or ORG/NAME on the Hub.")
@click.option(
    "--metric",
    "names",
    multiple=True,
    default=("loss",),
    show_default=True,
    metavar="NAME",
    help="loss, perplexity, exact_match, rouge, or FILE.py:FUNCTION[:lower]; [repeatable]",
)
@click.option("--against", metavar="ALIAS", help="The alias of the incumbent.  [default: production]")
@trained_on_option
@click.option("--replica", metavar="URL", help="Ask this serving replica instead of loading the model here.")
@key_option("The replica's key, if it has one.")
@click.option("--max-new-tokens", type=click.IntRange(1), help="The longest answer, in tokens.  [default: 256]")
@limit_option
@no_samples_option
@json_option
def evaluate(
    ref: str,
    data: str,
    names: tuple[str, ...],
    against: str | None,
    base: str | None,
    replica: str | None,
    api_key: SecretStr,
    max_new_tokens: int | None,
    limit: int | None,
    no_samples: bool,
    as_json: bool,
) -> None:
    """Measure a version, the incumbent and the base on the same rows.

    Example:
      loradock evaluate support-bot/3 --data heldout.jsonl --metric loss --metric rouge

    REF is NAME/NUMBER, NAME@ALIAS, or NAME, which means NAME@production. The results, row by row, are logged to
    MLflow as evidence for the adapter's policy. Loss is in nats per token of the completions.
    """
    wanted = metrics.parse(names)
    if max_new_tokens and all(metric.score is None for metric in wanted):
        raise BadInput("--max-new-tokens does nothing with --metric loss", hint="no answer is generated for it")
    if is_typed("api_key") and not replica:
        raise BadInput("--api-key does nothing without --replica")
    version = refs.parse_ref(ref)
    alias = refs.parse_alias(against) if against else None
    quieten()
    task = Task(version, data, wanted, alias, base, replica, api_key, max_new_tokens or 256, limit, not no_samples)
    case = prepare(task, Settings(), say)
    from loradock.trainer.evaluation import run

    outcome = run.evaluate(case, say)
    if as_json:
        emit(_whole(outcome), as_json)
        return
    emit(_rows(outcome), as_json, columns=("metric", *_SUBJECTS, "less incumbent", "less base"))
    say(f"evaluation {outcome.evidence.run_id} of {outcome.version.ref} is in MLflow")


def _whole(outcome: Outcome) -> dict[str, Any]:
    evidence = outcome.evidence
    return {
        "evaluation": evidence.run_id,
        "version": str(outcome.version.ref),
        "digest": evidence.candidate,
        "incumbent": str(outcome.incumbent.ref) if outcome.incumbent else None,
        "base": outcome.version.facts.base.id,
        "rows": len(evidence.weights),
        "data_digest": evidence.data_digest,
        "through": evidence.through,
        "seconds": round(outcome.seconds, 1),
        "metrics": {
            name: {
                **{subject: _rounded(evidence.value(name, subject)) for subject in _SUBJECTS},
                **{
                    f"less_{subject}": {key: _rounded(value) for key, value in found.model_dump().items()}
                    for (metric, subject), found in outcome.differences.items()
                    if metric == name
                },
            }
            for name in _names(outcome)
        },
    }


def _rows(outcome: Outcome) -> list[dict[str, Any]]:
    return [
        {
            "metric": name,
            **{subject: _rounded(outcome.evidence.value(name, subject)) for subject in _SUBJECTS},
            "less incumbent": _told(outcome.differences.get((name, "incumbent"))),
            "less base": _told(outcome.differences.get((name, "base"))),
        }
        for name in _names(outcome)
    ]


def _names(outcome: Outcome) -> list[str]:
    names = list(outcome.evidence.metrics)
    return [*names, PERPLEXITY] if "loss" in names else names


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _told(interval: Interval | None) -> str | None:
    if interval is None:
        return None
    return f"{interval.mean:+.4f} ({interval.low:+.4f} to {interval.high:+.4f})"
