"""A replica's loops, with an engine, a cache and a registry that fail on demand; `test_replica` has the real ones."""

from __future__ import annotations

import asyncio

import pytest

from registry.errors import DigestMismatch, NotFound, NotServable, Unreachable
from registry.refs import VersionRef
from serving.admission import Admission
from tests.support.adapters import SMOL
from tests.support.serving.fakes import FAST, FakeReferences, House
from tests.support.serving.versions import CAT, ONE, TWO, version


def test_the_start_ends_when_all_that_is_promoted_answers() -> None:
    house = House(ONE, CAT)
    asyncio.run(house.replica.start())
    assert house.engine.pointed == {"bot": ONE.ref, "cat": CAT.ref}
    assert house.replica.status()["converged"]


def test_a_start_without_any_plan_fails() -> None:
    house = House(ONE)
    house.registry.error = Unreachable("out of reach")
    with pytest.raises(Unreachable):
        asyncio.run(house.replica.start())


def test_a_move_is_followed_and_the_old_version_goes_when_its_requests_have_ended() -> None:
    house = House(ONE)

    async def story() -> None:
        house.engine.in_flight[ONE.ref] = 1
        house.registry.promote(TWO)
        await house.until(lambda: house.engine.pointed == {"bot": TWO.ref})
        await asyncio.sleep(3 * FAST.drain_seconds)
        assert ONE.ref in house.engine.loaded
        house.engine.in_flight[ONE.ref] = 0
        await house.until(lambda: ONE.ref not in house.engine.loaded)

    house.follow(story)


def test_a_version_without_effect_takes_no_traffic_is_unloaded_and_does_not_stop_the_start() -> None:
    house = House(ONE, CAT)
    house.engine.without_effect.add(CAT.ref)
    asyncio.run(house.replica.start())
    assert house.engine.pointed == {"bot": ONE.ref}
    assert CAT.ref not in house.engine.loaded
    status = house.replica.status()
    assert (status["ready"], status["converged"]) == (False, False)
    assert "no effect" in status["quarantined"]["cat/1"]["reason"]
    assert house.replica.unmet().keys() == {"cat"}


def test_what_failed_is_tried_again_later_and_not_at_every_turn() -> None:
    house = House(ONE)
    house.engine.without_effect.add(TWO.ref)

    async def story() -> None:
        house.registry.promote(TWO)
        await house.until(lambda: house.replica.status()["quarantined"].get("bot/2", {}).get("attempts") == 2)
        assert house.cache.asked.count(TWO.ref) == 2
        assert house.engine.pointed == {"bot": ONE.ref}
        house.engine.without_effect.clear()
        await house.until(lambda: house.engine.pointed == {"bot": TWO.ref})
        assert not house.replica.status()["quarantined"]

    house.follow(story)


def test_a_quarantine_is_forgotten_when_the_name_moves_on() -> None:
    house = House(ONE)
    house.cache.errors[TWO.ref] = DigestMismatch("bot/2", expected="a", found="b")

    async def story() -> None:
        house.registry.promote(TWO)
        await house.until(lambda: house.replica.status()["quarantined"])
        assert TWO.ref in house.registry.forgotten
        house.registry.promote(ONE)
        await house.until(lambda: not house.replica.status()["quarantined"])
        assert house.replica.status()["converged"]

    house.follow(story)


@pytest.mark.parametrize("error", [RuntimeError("a surprise"), Unreachable("out of reach"), KeyError("x")])
def test_no_error_of_the_registry_ends_the_following(error: Exception) -> None:
    house = House(ONE)

    async def story() -> None:
        house.registry.error = error
        await house.until(lambda: not house.replica.status()["registry"]["reachable"])
        assert house.engine.pointed == {"bot": ONE.ref}
        house.registry.error = None
        house.registry.promote(TWO)
        await house.until(lambda: house.engine.pointed == {"bot": TWO.ref})
        assert house.replica.status()["registry"]["reachable"]

    house.follow(story)


def test_no_error_of_the_engine_ends_the_following() -> None:
    house = House(ONE)

    async def story() -> None:
        house.engine.fail_add = RuntimeError("no room")
        house.registry.promote(TWO)
        await house.until(lambda: "no room" in str(house.replica.status()["quarantined"]))
        house.engine.fail_add = None
        await house.until(lambda: house.engine.pointed == {"bot": TWO.ref})

    house.follow(story)


def test_a_long_download_holds_up_no_other_name() -> None:
    house = House(ONE)

    async def story() -> None:
        house.cache.gate.clear()
        house.registry.promote(TWO, CAT)
        await house.until(lambda: house.replica.status()["loading"] == ["bot/2", "cat/1"])
        house.registry.promote(ONE)
        await house.until(lambda: house.replica.status()["converged"])
        house.registry.promote()
        await house.until(lambda: house.engine.pointed == {})
        house.cache.gate.set()

    house.follow(story)


def test_a_version_that_was_loaded_for_nothing_is_unloaded_again() -> None:
    house = House(ONE)

    async def story() -> None:
        house.cache.gate.clear()
        house.registry.promote(TWO)
        await house.until(lambda: house.replica.status()["loading"])
        house.registry.promote(ONE)
        await house.until(lambda: house.replica.status()["converged"])
        house.cache.gate.set()
        await house.until(lambda: not house.replica.status()["loading"])
        await house.until(lambda: house.engine.loaded.keys() == {ONE.ref})
        assert house.engine.pointed == {"bot": ONE.ref}

    house.follow(story)


def test_another_base_is_refused_and_what_was_served_stays() -> None:
    house = House(ONE)
    other = SMOL.model_copy(update={"id": "other/base", "weights_digest": "0" * 64})
    moved = TWO.model_copy(update={"facts": TWO.facts.model_copy(update={"base": other})})

    async def story() -> None:
        house.registry.promote(moved)
        await house.until(lambda: "bot" in house.replica.status()["refused"])
        assert house.engine.pointed == {"bot": ONE.ref}
        assert house.replica.status()["converged"]
        assert TWO.ref not in house.cache.asked

    house.follow(story)


def test_what_happens_is_told() -> None:
    house = House(ONE)
    house.cache.errors[CAT.ref] = DigestMismatch("cat/1", expected="a", found="b")

    async def story() -> None:
        house.registry.promote(TWO, CAT)
        await house.until(lambda: ("forgotten", ONE.ref) in house.told.calls)
        house.registry.error = Unreachable("out of reach")
        await house.until(lambda: ("poll failed",) in house.told.calls)

    house.follow(story)
    assert house.told.calls[:1] == [("loaded", ONE.ref)]
    assert house.told.calls.count(("flipped", "bot")) == 1, "the first pointing is no flip"
    assert ("held back", CAT.ref, "damaged") in house.told.calls


def test_without_a_reference_a_version_takes_no_traffic_and_the_reason_says_what_to_do() -> None:
    house = House()
    admission = Admission(house.cache, FakeReferences(), house.engine, proof="parity", precision="float32")
    with pytest.raises(NotServable, match="loradock record bot/1"):
        asyncio.run(admission.admit(ONE))
    assert not house.engine.loaded


def test_a_nudge_reads_the_registry_at_once() -> None:
    house = House(ONE)
    house.replica._settings = FAST.model_copy(update={"poll_seconds": 3600.0})

    async def story() -> None:
        reads = house.registry.reads
        house.registry.promote(TWO)
        house.replica.nudge()
        await house.until(lambda: house.engine.pointed == {"bot": TWO.ref})
        assert house.registry.reads == reads + 1

    house.follow(story)


def test_what_vllm_dropped_by_itself_is_loaded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.replica._AUDIT_SECONDS", 0.01)
    house = House(ONE)

    async def story() -> None:
        house.engine.dropped = [ONE.ref]
        await house.until(lambda: house.told.calls.count(("loaded", ONE.ref)) == 2)
        assert house.engine.pointed == {"bot": ONE.ref}

    house.follow(story)


def test_a_cold_version_is_loaded_when_it_is_asked_for_and_then_another_makes_room() -> None:
    house = House(ONE, CAT, version("dog"), capacity=3)
    dog = version("dog").ref

    async def story() -> None:
        cold = {"bot": ONE.ref, "cat": CAT.ref, "dog": dog}.items() - house.engine.pointed.items()
        assert len(cold) == 2, "the spare room is left for demand"
        for _, ref in sorted(cold):
            assert (await house.replica.acquire(ref)).ref == ref
        assert set(house.engine.loaded) == {ref for _, ref in cold}, "one place is left for moves"
        assert house.replica.status()["converged"]
        for _, ref in sorted(cold):
            house.replica.release(ref)

    house.follow(story)


def test_a_version_that_is_held_back_tells_who_waits_for_it() -> None:
    house = House(ONE)
    house.engine.without_effect.add(TWO.ref)
    house.registry.others[TWO.ref] = TWO

    async def story() -> None:
        with pytest.raises(NotServable, match="no effect"):
            await house.replica.acquire(TWO.ref)
        assert house.engine.pointed == {"bot": ONE.ref}

    house.follow(story)


def test_a_version_by_its_number_is_loaded_within_the_bound_and_goes_when_it_is_idle() -> None:
    house = House(ONE)
    three = version(number=3)
    house.registry.others = {TWO.ref: TWO, three.ref: three}

    async def story() -> None:
        assert (await house.replica.acquire(TWO.ref)) == TWO
        with pytest.raises(Unreachable, match="no more may be"):
            await house.replica.acquire(three.ref)
        house.replica.release(TWO.ref)
        await house.until(lambda: TWO.ref not in house.engine.loaded)
        with pytest.raises(NotFound):
            await house.replica.acquire(VersionRef("bot", 9))

    house.follow(story)


def test_a_version_that_does_not_come_within_the_time_is_unreachable() -> None:
    house = House(ONE)
    house.registry.others[TWO.ref] = TWO
    house.replica._settings = FAST.model_copy(update={"cold_seconds": 0.05})

    async def story() -> None:
        house.cache.gate.clear()
        with pytest.raises(Unreachable, match=r"within 0.05 s"):
            await house.replica.acquire(TWO.ref)
        house.cache.gate.set()

    house.follow(story)
