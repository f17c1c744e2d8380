"""A replica's loops, with an engine, a cache and a registry that fail on demand; `test_replica` has the real ones."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from loradock.registry.errors import DigestMismatch, NotFound, NotServable, Unreachable
from loradock.registry.records import TextSettings
from loradock.registry.refs import VersionRef
from loradock.serving.admission import Admission
from tests.support.adapters import SMOL
from tests.support.serving.fakes import FAST, FakeReferences, ReplicaHarness
from tests.support.serving.versions import CAT, ONE, TWO, version

pytestmark = pytest.mark.chance


def test_the_start_ends_when_all_that_is_promoted_answers() -> None:
    harness = ReplicaHarness(ONE, CAT)
    asyncio.run(harness.replica.start())
    assert harness.engine.pointed == {"bot": ONE.ref, "cat": CAT.ref}
    assert harness.replica.status().converged


def test_a_version_that_is_asked_for_while_another_is_unloaded_stays() -> None:
    harness = ReplicaHarness(ONE, CAT)

    async def story() -> None:
        remove = harness.engine.remove

        async def slow(ref: VersionRef) -> None:
            for other in harness.engine.admitted - {ref}:
                assert harness.engine.hold(other)
            await remove(ref)

        harness.engine.remove = slow  # type: ignore[method-assign]
        harness.registry.promote()
        await harness.until(lambda: len(harness.engine.admitted) == 1)
        await harness.turns()
        (left,) = harness.engine.admitted
        harness.engine.release(left)
        await harness.until(lambda: not harness.engine.admitted)

    harness.follow(story)


def test_a_start_without_any_plan_fails() -> None:
    harness = ReplicaHarness(ONE)
    harness.registry.error = Unreachable("out of reach")
    with pytest.raises(Unreachable):
        asyncio.run(harness.replica.start())


def test_a_version_of_another_template_answers_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    here, there = TextSettings(tokenizer="t", template="a"), TextSettings(tokenizer="t", template="b")
    harness = ReplicaHarness(version("bot", 1, text=there), version("cat", 1, text=here), version("dog"), text=here)
    words = "bot/1 was trained with another chat template than its base has here"

    async def story() -> None:
        await harness.turns()
        harness.registry.promote(version("bot", 1, text=there), version("cat", 2, text=here))
        await harness.until(lambda: str(harness.engine.pointed.get("cat")) == "cat/2")

    harness.follow(story)
    status = harness.replica.status()
    assert status.unlike == {ONE.ref: words}
    assert status.converged
    assert caplog.messages.count(words) == 1


def test_a_move_is_followed_and_the_old_version_goes_when_its_requests_have_ended() -> None:
    harness = ReplicaHarness(ONE)

    async def story() -> None:
        harness.engine.in_flight[ONE.ref] = 1
        harness.registry.promote(TWO)
        await harness.until(lambda: harness.engine.pointed == {"bot": TWO.ref})
        await harness.turns()
        assert ONE.ref in harness.engine.loaded
        harness.engine.in_flight[ONE.ref] = 0
        await harness.until(lambda: ONE.ref not in harness.engine.loaded)

    harness.follow(story)


def test_a_version_without_effect_takes_no_traffic_is_unloaded_and_does_not_stop_the_start() -> None:
    harness = ReplicaHarness(ONE, CAT)
    harness.engine.without_effect.add(CAT.ref)
    asyncio.run(harness.replica.start())
    assert harness.engine.pointed == {"bot": ONE.ref}
    assert CAT.ref not in harness.engine.loaded
    status = harness.replica.status()
    assert (status.ready, status.converged) == (False, False)
    assert "no effect" in status.quarantined[CAT.ref].reason
    assert harness.replica.unmet().keys() == {"cat"}


def test_what_failed_is_tried_again_later_and_not_at_every_turn() -> None:
    now = 0.0
    harness = ReplicaHarness(ONE, clock=lambda: now)
    harness.engine.without_effect.add(TWO.ref)

    def tried(attempts: int) -> bool:
        found = harness.replica.status().quarantined.get(TWO.ref)
        return bool(found and found.attempts == attempts)

    async def story() -> None:
        nonlocal now
        harness.registry.promote(TWO)
        for attempts in (1, 2):
            await harness.until(partial(tried, attempts))
            await harness.turns()
            assert harness.cache.asked.count(TWO.ref) == attempts
            assert harness.engine.pointed == {"bot": ONE.ref}
            if attempts == 2:
                harness.engine.without_effect.clear()
            now += attempts * FAST.retry_seconds
        await harness.until(lambda: harness.engine.pointed == {"bot": TWO.ref})
        assert not harness.replica.status().quarantined

    harness.follow(story)


def test_a_quarantine_is_forgotten_when_the_name_moves_on() -> None:
    harness = ReplicaHarness(ONE)
    harness.cache.errors[TWO.ref] = DigestMismatch("bot/2", expected="a", found="b")

    async def story() -> None:
        harness.registry.promote(TWO)
        await harness.until(lambda: harness.replica.status().quarantined)
        assert TWO.ref in harness.registry.forgotten
        harness.registry.promote(ONE)
        await harness.until(lambda: not harness.replica.status().quarantined)
        assert harness.replica.status().converged

    harness.follow(story)


@pytest.mark.parametrize("error", [RuntimeError("a surprise"), Unreachable("out of reach"), KeyError("x")])
def test_no_error_of_the_registry_ends_the_following(error: Exception) -> None:
    harness = ReplicaHarness(ONE)

    async def story() -> None:
        harness.registry.error = error
        await harness.until(lambda: not harness.replica.status().registry.reachable)
        assert harness.engine.pointed == {"bot": ONE.ref}
        harness.registry.error = None
        harness.registry.promote(TWO)
        await harness.until(lambda: harness.engine.pointed == {"bot": TWO.ref})
        assert harness.replica.status().registry.reachable

    harness.follow(story)


def test_no_error_of_the_engine_ends_the_following() -> None:
    harness = ReplicaHarness(ONE)

    async def story() -> None:
        harness.engine.fail_add = RuntimeError("no room")
        harness.registry.promote(TWO)
        await harness.until(lambda: "no room" in str(harness.replica.status().quarantined))
        harness.engine.fail_add = None
        await harness.until(lambda: harness.engine.pointed == {"bot": TWO.ref})

    harness.follow(story)


def test_a_long_download_holds_up_no_other_name() -> None:
    harness = ReplicaHarness(ONE)

    async def story() -> None:
        harness.cache.gate.clear()
        harness.registry.promote(TWO, CAT)
        await harness.until(lambda: harness.replica.status().loading == (TWO.ref, CAT.ref))
        harness.registry.promote(ONE)
        await harness.until(lambda: harness.replica.status().converged)
        harness.registry.promote()
        await harness.until(lambda: harness.engine.pointed == {})
        harness.cache.gate.set()

    harness.follow(story)


def test_a_version_that_was_loaded_for_nothing_is_unloaded_again() -> None:
    harness = ReplicaHarness(ONE)

    async def story() -> None:
        harness.cache.gate.clear()
        harness.registry.promote(TWO)
        await harness.until(lambda: harness.replica.status().loading)
        harness.registry.promote(ONE)
        await harness.until(lambda: harness.replica.status().converged)
        harness.cache.gate.set()
        await harness.until(lambda: not harness.replica.status().loading)
        await harness.until(lambda: harness.engine.loaded.keys() == {ONE.ref})
        assert harness.engine.pointed == {"bot": ONE.ref}

    harness.follow(story)


def test_another_base_is_refused_and_what_was_served_stays() -> None:
    harness = ReplicaHarness(ONE)
    other = SMOL.model_copy(update={"id": "other/base", "weights_digest": "0" * 64})
    moved = TWO.model_copy(update={"facts": TWO.facts.model_copy(update={"base": other})})

    async def story() -> None:
        harness.registry.promote(moved)
        await harness.until(lambda: "bot" in harness.replica.status().refused)
        assert harness.engine.pointed == {"bot": ONE.ref}
        assert harness.replica.status().converged
        assert TWO.ref not in harness.cache.asked

    harness.follow(story)


def test_what_happens_is_told() -> None:
    harness = ReplicaHarness(ONE)
    harness.cache.errors[CAT.ref] = DigestMismatch("cat/1", expected="a", found="b")

    async def story() -> None:
        harness.registry.promote(TWO, CAT)
        await harness.until(lambda: ("forgotten", ONE.ref) in harness.told.calls)
        harness.registry.error = Unreachable("out of reach")
        await harness.until(lambda: ("poll failed",) in harness.told.calls)

    harness.follow(story)
    assert harness.told.calls[:1] == [("loaded", ONE.ref)]
    assert harness.told.calls.count(("flipped", "bot")) == 1, "the first pointing is no flip"
    assert ("quarantined", CAT.ref, "damaged") in harness.told.calls


def test_without_a_reference_a_version_takes_no_traffic_and_the_reason_says_what_to_do() -> None:
    harness = ReplicaHarness()
    admission = Admission(harness.cache, FakeReferences(), harness.engine, proof="parity", precision="float32")
    with pytest.raises(NotServable, match="loradock reference bot/1"):
        asyncio.run(admission.admit(ONE))
    assert not harness.engine.loaded


def test_a_nudge_reads_the_registry_at_once() -> None:
    harness = ReplicaHarness(ONE)
    harness.replica._settings = FAST.model_copy(update={"poll_seconds": 3600.0})

    async def story() -> None:
        reads = harness.registry.reads
        harness.registry.promote(TWO)
        harness.replica.nudge()
        await harness.until(lambda: harness.engine.pointed == {"bot": TWO.ref})
        assert harness.registry.reads == reads + 1

    harness.follow(story)


def test_what_vllm_dropped_by_itself_is_loaded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loradock.serving.replica._AUDIT_SECONDS", 0.01)
    harness = ReplicaHarness(ONE)

    async def story() -> None:
        harness.engine.dropped = [ONE.ref]
        await harness.until(lambda: harness.told.calls.count(("loaded", ONE.ref)) == 2)
        assert harness.engine.pointed == {"bot": ONE.ref}

    harness.follow(story)


def test_a_cold_version_is_loaded_when_it_is_asked_for_and_then_another_makes_room() -> None:
    harness = ReplicaHarness(ONE, CAT, version("dog"), capacity=3)
    dog = version("dog").ref

    async def story() -> None:
        cold = {"bot": ONE.ref, "cat": CAT.ref, "dog": dog}.items() - harness.engine.pointed.items()
        assert len(cold) == 2, "the spare room is left for demand"
        for _, ref in sorted(cold):
            assert (await harness.replica.acquire(ref)).ref == ref
        assert set(harness.engine.loaded) == {ref for _, ref in cold}, "one place is left for moves"
        assert harness.replica.status().converged
        for _, ref in sorted(cold):
            harness.replica.release(ref)

    harness.follow(story)


def test_a_quarantined_version_tells_who_waits_for_it() -> None:
    harness = ReplicaHarness(ONE)
    harness.engine.without_effect.add(TWO.ref)
    harness.registry.others[TWO.ref] = TWO

    async def story() -> None:
        with pytest.raises(NotServable, match="no effect"):
            await harness.replica.acquire(TWO.ref)
        assert harness.engine.pointed == {"bot": ONE.ref}

    harness.follow(story)


def test_a_version_by_its_number_is_loaded_within_the_bound_and_goes_when_it_is_idle() -> None:
    harness = ReplicaHarness(ONE)
    three = version(number=3)
    harness.registry.others = {TWO.ref: TWO, three.ref: three}

    async def story() -> None:
        assert (await harness.replica.acquire(TWO.ref)) == TWO
        with pytest.raises(Unreachable, match="no more may be"):
            await harness.replica.acquire(three.ref)
        harness.replica.release(TWO.ref)
        await harness.until(lambda: TWO.ref not in harness.engine.loaded)
        with pytest.raises(NotFound):
            await harness.replica.acquire(VersionRef("bot", 9))

    harness.follow(story)


def test_a_version_that_does_not_come_within_the_time_is_unreachable() -> None:
    harness = ReplicaHarness(ONE)
    harness.registry.others[TWO.ref] = TWO
    harness.replica._settings = FAST.model_copy(update={"cold_seconds": 0.05})

    async def story() -> None:
        harness.cache.gate.clear()
        with pytest.raises(Unreachable, match=r"within 0.05 s"):
            await harness.replica.acquire(TWO.ref)
        harness.cache.gate.set()

    harness.follow(story)
