"""What `loradock show` tells of a version's reference, and of what replicas do with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from loradock.cli.show import show
from loradock.registry import replicas
from loradock.registry.records import Version
from loradock.registry.reference import Probe, Reference
from loradock.registry.replica_status import read
from loradock.registry.settings import Settings
from loradock.registry.standing import standing
from loradock.registry.store import Store
from loradock.registry.store.references import EXPERIMENT
from tests.support.adapters import NAME, SMOL, make_version
from tests.support.serving.status import NOTHING, answering, quarantined
from tests.support.web import running

REF = f"{NAME}/1"


@pytest.fixture
def version(store: Store, tmp_path: Path) -> Version:
    return make_version(store, tmp_path / "adapter")


def answered(version: Version, digest: str | None = None) -> dict[str, Any]:
    return answering(str(version.ref), digest=version.facts.digest if digest is None else digest)


def test_each_thing_that_a_replica_can_do_with_a_version(version: Version) -> None:
    here, other = answered(version), answering(f"{NAME}/2", digest="f" * 64)
    why = {"version": REF, "reason": "it was trained on another base"}
    for expected, status in {
        "not held": {"adapters": {NAME: other}, "resident": {f"{NAME}/2": 0}, "cold": {"cat": "cat/1"}},
        "answers as support-bot, support-bot@canary": {
            "adapters": {f"{NAME}@canary": here, NAME: here, "cat": other},
            "resident": {REF: 3},
        },
        "answers as support-bot": {"adapters": {NAME: answered(version, "")}},
        "answers with other bytes of that name: its registry is http://mlflow:5000": {
            "adapters": {NAME: here, f"{NAME}@canary": answered(version, "f" * 64)}
        },
        "proven, no name points at it": {"resident": {REF: 0}},
        "quarantined: its output is the base's": {
            "quarantined": {REF: quarantined("its output is the base's")},
            "loading": [REF],
        },
        "refused: it was trained on another base": {
            "refused": {f"{NAME}@canary": {**why, "version": "a/1"}, NAME: why}
        },
        "loading": {"loading": [REF]},
        "cold": {"cold": {NAME: REF}},
    }.items():
        assert standing(version, read(NOTHING | status, "http://a")) == expected


class FakeReplicaHandler(BaseHTTPRequestHandler):
    server: Any

    def do_GET(self) -> None:
        self.send_response(200 if self.headers.get("Authorization") == "Bearer k" else 401)
        self.end_headers()
        self.wfile.write(json.dumps(self.server.status).encode())

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Start servers that say what a replica says, to those who have the key `k`."""
    monkeypatch.setattr(replicas, "_SHORT_TIMEOUT", 60)  # on a busy machine, an answer takes longer
    stack = ExitStack()

    def started(**changes: Any) -> str:
        server: Any = ThreadingHTTPServer(("127.0.0.1", 0), FakeReplicaHandler)
        server.status = NOTHING | changes
        stack.enter_context(running(server))
        return f"http://127.0.0.1:{server.server_port}"

    with stack:
        yield started


def shown(*words: str) -> Result:
    return CliRunner().invoke(show, [REF, *words], catch_exceptions=False)


def test_every_replica_is_asked_and_one_that_does_not_answer_says_so(
    version: Version, start: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, quarantines = (
        start(adapters={NAME: answered(version)}),
        start(quarantined={REF: quarantined("no reference")}),
    )
    gone = "http://127.0.0.1:9"
    monkeypatch.setenv("LORADOCK_REPLICAS", f"{answers}, {gone}, {quarantines}")
    monkeypatch.setenv("VLLM_API_KEY", "k")
    found = json.loads(shown("--json").stdout)["replicas"]
    assert list(found) == [answers, gone, quarantines]
    assert (found[answers], found[quarantines]) == (f"answers as {NAME}", "quarantined: no reference")
    assert found[gone].startswith(f"no replica answers at {gone}: ")
    page = shown().stdout
    for url, words in found.items():
        assert any(line.split(maxsplit=1) == [f"replicas.{url}", words] for line in map(str.strip, page.splitlines()))
    monkeypatch.setenv("VLLM_API_KEY", "another")
    assert json.loads(shown("--json").stdout)["replicas"][answers] == f"{answers} asks for a key"


def test_none_is_asked_where_none_is_named(version: Version) -> None:
    assert "replicas" not in json.loads(shown("--json").stdout)


def test_the_reference_is_shown_by_its_digest(store: Store, settings: Settings, version: Version) -> None:
    assert json.loads(shown("--json").stdout)["reference"] is None
    probe = Probe(prompt=(1,), answer=(2,), adapted=(-1.0,), bare=(-2.0,), margins=(0.5,))
    reference = Reference(
        adapter=version.facts.digest,
        base=SMOL.weights_digest,
        config=SMOL.config_digest,
        software={"peft": "0.21"},
        at=datetime(2025, 1, 1, tzinfo=UTC),
        probes=(probe,),
    )
    store.record_reference(reference)
    assert json.loads(shown("--json").stdout)["reference"] == reference.digest
    assert reference.digest in shown().stdout
    (file,) = (settings.artifacts / EXPERIMENT).rglob("reference.json")
    file.write_text("{}")
    changed = shown("--json")
    assert json.loads(changed.stdout)["reference"] is None
    assert "reference.json cannot be read" in changed.stderr
    assert "loradock reference" in changed.stderr
