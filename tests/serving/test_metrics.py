"""What is measured, how many series that can make, and the documents and dashboards that speak of it."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from loradock.registry.errors import DigestMismatch, LoradockError, NotFound, NotServable, Unreachable
from loradock.registry.refs import VersionRef
from loradock.registry.replica_status import ReplicaStatus, read
from loradock.serving.calls import Asked, Call, Outcome, Role
from loradock.serving.metrics import OTHER, Metrics, kind_of
from tests.support.serving.status import NOTHING, answering, quarantined

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = json.loads((ROOT / "dashboards" / "loradock.json").read_text(encoding="utf-8"))
ALERTS = yaml.safe_load((ROOT / "dashboards" / "alerts.yml").read_text(encoding="utf-8"))

STATUS: dict[str, Any] = NOTHING | {
    "converged": False,
    "registry": {"uri": "http://mlflow", "reachable": False, "staleness_seconds": 12.5, "error": "gone"},
    "keys": {"file": "keys.json", "count": 1, "error": "broken"},
    "adapters": {"bot": answering("bot/3"), "bot@canary": answering("bot/4")},
    "loading": ["cat/1"],
    "quarantined": {"bot/5": quarantined("no effect")},
    "resident": {"bot/3": 2, "bot/4": 0},
}


def status(**changes: Any) -> ReplicaStatus:
    return read(STATUS | changes, "http://a")


def call(
    name: str = "bot",
    number: int | None = 3,
    role: Role = "production",
    outcome: Outcome = "ok",
    *,
    first: float | None = 10.5,
    tokens: int = 5,
) -> Call:
    version = VersionRef(name, number) if number else None
    asked = Asked(name, role)
    return Call(asked, version, 10.0, first, 12.5, 7, tokens, tokens, outcome)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry(auto_describe=True)


def simulate(registry: CollectorRegistry, cache: Path) -> None:
    """Everything that can happen on a replica, once."""
    metrics = Metrics(registry)
    metrics.ended(call())
    metrics.ended(call(role="canary", number=4, outcome="error", first=None, tokens=0))
    metrics.ended(call("smol", None, "base"))
    metrics.flipped("bot")
    metrics.flipped("bot@canary")
    metrics.loaded(VersionRef("bot", 3), 1.5)
    metrics.quarantined(VersionRef("bot", 5), "unfit")
    metrics.poll_failed()
    metrics.refused("ci", 429)
    metrics.watch(status, cache)


def samples(registry: CollectorRegistry) -> dict[str, float]:
    """Every sample as Prometheus gets it, but when its series began."""
    text = generate_latest(registry).decode()
    rows = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in rows if "_created" not in name}


async def scraped(registry: CollectorRegistry, cache: Path) -> dict[str, float]:
    simulate(registry, cache)
    return await asyncio.to_thread(samples, registry)


def test_a_replica_shows_what_happened_and_what_it_is(registry: CollectorRegistry, tmp_path: Path) -> None:
    (tmp_path / "digest").mkdir()
    (tmp_path / "digest" / "adapter_model.safetensors").write_bytes(b"x" * 1000)
    found = asyncio.run(scraped(registry, tmp_path))
    answered = 'adapter="bot",role="production",version="3"'
    assert found['loradock_requests_total{adapter="bot",outcome="ok",role="production",version="3"}'] == 1
    assert found['loradock_requests_total{adapter="bot",outcome="error",role="canary",version="4"}'] == 1
    assert found['loradock_requests_total{adapter="smol",outcome="ok",role="base",version=""}'] == 1
    assert found[f"loradock_prompt_tokens_total{{{answered}}}"] == 7
    assert found[f"loradock_output_tokens_total{{{answered}}}"] == 5
    assert found[f"loradock_request_seconds_sum{{{answered}}}"] == 2.5
    assert found[f"loradock_time_to_first_token_seconds_sum{{{answered}}}"] == 0.5
    assert found[f"loradock_time_per_output_token_seconds_sum{{{answered}}}"] == 0.5
    assert found['loradock_flips_total{adapter="bot",alias="canary"}'] == 1
    assert found['loradock_flips_total{adapter="bot",alias="production"}'] == 1
    assert found['loradock_load_seconds_sum{adapter="bot"}'] == 1.5
    assert found['loradock_quarantines_total{adapter="bot",kind="unfit"}'] == 1
    assert found["loradock_polls_failed_total"] == 1
    assert found['loradock_refusals_total{key="ci",status="429"}'] == 1
    assert (found["loradock_ready"], found["loradock_converged"], found["loradock_registry_reachable"]) == (1, 0, 0)
    assert found["loradock_registry_staleness_seconds"] == 12.5
    assert found["loradock_keys_file_valid"] == 0
    assert found["loradock_cache_bytes"] == 1000
    assert found['loradock_adapter_resident{adapter="bot",version="4"}'] == 1
    assert found['loradock_adapter_resident{adapter="cat",version="1"}'] == 0
    assert found['loradock_requests_in_flight{adapter="bot",version="3"}'] == 2
    assert found['loradock_quarantined{adapter="bot",kind="unfit",version="5"}'] == 1
    assert found['loradock_answering_version{adapter="bot",alias="production"}'] == 3
    assert found['loradock_answering_version{adapter="bot",alias="canary"}'] == 4


def test_a_call_that_went_wrong_tells_nothing_of_how_long_a_good_one_takes(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)
    metrics.ended(call(outcome="aborted"))
    metrics.ended(call(outcome="error", first=None))
    metrics.ended(call(tokens=1))
    found = samples(registry)
    answered = 'adapter="bot",role="production",version="3"'
    assert found[f"loradock_time_to_first_token_seconds_count{{{answered}}}"] == 2
    assert found[f"loradock_request_seconds_count{{{answered}}}"] == 1
    assert not [name for name in found if name.startswith("loradock_time_per_output_token_seconds_count")]


def test_an_upload_counts_for_the_version_that_computed_it(registry: CollectorRegistry) -> None:
    Metrics(registry).ended(Call(Asked("smol", "base"), VersionRef("bot", 3), 0.0, output_tokens=5))
    assert samples(registry)['loradock_output_tokens_total{adapter="bot",role="base",version="3"}'] == 5


def test_an_error_after_good_calls_is_an_increase_and_not_a_series_that_begins(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)
    errors = 'loradock_requests_total{adapter="bot",outcome="error",role="production",version="3"}'
    metrics.ended(call())
    assert samples(registry)[errors] == 0
    metrics.ended(call(outcome="error", first=None))
    assert samples(registry)[errors] == 1


def test_the_state_is_read_on_the_loop_that_changes_it(registry: CollectorRegistry, tmp_path: Path) -> None:
    async def story() -> None:
        threads = set()

        def noted() -> ReplicaStatus:
            threads.add(threading.get_ident())
            return status()

        Metrics(registry).watch(noted, tmp_path)
        await asyncio.to_thread(samples, registry)
        samples(registry)
        assert threads == {threading.get_ident()}

    asyncio.run(story())


def test_a_status_that_fails_fails_the_scrape_and_not_the_loop(registry: CollectorRegistry, tmp_path: Path) -> None:
    async def story() -> None:
        Metrics(registry).watch(lambda: status(ready="perhaps"), tmp_path)
        with pytest.raises(NotFound):
            await asyncio.to_thread(samples, registry)

    asyncio.run(story())


def test_a_version_that_left_takes_its_series_along(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)
    before = samples(registry)
    for number in (3, 4):
        metrics.ended(call(number=number))
        metrics.loaded(VersionRef("bot", number), 1.0)
    metrics.ended(call("other", 3))
    metrics.flipped("bot")
    metrics.quarantined(VersionRef("bot", 4), "failed")
    metrics.forget(VersionRef("bot", 3))
    left = samples(registry)
    assert not [name for name in left if 'adapter="bot"' in name and 'version="3"' in name]
    assert 'loradock_flips_total{adapter="bot",alias="production"}' in left
    metrics.forget(VersionRef("bot", 4))
    metrics.forget(VersionRef("bot", 4))
    metrics.forget(VersionRef("never", 1))
    assert {name for name in samples(registry) if "other" not in name} == set(before)
    assert [name for name in samples(registry) if 'adapter="other"' in name]


def test_a_thousand_adapters_make_no_more_series_than_are_allowed(registry: CollectorRegistry, tmp_path: Path) -> None:
    async def story() -> None:
        metrics = Metrics(registry, most_adapters=10)
        for number in range(1, 1001):
            name = f"bot-{number}"
            metrics.ended(call(name, number))
            metrics.flipped(name)
            metrics.loaded(VersionRef(name, number), 1.0)
            metrics.quarantined(VersionRef(name, number), "failed")
        many = {f"bot-{number}/{number}": 1 for number in range(1, 1001)}
        named = {f"bot-{number}": answering(f"bot-{number}/{number}") for number in range(1, 1001)}
        held = dict.fromkeys(many, quarantined("no effect"))
        metrics.watch(lambda: status(resident=many, quarantined=held, adapters=named), tmp_path)
        found = samples(registry)
        adapters = {match[1] for name in found if (match := re.search(r'adapter="([^"]*)"', name))}
        assert adapters == {OTHER, *(f"bot-{number}" for number in range(1, 11))}
        assert found[f'loradock_requests_total{{adapter="{OTHER}",outcome="ok",role="production",version=""}}'] == 990
        metrics.forget(VersionRef("bot-1", 1))
        metrics.ended(call("late", 1))
        assert 'loradock_requests_total{adapter="late",outcome="ok",role="production",version="1"}' in samples(registry)

    asyncio.run(story())


def test_what_clients_write_is_never_a_label(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)
    before = len(samples(registry))
    for _ in range(100):
        metrics.refused("", 404)
    assert len(samples(registry)) == before + 1


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Unreachable("gone"), "unreachable"),
        (DigestMismatch("bot/3", expected="a", found="b"), "damaged"),
        (NotServable("bot/3", ["no effect"]), "unfit"),
        (LoradockError("x"), "failed"),
        (OSError("x"), "failed"),
    ],
)
def test_what_holds_a_version_back_has_one_of_four_kinds(error: Exception, kind: str) -> None:
    assert kind_of(error) == kind


def documented() -> dict[str, list[str]]:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(loradock_\w+)` \| (\w+) \|([^|]*)\|", text, re.MULTILINE)
    return {name: sorted(filter(None, labels.strip().split(", "))) for name, _, labels in rows}


@pytest.fixture
def measured(registry: CollectorRegistry, tmp_path: Path) -> dict[str, list[str]]:
    """The labels of every sample after a simulated run, by its name."""

    async def story() -> dict[str, list[str]]:
        simulate(registry, tmp_path)
        rows = [sample for metric in registry.collect() for sample in metric.samples]
        return {row.name: sorted(row.labels) for row in rows if not row.name.endswith("_created")}

    return asyncio.run(story())


def test_every_metric_is_documented_with_its_labels_and_no_other(measured: dict[str, list[str]]) -> None:
    parts = ("_bucket", "_count", "_sum")
    whole = {
        name.removesuffix("_count"): labels
        for name, labels in measured.items()
        if name.endswith("_count") or not name.endswith(parts)
    }
    assert documented() == whole


def expressions() -> Iterator[tuple[str, str]]:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for annotation in DASHBOARD["annotations"]["list"]:
        yield annotation["name"], annotation["target"]["expr"]
    for rule in ALERTS["groups"][0]["rules"]:
        yield rule["alert"], rule["expr"]


def metrics_of(expression: str) -> list[tuple[str, set[str]]]:
    """The metrics that a query reads, each with the labels that it asks for."""
    found: list[tuple[str, set[str]]] = []

    def note(node: Any) -> None:
        if isinstance(node, promql_parser.MatrixSelector):
            node = node.vector_selector
        if isinstance(node, promql_parser.VectorSelector):
            found.append((node.name, {matcher.name for matcher in node.matchers.matchers}))

    promql_parser.walk(promql_parser.parse(re.sub(r"\$__(rate_)?interval", "5m", expression)), note)
    return found


@pytest.mark.parametrize(("title", "expression"), [pytest.param(*row, id=row[0]) for row in expressions()])
def test_every_query_of_the_dashboard_and_the_alerts_asks_for_what_is_there(
    title: str, expression: str, measured: dict[str, list[str]]
) -> None:
    read = metrics_of(expression)
    assert read
    known = {"instance", "job"}  # of Prometheus' own
    for name, labels in read:
        assert labels <= {*measured[name], *known}, (title, name)
        known |= set(measured[name])
    for group in re.findall(r"by \(([^)]*)\)", expression):
        assert {label.strip() for label in group.split(",")} <= known, (title, group)


def test_the_dashboard_reads_every_metric_but_those_that_others_say_better() -> None:
    read = {name for _, expression in expressions() for name, _ in metrics_of(expression)}
    shown = {name for name in documented() if {name, f"{name}_bucket"} & read}
    assert documented().keys() - shown == {"loradock_registry_reachable", "loradock_flips_total"}


def test_the_dashboards_panels_are_apart_and_its_variables_are_used() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)
    text = json.dumps(panels)
    for variable in DASHBOARD["templating"]["list"]:
        assert re.search(rf"\$\{{?{variable['name']}\b", text), variable["name"]


def test_every_alert_says_what_is_wrong_and_how_long_it_may_be() -> None:
    rules = ALERTS["groups"][0]["rules"]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["for"]
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description"}
