"""How many adapters fit, by what is promoted and by memory."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from loradock.registry.check import BaseShapes, read_shapes
from loradock.registry.check.shapes import Layer
from loradock.registry.records import Facts, Version
from loradock.registry.refs import VersionRef
from loradock.serving import capacity
from loradock.serving.capacity import Given, choose, rank_limit
from tests.support.adapters import SMOL

MIB = 2**20
LAYERS = {
    "model.embed_tokens": Layer(1000, 64, embedding=True),
    "model.layers.0.self_attn.q_proj": Layer(64, 64),
    "model.layers.0.mlp.up_proj": Layer(64, 256),
    "model.layers.0.norm": Layer(),
    "lm_head": Layer(64, 1000),
}
SHAPES = BaseShapes(LAYERS, complete=True)
ALL = 1064 + 128 + 320 + 1064
"""Values of rank 1 on every layer."""


def version(name: str, rank: int = 8, targets: tuple[str, ...] = ("q_proj",)) -> Version:
    facts = Facts(digest="a" * 64, base=SMOL, method="lora", rank=rank, targets=targets, run_id="", data_digest="")
    return Version(ref=VersionRef(name, 1), facts=facts, source="models:/m-1", created_at=datetime.now(UTC))


def versions(count: int, **kind: int) -> list[Version]:
    return [version(f"bot-{number}", **kind) for number in range(count)]


def chosen(*promoted: Version, memory: int = 2**34, **given: int) -> capacity.Capacity:
    return choose(promoted, SHAPES, item=2, memory=memory, given=Given(**given))


@pytest.mark.parametrize(
    ("ranks", "limit"), [((), 16), ((4,), 16), ((16,), 16), ((17,), 32), ((8, 200), 256), ((257,), 320), ((9999,), 512)]
)
def test_the_rank_limit_is_the_least_that_admits_every_promoted_version(ranks: tuple[int, ...], limit: int) -> None:
    assert rank_limit(ranks) == limit


@pytest.mark.parametrize(("adapters", "slots"), [(0, 4), (2, 4), (3, 5), (14, 16), (40, 16)])
def test_slots_are_as_many_as_adapters_and_room_for_a_move(adapters: int, slots: int) -> None:
    assert chosen(*versions(adapters)).slots == slots


def test_a_version_under_two_aliases_counts_once() -> None:
    assert chosen(version("a"), version("a")).promoted == 1


def test_a_slot_is_as_large_as_the_rank_limit_on_every_layer() -> None:
    assert chosen(version("a", 20)).slot_bytes == 2 * 32 * ALL


def test_a_kept_adapter_is_as_large_as_the_largest_of_those_promoted() -> None:
    small, large = version("a", 8), version("b", 4, ("q_proj", "up_proj"))
    assert chosen(small, large).kept_bytes == max(2 * 8 * 128, 2 * 4 * (128 + 320))
    assert chosen(version("a", 8, ("unknown",))).kept_bytes == 2 * 8 * ALL


def test_where_none_is_promoted_one_on_every_linear_layer_is_reckoned_with() -> None:
    assert chosen().kept_bytes == 2 * 16 * (128 + 320)


def test_what_slots_leave_of_the_budget_is_for_kept_adapters() -> None:
    slots, one = 4 * 2 * 16 * ALL, 2 * 8 * 128
    found = chosen(version("a"), budget=2 * slots + 100)
    assert (found.slots, found.kept) == (4, (slots + 100) // one)
    assert found.slots_bytes + found.kept * found.kept_bytes <= found.budget
    assert found.warnings() == []


def test_slots_take_half_of_the_budget_at_most() -> None:
    one = 2 * 16 * ALL
    assert chosen(*versions(14), budget=2 * 3 * one).slots == 3
    assert chosen(*versions(14), budget=10).slots == 1


def test_no_more_are_kept_than_a_start_should_load() -> None:
    assert chosen(*versions(300)).kept == 256


def test_three_are_kept_at_least() -> None:
    found = chosen(version("a"), budget=10)
    assert (found.slots, found.kept) == (1, 3)


def test_vllm_wants_no_fewer_kept_than_slots() -> None:
    found = chosen(*versions(4), slots=12, budget=10)
    assert found.kept == 12
    assert any("above the budget" in warning for warning in found.warnings())
    assert chosen(*versions(14), kept=3).slots == 3


def test_the_budget_is_an_eighth_of_memory_unless_it_is_given() -> None:
    assert chosen(memory=800 * MIB).budget == 100 * MIB
    assert chosen(memory=800 * MIB, budget=7).budget == 7


def test_it_says_who_will_be_cold_who_will_wait_and_who_is_quarantined() -> None:
    found = chosen(*versions(20), version("high", 64), kept=10, rank=16)
    assert found.cold == 13
    told = "\n".join(found.warnings())
    assert "13 of 21 adapters" in told
    assert "more than 10 adapters at once wait" in told
    assert "high/1 will be quarantined: its rank is above 16" in told


def test_it_says_what_it_chose_and_why() -> None:
    told = "\n".join(chosen(version("a"), memory=2**35).lines("smol"))
    assert "1 adapter is promoted for smol" in told
    assert "1/8 of 32.0 GiB of memory" in told
    assert "as given" in "\n".join(chosen(version("a"), budget=2**30).lines("smol"))


def test_a_real_bases_headers_give_what_its_config_does(base_dir: Path) -> None:
    """SmolLM2: 30 layers of 576, 192 for keys and values, 1536 between, and a vocabulary of 49152 at both ends."""
    layer = 2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536)
    found = choose([], read_shapes(base_dir), item=2, memory=2**34, given=Given())
    assert found.slot_bytes == 2 * 16 * (30 * layer + 2 * (49152 + 576))
    assert found.kept_bytes == 2 * 16 * 30 * layer
