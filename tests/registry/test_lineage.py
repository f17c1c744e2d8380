from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from loradock.registry import history, lineage, promotion
from loradock.registry.errors import LoradockError
from loradock.registry.lineage import Branch, Publication
from loradock.registry.records import Version
from loradock.registry.settings import Settings
from loradock.registry.store import Store, experiment_id
from loradock.registry.store.lineage import publication_tag
from loradock.registry.tenures import tenures
from loradock.registry.versions import register
from tests.support.adapters import NAME, log_adapter, make_version, put, ref, write_adapter

DAY = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture
def whole(settings: Settings) -> Store:
    return Store(settings)


def trained(store: Store, directory: Path, **kind: Any) -> Version:
    """A version of a run that logged what a training logs."""
    run_id = log_adapter(store, write_adapter(directory, **kind))
    store.client.log_text(run_id, "name: support\n", "recipe.yaml")
    store.client.set_tag(run_id, "mlflow.source.git.commit", "abc" * 13 + "d")
    store.client.set_tag(run_id, "loradock.git.dirty", "true")
    params = {"recipe.name": "support", "data.file": "support.jsonl", "data.rows": 120, "environment.loradock": "0.1.0"}
    for key, value in params.items():
        store.client.log_param(run_id, key, value)
    return register(store, run_id, NAME)


def child(store: Store, version: Version, name: str) -> Version:
    """A version of another family that was made from `version`."""
    facts = version.facts.model_copy(update={"parents": (str(version.ref), f"{NAME}/99"), "digest": "1" * 64})
    store.create_family(name)
    return put(store, name, version.source, facts)


def evaluate(store: Store, digest: str, **metrics: float) -> str:
    experiment = experiment_id(store.client, store.settings, "loradock-evaluations")
    run = store.client.create_run(experiment, run_name="held out", tags={"loradock.evidence.candidate": digest})
    for name, value in metrics.items():
        store.client.log_metric(run.info.run_id, name, value)
    store.client.set_terminated(run.info.run_id)
    return str(run.info.run_id)


def publish(store: Store, version: Version, number: int, repo: str) -> None:
    told = Publication(repo=repo, revision="9" * 40, at=DAY)
    store.client.set_model_version_tag(
        version.ref.name, str(version.ref.number), publication_tag(number), told.canonical()
    )


def ends(graph: lineage.Graph, kind: str) -> list[tuple[str, str]]:
    return [(edge.start, edge.end) for edge in graph.edges if edge.kind == kind]


def lines(branch: Branch, depth: int = 0) -> list[str]:
    return ["  " * depth + branch.text] + [line for below in branch.branches for line in lines(below, depth + 1)]


def test_back_to_run_recipe_data_base_commit_and_forward_to_what_became_of_it(whole: Store, tmp_path: Path) -> None:
    version = trained(whole, tmp_path / "a")
    make_version(whole, tmp_path / "b", seed=1)
    made = child(whole, version, "merged-bot")
    evaluation = evaluate(whole, version.facts.digest, loss=1.5)
    evaluate(whole, "0" * 64)
    publish(whole, version, 1, "acme/support")
    promotion.promote(whole, ref(1), "staging", actor="ann", reason="looks good")
    promotion.promote(whole, ref(1), "production", actor="ann")
    promotion.promote(whole, ref(2), "staging", actor="bob")
    graph = lineage.graph(lineage.kin(whole, version))
    run_id, me = version.facts.run_id, "support-bot/1"
    nodes = {node.id: node for node in graph.nodes}
    assert graph.nodes[0].id == me
    assert len(nodes) == len(graph.nodes)
    assert not any(node.gone for node in graph.nodes)
    assert ends(graph, "made by") == [(me, f"run:{run_id}")]
    assert nodes[f"run:{run_id}"].facts["status"] == "finished"
    assert ends(graph, "follows") == [(f"run:{run_id}", f"runs:/{run_id}/recipe.yaml")]
    assert nodes[f"runs:/{run_id}/recipe.yaml"].facts["parameters"] == {"recipe.name": "support"}
    assert nodes["commit:" + "abc" * 13 + "d"].facts["dirty"] is True
    assert nodes["data:" + "e" * 64].facts["counts"] == {"file": "support.jsonl", "rows": "120"}
    assert ends(graph, "adapts") == [(me, "base:" + "d" * 64)]
    assert ends(graph, "made from") == [(str(made.ref), me)]
    assert ends(graph, "measures") == [(f"run:{evaluation}", me)]
    assert nodes[f"run:{evaluation}"].facts["metrics"] == {"loss": 1.5}
    assert ends(graph, "published as") == [(me, "acme/support@" + "9" * 40)]
    assert ends(graph, "stands at") == [("support-bot@production", me)]
    assert ends(graph, "stood at") == [("support-bot@staging", me)]
    (stood,) = (edge for edge in graph.edges if edge.kind == "stood at")
    assert (stood.facts["actor"], stood.facts["reason"]) == ("ann", "looks good")
    text = "\n".join(lines(lineage.tree(graph)))
    for words in ("recipe support", "120 rows", "made into  merged-bot/1", "by ann: looks good", "loradock 0.1.0"):
        assert words in text


def test_parents_are_nodes_and_one_that_is_gone_is_no_error(whole: Store, tmp_path: Path) -> None:
    version = trained(whole, tmp_path / "a")
    made = child(whole, version, "merged-bot")
    assert whole.version(made.ref).facts.parents == ("support-bot/1", "support-bot/99")
    graph = lineage.graph(lineage.kin(whole, made))
    assert ends(graph, "made from") == [("merged-bot/1", "support-bot/1"), ("merged-bot/1", "support-bot/99")]
    assert [node.id for node in graph.nodes if node.gone] == ["support-bot/99"]
    assert any("support-bot/99  (gone)" in line for line in lines(lineage.tree(graph)))


def test_a_run_in_the_trash_and_one_that_is_gone(whole: Store, tmp_path: Path) -> None:
    version = trained(whole, tmp_path / "a")
    whole.client.delete_run(version.facts.run_id)
    (run,) = (n for n in lineage.graph(lineage.kin(whole, version)).nodes if n.kind == "run")
    assert (run.gone, run.facts["status"]) == (True, "deleted")
    lost = version.model_copy(update={"facts": version.facts.model_copy(update={"run_id": "f" * 32})})
    graph = lineage.graph(lineage.kin(whole, lost))
    assert [node.id for node in graph.nodes if node.gone] == ["run:" + "f" * 32]
    assert ends(graph, "trained on") == [("run:" + "f" * 32, "data:" + "e" * 64)]


def test_versions_from_before_there_were_parents_have_none(whole: Store, tmp_path: Path) -> None:
    version = make_version(whole, tmp_path / "a")
    whole.client.delete_model_version_tag(NAME, "1", "loradock.parents")
    assert whole.version(version.ref) == version


def test_a_publication_that_somebody_changed_is_said(whole: Store, tmp_path: Path) -> None:
    version = make_version(whole, tmp_path / "a")
    for number in (2, 10, 1):
        publish(whole, version, number, f"acme/{number}")
    assert [one.repo for one in whole.publications(version.ref)] == ["acme/1", "acme/2", "acme/10"]
    whole.client.set_model_version_tag(NAME, "1", publication_tag(2), "gone")
    with pytest.raises(LoradockError, match="changed in MLflow"):
        whole.publications(version.ref)


def test_tenures_follow_the_moves(whole: Store, tmp_path: Path) -> None:
    for seed in range(2):
        make_version(whole, tmp_path / str(seed), seed=seed)
    for number in (1, 2):
        promotion.promote(whole, ref(number), "production", actor=f"p{number}")
    promotion.rollback(whole, NAME, "production", actor="bob")
    whole.client.delete_registered_model_alias(NAME, "production")
    promotion.adopt(whole, NAME, actor="ann")
    moves = history.read(whole, NAME).moves
    found = tenures(moves)
    assert [(t.number, t.since, t.until, t.actor) for t in found] == [
        (1, moves[0].at, moves[1].at, "p1"),
        (2, moves[1].at, moves[2].at, "p2"),
        (1, moves[2].at, moves[3].at, "bob"),
    ]
