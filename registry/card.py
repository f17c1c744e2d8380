"""What MLflow's UI shows of an adapter and of its versions: Markdown, written from what the registry knows."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Final

from loradock.registry import history
from loradock.registry.errors import LoradockError
from loradock.registry.history import History
from loradock.registry.records import Version
from loradock.registry.refs import PRODUCTION
from loradock.registry.store import Store

log = logging.getLogger(__name__)

_VERSIONS: Final = 10
"""How many versions an adapter's description lists."""
_SPACE: Final = "\u00a0" * 3
_LIMIT: Final = 5000  # characters that MLflow's tables hold
_CALL: Final = """\
```
curl http://HOST:8000/v1/chat/completions -H 'Content-Type: application/json' \\
  -d '{{"model": "{name}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
```
"""


def refresh(store: Store, name: str, *, made: Version | None = None) -> None:
    """Write a family's description anew, and that of a version that was just made.

    It is a picture, and no part of what it shows: where MLflow cannot be written, a warning is all that comes of it.
    """
    try:
        if made:
            store.describe_version(made.ref, of_version(made, store.metrics_of(made.facts.run_id)))
        past = history.read(store, name, whole=False)
        versions = store.page(name, limit=_VERSIONS)
        losses = {version.ref.number: store.metrics_of(version.facts.run_id) for version in versions}
        store.describe_family(name, of_family(past, versions, losses))
    except LoradockError as error:
        log.warning("the description in MLflow was not written: %s", error)


def of_version(version: Version, metrics: Mapping[str, float]) -> str:
    """What one version is, and what may be done with it."""
    facts = version.facts
    base = f"`{facts.base.id}`" + (f" at `{facts.base.revision}`" if facts.base.revision else "")
    rows = {
        "rank": str(facts.rank or ""),
        "modules": ", ".join(facts.targets),
        "base model": base + (f", held as {facts.base.quantization}" if facts.base.quantization != "none" else ""),
        "digest": f"`{facts.digest}`",
        "data": f"`{facts.data_digest}`" if facts.data_digest else "not known",
        "made from": ", ".join(facts.parents),
        "held-out loss": _loss(metrics),
        "vLLM can serve it": ": ".join(filter(None, (version.servable, "; ".join(version.findings or version.doubts)))),
    }
    loss = f", held-out loss {_loss(metrics)}" if _loss(metrics) else ""
    return _cut(
        f"{facts.method.upper()} for {facts.base.id}{loss}\n\n"
        + _table([str(version.ref), ""], [(key, value) for key, value in rows.items() if value])
        + f"```\nloradock show {version.ref}\nloradock verify {version.ref}\nloradock promote {version.ref}\n```\n"
    )


def of_family(past: History, versions: Sequence[Version], losses: Mapping[int, Mapping[str, float]]) -> str:
    """What an adapter's aliases stand at, its newest versions, and how to ask it."""
    name = past.family.name
    stands = [
        (alias, _link(name, move.to_version), f"{move.at:%Y-%m-%d %H:%M}", move.actor, _plain(move.reason))
        for alias, move in sorted(past.heads.items())
        if move.to_version
    ]
    made = [
        (
            _link(name, version.ref.number),
            _at(past, version),
            f"{version.facts.method}, rank {version.facts.rank}",
            version.facts.base.id,
            _loss(losses.get(version.ref.number, {})),
            f"{version.created_at:%Y-%m-%d %H:%M}",
            version.servable,
        )
        for version in versions
    ]
    return _cut(
        (_table(["alias", "version", "since (UTC)", "by", "why"], stands) if stands else "")
        + _table(
            ["version", "aliases", "method", "base model", "held-out loss", "made (UTC)", "vLLM can serve it"], made
        )
        + f"Ask the version in {PRODUCTION}, on a server that `loradock serve` started:\n\n{_CALL.format(name=name)}\n"
        f"```\nloradock history {name}\nloradock promote {name}/N\nloradock rollback {name}\n```\n"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells keep a distance, which MLflow's style does not give them."""
    lines = [head, ["---"] * len(head), *rows, [""] * len(head)]
    return (
        "\n".join(f"| {' | '.join(cell + _SPACE for cell in line)} |" for line in lines).replace("---" + _SPACE, "---")
        + "\n\n"
    )


def _link(name: str, number: int | None) -> str:
    return f"[{name}/{number}](#/models/{name}/versions/{number})"


def _at(past: History, version: Version) -> str:
    return ", ".join(alias for alias, move in sorted(past.heads.items()) if move.to_version == version.ref.number)


def _loss(metrics: Mapping[str, float]) -> str:
    """By the weights that were kept, which are not always the last."""
    loss = metrics.get("kept_eval_loss", metrics.get("eval_loss"))
    return "" if loss is None else f"{loss:.3f}"


def _plain(text: str) -> str:
    """One cell of a table."""
    return " ".join(text.replace("|", "/").replace("<", "&lt;").split())


def _cut(text: str) -> str:
    return text if len(text) <= _LIMIT else text[: _LIMIT - 4] + " ..."
