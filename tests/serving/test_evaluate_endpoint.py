"""What is measured through a running endpoint is what transformers measures, and of the version that was asked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from loradock.registry import gates, promotion
from loradock.registry.base import LocalBase, identify
from loradock.registry.errors import BadInput, Conflict, LoradockError, NotFound
from loradock.registry.evidence import mean
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.trainer.evaluation import metrics, run
from loradock.trainer.evaluation.endpoint import Endpoint
from loradock.trainer.evaluation.task import Task, prepare
from tests.support.adapters import make_version
from tests.support.serving.server import KEY, Server, serving
from tests.support.trainer.training import write_rows

pytestmark = pytest.mark.slow

CHOOSING = {"repetition_penalty": 3.0, "no_repeat_ngram_size": 1, "temperature": 2.0, "top_k": 3}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, base: LocalBase) -> Iterator[Server]:
    """A replica with `bot/1` promoted; `bot/2` is there, and not served. The base says how tokens are chosen."""
    scratch = tmp_path_factory.mktemp("endpoint")
    own = scratch / "own"
    own.mkdir()
    for path in base.path.iterdir():
        (own / path.name).symlink_to(path)
    (own / "generation_config.json").unlink()
    (own / "generation_config.json").write_text(json.dumps({**CHOOSING, "eos_token_id": 2}))
    home = scratch / "home"
    store = Store(Settings(home=home))
    first, _ = (
        make_version(store, scratch / f"bot-{seed}", "bot", base=base.base, scale=4.0, seed=seed) for seed in (1, 2)
    )
    promotion.promote(store, first.ref, "production", actor="tester")
    write_rows(scratch, 6)
    turns = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Arr!"}]
    with (scratch / "rows.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"messages": [*turns, *turns]}))
    (scratch / "pairs.jsonl").write_text(
        json.dumps({"prompt": "The keeper of the lighthouse ", "completion": "slept."})
    )
    with serving(home, LocalBase(own, identify(own, base_id=str(own))), store, scratch) as running:
        yield running


def task(server: Server, **changes: object) -> Task:
    first = server.store.versions("bot")[0]
    wanted = metrics.parse(["loss", "rouge"])
    whole = Task(
        first.ref, str(server.scratch / "rows.jsonl"), wanted, endpoint=server.url, api_key=SecretStr(KEY), new_tokens=8
    )
    whole = replace(whole, base=str(server.base.path))
    return replace(whole, **changes)  # type: ignore[arg-type]


def evaluate(server: Server, **changes: object) -> run.Outcome:
    case = prepare(task(server, **changes), Settings(home=server.home), lambda _: None)
    return run.evaluate(case, lambda _: None)


def answers(server: Server, outcome: run.Outcome) -> list[str]:
    path = Path(server.store.client.download_artifacts(outcome.evidence.run_id, "rows.json"))
    table = json.loads(path.read_text())
    return [row[table["columns"].index("candidate")] for row in table["data"]]


def test_an_endpoint_measures_as_transformers_does(server: Server) -> None:
    served, here = evaluate(server), evaluate(server, endpoint=None)
    assert (served.evidence.through, here.evidence.through) == ("endpoint", "transformers")
    assert served.evidence.data_digest == here.evidence.data_digest
    assert served.evidence.weights == here.evidence.weights
    for subject in ("candidate", "incumbent", "base"):
        ours, theirs = (found.evidence.metrics["loss"].of(subject) for found in (served, here))
        assert ours == pytest.approx(theirs, abs=0.15)
        assert mean(ours, served.evidence.weights) == pytest.approx(mean(theirs, here.evidence.weights), abs=0.05)
    scores = served.evidence.metrics["loss"]
    assert scores.candidate == scores.incumbent
    assert mean(scores.candidate) != pytest.approx(mean(scores.base), abs=0.2)
    said, expected = answers(server, served), answers(server, here)
    assert sum(one == other for one, other in zip(said, expected, strict=True)) >= len(said) - 3
    found = server.store.find_evidence("bot", served.evidence.candidate)
    assert [each.through for each in found] == ["transformers", "endpoint"]
    assert gates._parity(0.05, list(found)).passed


def test_text_prompts_are_asked_as_texts(server: Server) -> None:
    rows = str(server.scratch / "pairs.jsonl")
    served, here = evaluate(server, data=rows), evaluate(server, data=rows, endpoint=None)
    assert served.evidence.metrics["loss"].candidate == pytest.approx(here.evidence.metrics["loss"].candidate, abs=0.15)
    assert answers(server, served) == answers(server, here)


def test_an_endpoint_that_writes_prompts_by_another_template_is_refused(server: Server, tmp_path: Path) -> None:
    edited = shutil.copytree(server.base.path, tmp_path / "edited", symlinks=True)
    template = (edited / "chat_template.jinja").read_text()
    (edited / "chat_template.jinja").unlink()
    (edited / "chat_template.jinja").write_text(template.replace("You are a helpful", "You are a grumpy"))
    with pytest.raises(LoradockError, match="writes a prompt otherwise than the tokenizer and chat template"):
        evaluate(server, base=str(edited))
    assert evaluate(server, base=str(edited), metrics=metrics.parse(["loss"])).evidence.text.template


def test_a_version_that_is_not_served_is_told_with_what_is(server: Server) -> None:
    second = server.store.versions("bot")[1]
    with pytest.raises(NotFound, match="does not serve bot/2") as raised:
        evaluate(server, ref=second.ref)
    assert "bot (bot/1)" in raised.value.hint
    with pytest.raises(BadInput, match="asks for a key"):
        evaluate(server, api_key=SecretStr("wrong"))


def test_an_alias_that_moves_meanwhile_is_a_conflict(server: Server) -> None:
    first, second = server.store.versions("bot")[:2]
    case = prepare(task(server), Settings(home=server.home), lambda _: None)
    endpoint = Endpoint(server.url, SecretStr(KEY))
    endpoint.measures("candidate", first)
    server.until_answered_by(server.promote(second))
    from transformers import AutoTokenizer

    from loradock.trainer.evaluation import heldout

    _, items = heldout.items(case.rows, AutoTokenizer.from_pretrained(case.local.path), 400, lambda _: None)
    with pytest.raises(Conflict, match="bot is at bot/2, not at bot/1"):
        endpoint.nats("candidate", items, lambda _: None)
