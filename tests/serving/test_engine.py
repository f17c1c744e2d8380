"""The bookkeeping, on vLLM's own request type and a client without an engine; `test_replica` has a real one."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest

from loradock.registry.errors import NotServable
from loradock.serving.engine import Engine, unfit
from tests.support.serving.versions import ONE, TWO, version

HERE = Path("/adapters/one")


class FakeEngineClient:
    """Answers with three pieces, and keeps what it was asked for."""

    def __init__(self) -> None:
        self.loaded: dict[int, Any] = {}
        self.asked: list[Any] = []
        self.closed = 0
        self.error: Exception | None = None

    async def generate(self, prompt: str, lora_request: Any = None) -> AsyncIterator[int]:
        self.asked.append(lora_request)
        try:
            for piece in range(3):
                yield piece
        finally:
            self.closed += 1

    async def encode(self, prompt: str, lora_request: Any = None) -> AsyncIterator[int]:
        yield 1

    async def abort(self, request_id: str) -> None:
        raise AssertionError

    async def add_lora(self, request: Any) -> bool:
        if self.error:
            raise self.error
        self.loaded[request.lora_int_id] = request
        return True

    async def remove_lora(self, number: int) -> bool:
        return self.loaded.pop(number, None) is not None


class FakeAtomicCounter:
    """vLLM's AtomicCounter."""

    value = 0

    def inc(self, by: int) -> int:
        self.value += by
        return self.value


class EngineHarness:
    def __init__(self) -> None:
        self.now = 0.0
        self.client = FakeEngineClient()
        self.table: dict[str, Any] = {}
        models = Namespace(
            lora_requests=self.table, lora_id_counter=FakeAtomicCounter(), base_model_paths=[Namespace(name="smol")]
        )
        self.engine = Engine(self.client, models, clock=lambda: self.now)

    async def bring(self, item: Any, name: str = "") -> None:
        await self.engine.add(item, HERE)
        self.engine.admit(item.ref)
        if name:
            self.engine.point(name, item.ref)


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(story)


def test_a_version_has_a_name_and_an_id_of_its_own() -> None:
    async def story() -> None:
        harness = EngineHarness()
        await harness.bring(ONE, "bot")
        await harness.bring(TWO)
        requests = {number: request.lora_name for number, request in harness.client.loaded.items()}
        assert requests == {1: "bot/1", 2: "bot/2"}
        assert not any(request.load_inplace for request in harness.client.loaded.values())
        assert harness.table["bot"].lora_name == "bot/1"
        harness.engine.point("bot", TWO.ref)
        assert harness.table["bot"].lora_name == "bot/2"
        assert harness.engine.pointed == {"bot": TWO.ref}

    run(story())


def test_a_loaded_version_is_not_resident_before_it_is_admitted() -> None:
    async def story() -> None:
        harness = EngineHarness()
        await harness.engine.add(ONE, HERE)
        assert not harness.engine.resident
        harness.engine.admit(ONE.ref)
        assert harness.engine.resident.keys() == {ONE.ref}

    run(story())


def test_requests_are_counted_while_they_run_and_the_base_s_are_not() -> None:
    async def story() -> None:
        harness = EngineHarness()
        await harness.bring(ONE, "bot")
        answer = harness.client.generate("x", lora_request=harness.table["bot"])
        assert harness.engine.resident[ONE.ref].in_flight == 0
        await anext(answer)
        assert harness.engine.resident[ONE.ref].in_flight == 1
        assert [piece async for piece in harness.client.generate("x")] == [0, 1, 2]
        harness.now = 7.0
        assert [piece async for piece in answer] == [1, 2]
        assert harness.engine.resident[ONE.ref].in_flight == 0
        assert harness.engine.resident[ONE.ref].idle_since == 7.0
        assert [request and request.lora_name for request in harness.client.asked] == ["bot/1", None]

    run(story())


def test_a_client_that_leaves_is_counted_out_and_its_request_is_aborted() -> None:
    async def story() -> None:
        harness = EngineHarness()
        await harness.bring(ONE, "bot")
        answer = harness.client.generate("x", lora_request=harness.table["bot"])
        await anext(answer)
        await answer.aclose()
        assert harness.engine.resident[ONE.ref].in_flight == 0
        assert harness.client.closed == 1

    run(story())


def test_the_drain_counts_from_the_moment_the_name_moved() -> None:
    async def story() -> None:
        harness = EngineHarness()
        await harness.bring(ONE, "bot")
        await harness.bring(TWO)
        harness.now = 42.0
        harness.engine.point("bot", TWO.ref)
        assert harness.engine.resident[ONE.ref].idle_since == 42.0

    run(story())


def test_a_late_request_brings_a_version_back_under_its_old_id() -> None:
    async def story() -> None:
        harness = EngineHarness()
        await harness.bring(ONE, "bot")
        late = harness.client.generate("x", lora_request=harness.table["bot"])
        harness.engine.unpoint("bot")
        await harness.engine.remove(ONE.ref)
        assert not harness.engine.resident
        harness.engine.readmit = harness.bring
        assert [piece async for piece in late] == [0, 1, 2]
        assert harness.engine.resident.keys() == {ONE.ref}, "it is loaded again, so it must be retired again"
        await harness.bring(ONE, "bot")
        assert harness.client.loaded.keys() == {1}, "one name never has two ids"

    run(story())


def test_a_late_request_never_makes_vllm_load_a_version_by_itself() -> None:
    async def story() -> None:
        harness = EngineHarness()
        await harness.bring(ONE, "bot")
        late = harness.client.generate("x", lora_request=harness.table["bot"])
        harness.engine.unpoint("bot")
        await harness.engine.remove(ONE.ref)
        with pytest.raises(NotServable, match="it was unloaded"):
            await anext(late)
        assert (harness.client.asked, harness.client.loaded) == ([], {})
        assert harness.engine.meter.running("bot/1") == 0

    run(story())


def test_what_vllm_refuses_is_not_servable_and_leaves_nothing() -> None:
    async def story() -> None:
        harness = EngineHarness()
        for said, told in (
            ("rank too large\nand a long trace", "rank too large"),
            ("Call to add_lora method failed: rank too large", "rank too large"),  # as vLLM's engine core says it
            ("Call to add_lora method failed: ", "the reason is in its log"),  # of a bare assert
        ):
            harness.client.error = ValueError(said)
            with pytest.raises(NotServable, match=f"vLLM cannot load it: {told}$"):
                await harness.engine.add(ONE, HERE)
        assert not harness.engine.resident
        harness.client.error = None
        await harness.bring(ONE)

    run(story())


def test_other_bytes_under_a_number_that_was_loaded_are_refused() -> None:
    async def story() -> None:
        harness = EngineHarness()
        await harness.bring(ONE)
        with pytest.raises(NotServable, match="other bytes"):
            await harness.engine.add(version(number=1, digest="other"), HERE)

    run(story())


FIT = {"enable_lora": True, "api_server_count": None, "lora_modules": None, "headless": False, "grpc": False}


@pytest.mark.parametrize(
    ("changes", "environ", "faults"),
    [
        ({}, {}, 0),
        ({"api_server_count": 1}, {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0"}, 0),
        ({"enable_lora": False}, {}, 1),
        ({"api_server_count": 2}, {}, 1),
        ({"lora_modules": ["a"]}, {}, 1),
        ({"grpc": True}, {}, 1),
        ({}, {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}, 1),
        ({}, {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}, 1),
        ({"api_server_count": 4}, {"VLLM_SKIP_MODEL_NAME_VALIDATION": "1"}, 2),
        ({"dtype": "bfloat16"}, {}, 0),
        ({"dtype": "float32"}, {}, 1),
        ({"lora_target_modules": ["o_proj"]}, {}, 1),
        ({"default_mm_loras": {"image": "/adapter"}, "enable_moe_shared_loras": True}, {}, 2),
    ],
)
def test_arguments_that_break_a_promise_are_named(
    changes: dict[str, Any], environ: dict[str, str], faults: int
) -> None:
    assert len(unfit(Namespace(**FIT | changes), environ, cpu=False)) == faults


def test_a_cpu_computes_in_float32() -> None:
    assert unfit(Namespace(**FIT, dtype="float32"), {}, cpu=True) == []
