"""The verb that takes a version to production by steps: parse, call, print."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from loradock.cli.command import Command
from loradock.cli.options import json_option, key_option, replicas_option
from loradock.cli.output import emit
from loradock.registry import refs
from loradock.registry.errors import BadInput, Refused
from loradock.registry.settings import Settings

if TYPE_CHECKING:
    from loradock.serving.rollout.task import Outcome, Task

F = TypeVar("F", bound=Callable[..., Any])

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _seconds(_ctx: click.Context, _param: click.Parameter, value: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", value)
    if not found:
        raise click.BadParameter(f"{value!r} is no time; write NUMBER and s, m, h or d, as in 10m")
    return float(found[1]) * _UNITS[found[2]]


def _time(name: str, *more: str, default: str, text: str) -> Callable[[F], F]:
    """An option in seconds, written `90s`, `10m`, `2h`, `1d`."""
    return click.option(name, *more, default=default, show_default=True, metavar="TIME", callback=_seconds, help=text)


@click.command(cls=Command)
@click.argument("ref")
@click.option(
    "--steps",
    default="5%,25%,50%",
    show_default=True,
    help="The shares of the requests, rising; production follows the last.",
)
@click.option(
    "--min-requests",
    default=100,
    show_default=True,
    type=click.IntRange(1),
    help="Minimum of answers at each step.",
)
@_time("--for", "step_seconds", default="10m", text="Minimum of time at each step.")
@_time("--within", default="1d", text="Time limit for the rollout; a canary without a verdict by then is rolled back.")
@click.option(
    "--margin",
    "margins",
    multiple=True,
    metavar="SIGNAL=SHARE",
    help="Allowed excess over production: error=2%, unstopped, slow, long, judge=5%; or SIGNAL=off.  [repeatable]",
)
@click.option(
    "--alpha",
    default=0.01,
    show_default=True,
    type=click.FloatRange(0, 0.5, min_open=True),
    help="Error rate of the whole test, over all signals: the probability of rolling back a good canary, and of "
    "promoting one beyond its margin.",
)
@click.option(
    "--baseline",
    default=200,
    show_default=True,
    type=click.IntRange(1),
    help="Production responses sampled to set the latency and length thresholds (95th percentile).",
)
@click.option("--slow-first", type=click.FloatRange(0), metavar="SECONDS", help="The threshold for a slow first token.")
@click.option("--slow-token", type=click.FloatRange(0), metavar="SECONDS", help="The threshold for a slow token.")
@click.option(
    "--long-tokens", type=click.IntRange(1), metavar="NUMBER", help="The threshold for a long answer, in tokens."
)
@click.option(
    "--judge", metavar="FILE.py:FUNCTION", help="A function of a prompt and its answer; True if the answer is good."
)
@click.option(
    "--judge-prompts",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Prompts for --judge as JSONL; both versions answer them.",
)
@replicas_option("A serving replica; give each.  [default: LORADOCK_REPLICAS, else port 8000 here]")
@key_option("The replicas' admin key, if they have one.")
@_time("--every", default="2s", text="Time between two polls of the replicas.")
@json_option
def rollout(ref: str, steps: str, margins: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Shift traffic to a canary by steps, and promote it or roll it back by its live signals.

    Example:
      loradock rollout support-bot/4 --steps 10%,50% --for 30m

    REF is NAME/NUMBER. Its share of the requests rises while no signal shows that it is worse than production. It
    is promoted once all signals show that it is not worse. Otherwise its share is set back to 0, the exit code is
    3, and the reason is printed; production never moves. Ctrl-C sets the share to 0, too.
    """
    from loradock.serving.rollout import drive
    from loradock.serving.rollout.moves import Moves
    from loradock.serving.rollout.record import Record
    from loradock.serving.rollout.shown import shown
    from loradock.serving.rollout.watching import Replicas

    settings = Settings()
    task = _task(ref, steps, margins, options, settings)
    from loradock.registry.store import Store
    from loradock.registry.store.rollouts import Rollouts

    replicas = Replicas(task.ref, task.urls, task.api_key)
    told = {"replicas": ",".join(task.urls), "api_key": task.api_key}
    settings = settings.model_copy(update=told)
    moves = Moves(Store(settings), settings, task.ref)
    record = Record(lambda: Rollouts(settings), f"{task.ref} to production")
    with _stopping() as stop, shown(str(task.ref)) as terminal:
        outcome = drive.Rollout(task, moves, replicas, record, terminal, stop).run()
    _report(outcome, as_json)


def _task(ref: str, steps: str, margins: tuple[str, ...], options: dict[str, Any], settings: Settings) -> Task:
    from loradock.registry import traffic
    from loradock.serving.rollout import judge
    from loradock.serving.rollout.plan import Rules
    from loradock.serving.rollout.task import Task

    rules = Rules(
        steps=tuple(traffic.parse_weight(step) for step in steps.split(",")),
        answers=options["min_requests"],
        seconds=options["step_seconds"],
        within=options["within"],
    )
    if bool(options["judge"]) != bool(options["judge_prompts"]):
        raise BadInput("--judge and --judge-prompts go together")
    case = judge.load(options["judge"], options["judge_prompts"]) if options["judge"] else None
    wanted = _margins(margins, case, options["alpha"])
    given = {"first_token": "slow_first", "per_token": "slow_token", "output_tokens": "long_tokens"}
    return Task(
        ref=refs.parse_version(ref),
        rules=rules,
        margins=wanted,
        alpha=options["alpha"],
        baseline=options["baseline"],
        limits={key: options[name] for key, name in given.items() if options[name] is not None},
        urls=options["urls"] or settings.replica_urls or ("http://127.0.0.1:8000",),
        api_key=options["api_key"],
        every=options["every"],
        judge=case if "judge" in wanted else None,
    )


def _margins(given: tuple[str, ...], case: Any, alpha: float) -> dict[Any, float]:
    """Each signal's margin; raises BadInput for one that nothing could show."""
    from loradock.registry import traffic
    from loradock.serving.rollout import measures, sequential

    wanted = (*measures.LIVE, "judge") if case else measures.LIVE
    found: dict[Any, float] = {signal: measures.MARGINS[signal] for signal in wanted}
    for text in given:
        name, equals, share = text.partition("=")
        if name not in found or not equals:
            raise BadInput(f"{text!r} is no margin", hint=f"write SIGNAL=SHARE with {', '.join(wanted)}: error=2%")
        found[name] = 0.0 if share == "off" else traffic.parse_weight(share)
        if share != "off" and not 0 < found[name] < 1:
            raise BadInput(f"{text!r} can never be shown", hint="give a margin above 0 and below 100%, or off")
    found = {name: margin for name, margin in found.items() if margin}
    if not found:
        raise BadInput("every signal is off", hint="without signals: loradock promote")
    if case and "judge" in found and len(case.prompts) < (needed := sequential.least(found["judge"], alpha)):
        raise BadInput(
            f"{len(case.prompts)} prompts cannot show that the judge's margin of {found['judge']:.3g} is kept",
            hint=f"give at least {needed}, or a wider --margin judge=SHARE",
        )
    return found


def _report(outcome: Outcome, as_json: bool) -> None:
    data = outcome.as_json()
    if not as_json:
        data = {key: data[key] for key in ("version", "production", "result", "answers", "seconds", "run_id")}
        data |= {finding.signal: str(finding).partition(": ")[2] for finding in outcome.findings}
    emit(data, as_json)
    if outcome.result == "interrupted":
        raise click.Abort
    if outcome.result == "rolled back":
        name = outcome.version.partition("/")[0]
        raise Refused(
            f"{outcome.version} was rolled back: {outcome.reason}",
            hint=f"{name}@canary still answers with it, for you to look",
        )


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """An event that Ctrl-C, SIGTERM and a closed terminal set; they end nothing else meanwhile."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
