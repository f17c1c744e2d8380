"""Several adapters as one: how far each method is from the weighted sum, and what cannot be combined."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from loradock.registry.base import LocalBase, identify
from loradock.registry.errors import BadInput, DigestMismatch, Refused, WrongBase
from loradock.registry.records import Version
from loradock.registry.refs import parse_version
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.trainer.weights import combination, combine, sweep
from loradock.trainer.weights.combination import Combined, Task
from loradock.trainer.weights.combine import METHODS, Mix
from tests.support.trainer.adapters import AdapterMaker, adapter_maker, deltas, rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, shallow_dir: Path) -> dict[str, Path]:
    """Two of rank 4, one of rank 2 with another scaling, and a DoRA."""
    scratch = tmp_path_factory.mktemp("adapters")
    local = LocalBase(shallow_dir, identify(shallow_dir, base_id=shallow_dir.name))
    made = AdapterMaker(Settings(), None, local, scratch)  # type: ignore[arg-type]  # only files are made
    targets = ["q_proj", "down_proj"]
    return {
        "a": made.adapter("a", "lora", r=4, target_modules=targets, seed=1),
        "b": made.adapter("b", "lora", r=4, target_modules=[*targets, "v_proj"], seed=2),
        "small": made.adapter("small", "rslora", r=2, lora_alpha=3, target_modules=targets, seed=3),
        "dora": made.adapter("dora", "dora", r=4, target_modules=targets),
    }


@pytest.fixture
def here(settings: Settings, store: Store, shallow_dir: Path, tmp_path: Path) -> AdapterMaker:
    return adapter_maker(settings, store, shallow_dir, tmp_path)


@pytest.fixture
def parents(here: AdapterMaker, adapters: dict[str, Path]) -> dict[str, Version]:
    return {name: here.version(directory, name) for name, directory in adapters.items()}


def mixed(here: AdapterMaker, *names: str, **changes: object) -> Combined:
    refs = tuple(parse_version(f"{name}/1") for name in names)
    task = replace(Task(refs, "mix", base=str(here.local.path)), **changes)  # type: ignore[arg-type]
    return combination.combine_versions(task, here.settings, lambda _: None)


def fetched(here: AdapterMaker, outcome: Combined) -> Path:
    into = here.scratch / outcome.version.replace("/", "-")
    into.mkdir()
    ref = parse_version(outcome.version)
    here.store.download(here.store.version(ref).source, into, what="it")
    return into


@pytest.mark.parametrize(
    ("method", "low", "high"),
    [
        ("cat", 0, 1e-6),
        ("svd", 0.2, 0.8),
        ("magnitude_prune_svd", 0.2, 1),
        ("ties_svd", 0.2, 1),
        ("dare_linear_svd", 0.2, 1.2),
        ("dare_ties_svd", 0.2, 1.2),
        ("linear", 0.8, 2),
        ("ties", 0.8, 2),
        ("magnitude_prune", 0.8, 2),
        ("dare_linear", 0.8, 4),
        ("dare_ties", 0.8, 4),
    ],
)
def test_each_method_tells_how_far_it_is_from_the_weighted_sum(
    method: str, low: float, high: float, here: AdapterMaker, parents: dict[str, Version], adapters: dict[str, Path]
) -> None:
    outcome = mixed(here, "a", "b", method=method, weights=((0.7, 0.3),))
    one, other, found = (deltas(path) for path in (adapters["a"], adapters["b"], fetched(here, outcome)))
    true = {name: 0.7 * one.get(name, 0) + 0.3 * other[name] for name in other}
    apart = sum(float((true[name] - found.get(name, 0)).square().sum()) for name in true)
    error = math.sqrt(apart / sum(float(value.square().sum()) for value in true.values()))
    assert outcome.error == pytest.approx(error, abs=1e-4)
    assert low <= error <= high
    made = here.store.version(parse_version(outcome.version))
    assert (made.findings, made.facts.parents) == ((), ("a/1", "b/1"))
    assert made.facts.rank == outcome.rank == (8 if method == "cat" else 4)
    run = here.store.client.get_run(made.facts.run_id).data
    assert run.params.items() >= {"combine.method": method, "combine.weights": "0.7, 0.3", "combine.seed": "0"}.items()
    assert run.metrics["combine.error"] == pytest.approx(outcome.error)


def test_every_method_is_tried_above() -> None:
    (mark,) = [
        mark
        for mark in test_each_method_tells_how_far_it_is_from_the_weighted_sum.pytestmark
        if mark.name == "parametrize"
    ]
    assert {row[0] for row in mark.args[1]} == set(METHODS)


def test_other_ranks_and_scalings_are_added_exactly_or_to_a_rank(
    here: AdapterMaker, parents: dict[str, Version]
) -> None:
    exact = mixed(here, "small", "a")
    assert (exact.method, exact.rank, exact.weights) == ("cat", 6, (0.5, 0.5))
    assert exact.error < 1e-6
    limited = mixed(here, "small", "a", limit=5)
    assert (limited.method, limited.rank) == ("svd", 5)
    assert 1e-4 < limited.error < mixed(here, "small", "a", method="svd", rank=3).error


def test_what_is_drawn_follows_from_the_seed(here: AdapterMaker, parents: dict[str, Version]) -> None:
    first = mixed(here, "a", "b", method="dare_linear_svd", densities=(0.5,), seed=3)
    again = mixed(here, "a", "b", method="dare_linear_svd", densities=(0.5,), seed=3)
    other = mixed(here, "a", "b", method="dare_linear_svd", densities=(0.5,), seed=4)
    assert (first.version, again.version, other.version) == ("mix/1", "mix/1", "mix/2")


def test_a_sweep_keeps_the_best_and_shows_the_grid(here: AdapterMaker, parents: dict[str, Version]) -> None:
    data = rows(here.scratch, 4)
    outcome = mixed(
        here, "a", "b", method="ties_svd", sweep=True, data=data, weights=((0.5, 0.5), (1, 1)), densities=(0.3, 0.9)
    )
    assert len(outcome.grid) == 4
    best = min(outcome.grid, key=lambda tried: tried.loss)
    assert (best.weights, best.density, best.loss) == (outcome.weights, outcome.density, outcome.losses["combined"])
    assert set(outcome.losses) == {"base", "a/1", "b/1", "combined"}
    assert len({tried.loss for tried in outcome.grid}) == 4
    made = here.store.version(parse_version(outcome.version))
    picture = here.store.client.download_artifacts(made.facts.run_id, "sweep.png", str(here.scratch))
    assert Path(picture).read_bytes().startswith(b"\x89PNG")
    assert [str(version.ref) for version in here.store.versions("mix")] == ["mix/1"]


def test_a_sweep_tries_each_parent_in_front_by_itself() -> None:
    assert sweep.weights(2) == ((0.5, 0.5), (0.75, 0.25), (0.25, 0.75), (1, 1))
    assert all(sum(found) in (pytest.approx(1), 3) for found in sweep.weights(3))
    assert len(sweep.weights(3)) == 5


@pytest.mark.parametrize(
    ("method", "mix", "ranks", "said"),
    [
        ("tie", {}, (4, 4), "no method 'tie'"),
        ("cat", {"weights": (1.0,)}, (4, 4), "has 1 for 2 versions"),
        ("cat", {"weights": (0.0, 0.0)}, (4, 4), "not all 0"),
        ("cat", {"weights": (math.nan, 1.0)}, (4, 4), "must be finite"),
        ("ties", {"density": 0.0}, (4, 4), "above 0 and at most 1"),
        ("ties", {"density": 1.5}, (4, 4), "above 0 and at most 1"),
        ("cat", {"density": 0.5}, (4, 4), "cat leaves out nothing"),
        ("cat", {"rank": 4}, (4, 4), "cat gives a rank of its own"),
        ("linear", {}, (4, 2), "have 4, 2"),
        ("cat", {}, (300, 300), "rank 600, and the limit is 512"),
        ("svd", {"rank": 600}, (4, 4), "rank 600, and the limit is 512"),
    ],
)
def test_settings_that_cannot_be_meant(method: str, mix: dict[str, object], ranks: tuple[int, ...], said: str) -> None:
    with pytest.raises(BadInput) as raised:
        combine.plan(method, Mix(**mix), ranks, 512)  # type: ignore[arg-type]
    assert said in "\n".join((str(raised.value), *raised.value.problems))


def test_by_default_the_exact_method_is_taken_where_the_rank_allows() -> None:
    assert combine.plan(None, Mix(), (8, 8), 16) == Mix("cat", (0.5, 0.5))
    assert combine.plan(None, Mix(), (16, 8), 16) == Mix("svd", (0.5, 0.5), rank=16)
    assert combine.plan(None, Mix(rank=8), (16, 8), 64).method == "svd"
    assert combine.plan("ties", Mix(), (8, 8), 16).density == combine.DENSITY


def test_parents_that_do_not_go_together(
    here: AdapterMaker, parents: dict[str, Version], adapters: dict[str, Path]
) -> None:
    with pytest.raises(Refused, match="DoRA") as raised:
        mixed(here, "a", "dora")
    assert "loradock convert dora/1" in raised.value.hint
    here.version(adapters["a"], "foreign", weights_digest="0" * 64)
    with pytest.raises(WrongBase, match="foreign/1 was trained on"):
        mixed(here, "a", "foreign")
    with pytest.raises(BadInput, match="make a grid"):
        mixed(here, "a", "b", weights=((1, 1), (0.5, 0.5)))
    with pytest.raises(BadInput, match="needs --data"):
        mixed(here, "a", "b", sweep=True)
    location = here.store.client.get_logged_model(parents["b"].source.removeprefix("models:/")).artifact_location
    with (Path(location.removeprefix("file://")) / "adapter_config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(DigestMismatch):
        mixed(here, "a", "b")
    assert here.store.find_family("mix") is None
