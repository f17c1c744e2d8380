"""What is measured on a call of the engine, and the copies that a shadow gets, on outputs shaped like vLLM's."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from loradock.registry.refs import VersionRef
from loradock.serving.calls import Asked, Call, Request, current
from loradock.serving.meter import Meter
from loradock.serving.shadow import Shadow

BOT = Asked("bot", "production", "ann")
REQUEST = Namespace(lora_name="bot/1")


class FakeSamplingParams(Namespace):
    def clone(self) -> FakeSamplingParams:
        return FakeSamplingParams(**vars(self))


def params(kind: str) -> FakeSamplingParams:
    return FakeSamplingParams(output_kind=Namespace(name=kind))


def output(*counts: int, finish: str | None = None, metrics: Any = None) -> Namespace:
    pieces = [Namespace(index=index, token_ids=[0] * count, finish_reason=finish) for index, count in enumerate(counts)]
    return Namespace(prompt_token_ids=[1, 2, 3], outputs=pieces, finished=bool(finish), metrics=metrics)


class FakeEngineClient:
    def __init__(self, *outputs: Namespace) -> None:
        self.outputs, self.now = outputs, 0.0
        self.asked: list[tuple[Any, ...]] = []
        self.error: Exception | None = None
        self.fails = ""

    async def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, *, lora_request: Any = None
    ) -> AsyncIterator[Any]:
        self.asked.append((prompt, sampling_params, request_id, lora_request and lora_request.lora_name))
        for one in self.outputs:
            self.now += 1.0
            yield one
        if self.error or (lora_request and lora_request.lora_name == self.fails):
            raise self.error or RuntimeError("the engine refuses it")

    async def abort(self, request_id: str) -> None:
        raise AssertionError

    async def encode(self, prompt: Any, pooling_params: Any, request_id: str) -> AsyncIterator[Any]:
        self.now += 1.0
        yield Namespace(prompt_token_ids=[1], outputs=Namespace(data=[0.1]), finished=True)


class MeterHarness:
    def __init__(self, *outputs: Namespace) -> None:
        self.client = FakeEngineClient(*outputs)
        self.meter = Meter(self.client, clock=lambda: self.client.now)
        self.calls: list[Call] = []
        self.meter.ended.append(self.calls.append)

    def run(self, story: Callable[[], Coroutine[Any, Any, None]], asked: Asked | None = BOT) -> None:
        async def told() -> None:
            request = Request(asked) if asked else None
            current.set(request)
            try:
                await story()
            finally:
                if request:
                    request.answered()

        asyncio.run(told())

    def all(self, kind: str, request: Any = REQUEST) -> None:
        async def story() -> None:
            async for _ in self.client.generate("x", params(kind), "id", lora_request=request):
                pass

        self.run(story)


def test_deltas_add_up_and_the_first_token_is_when_it_came() -> None:
    harness = MeterHarness(output(1), output(2), output(1, finish="stop"))
    harness.all("DELTA")
    (call,) = harness.calls
    assert (call.asked, call.version) == (BOT, VersionRef("bot", 1))
    assert (call.prompt_tokens, call.output_tokens, call.finish, call.outcome) == (3, 4, "stop", "ok")
    assert (call.started, call.first_token, call.ended) == (0.0, 1.0, 3.0)


def test_an_answer_that_comes_whole_says_when_its_first_token_came() -> None:
    harness = MeterHarness(output(5, 7, finish="length", metrics=Namespace(first_token_latency=0.25)))
    harness.all("FINAL_ONLY")
    (call,) = harness.calls
    assert (call.output_tokens, call.finish, call.first_token, call.ended) == (12, "length", 0.25, 1.0)


def test_outputs_that_hold_all_so_far_are_not_added() -> None:
    harness = MeterHarness(output(1), output(3), output(4, finish="stop"))
    harness.all("CUMULATIVE")
    assert harness.calls[0].output_tokens == 4


def test_the_base_is_measured_too_and_holds_no_version() -> None:
    harness = MeterHarness(output(1, finish="stop"))
    harness.all("DELTA", request=None)
    assert harness.calls[0].version is None


def test_a_client_that_leaves_is_an_abort_and_an_error_an_error() -> None:
    harness = MeterHarness(output(1), output(1, finish="stop"))

    async def leaves() -> None:
        answers = harness.client.generate("x", params("DELTA"), "id", lora_request=REQUEST)
        await anext(answers)
        assert harness.meter.running("bot/1") == 1
        await answers.aclose()
        assert harness.meter.running("bot/1") == 0

    harness.run(leaves)
    harness.client.outputs, harness.client.error = (output(1),), RuntimeError("the engine is dead")
    with pytest.raises(RuntimeError):
        harness.all("DELTA")
    assert [call.outcome for call in harness.calls] == ["aborted", "error"]


def test_an_answer_that_the_engine_gave_up_is_no_good_one() -> None:
    for reason, outcome in (("error", "error"), ("abort", "aborted"), ("length", "ok")):
        harness = MeterHarness(output(1), output(1, finish=reason))
        harness.all("DELTA")
        assert [call.outcome for call in harness.calls] == [outcome], reason


def test_a_client_that_leaves_when_one_of_its_samples_is_whole_is_an_abort() -> None:
    first = output(1, 1)
    first.outputs[0].finish_reason = "stop"
    harness = MeterHarness(first, output(1, 1, finish="stop"))

    async def leaves() -> None:
        answers = harness.client.generate("x", params("DELTA"), "id", lora_request=REQUEST)
        await anext(answers)
        await answers.aclose()

    harness.run(leaves)
    assert harness.calls[0].outcome == "aborted"


def test_what_a_request_leaves_running_is_told_when_it_ends() -> None:
    harness = MeterHarness(output(1), output(1, finish="stop"))

    async def story() -> None:
        answers = harness.client.generate("x", params("DELTA"), "id", lora_request=REQUEST)
        await anext(answers)
        request = current.get()
        assert request
        request.answered()
        assert harness.calls == []
        assert [found async for found in answers]
        assert [call.output_tokens for call in harness.calls] == [2]

    harness.run(story)
    assert len(harness.calls) == 1


def test_what_nobody_asked_for_is_counted_and_not_measured() -> None:
    harness = MeterHarness(output(1, finish="stop"))

    async def story() -> None:
        async for _ in harness.client.generate("x", params("DELTA"), "id", lora_request=REQUEST):
            assert harness.meter.running("bot/1") == 1

    harness.run(story, asked=None)
    assert harness.calls == []


def test_a_pooling_call_has_no_tokens_of_its_own() -> None:
    harness = MeterHarness()

    async def story() -> None:
        assert [found async for found in harness.client.encode("x", None, "id")]

    harness.run(story)
    (call,) = harness.calls
    assert (call.prompt_tokens, call.output_tokens, call.outcome, call.first_token) == (1, 0, "ok", 1.0)


def test_a_listener_that_fails_harms_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    harness = MeterHarness(output(1, finish="stop"))
    harness.meter.ended.insert(0, lambda _: 1 / 0)
    harness.all("DELTA")
    assert len(harness.calls) == 1
    assert "a listener failed" in caplog.text


def shadowed(harness: MeterHarness) -> Shadow:
    return Shadow(harness.client, lambda name: VersionRef(name, 2), lambda version: Namespace(lora_name=str(version)))


def ask(harness: MeterHarness, asked: Asked = BOT, times: int = 1) -> None:
    async def story() -> None:
        for _ in range(times):
            async for _ in harness.client.generate("x", params("DELTA"), "id", lora_request=REQUEST):
                pass
        for _ in range(20):
            await asyncio.sleep(0)

    harness.run(story, asked)


def test_a_shadow_gets_a_copy_and_only_its_measures_are_kept() -> None:
    harness = MeterHarness(output(2, finish="stop"))
    shadowed(harness)
    ask(harness)
    assert [(prompt, lora) for prompt, _, _, lora in harness.client.asked] == [("x", "bot/1"), ("x", "bot/2")]
    assert harness.client.asked[0][1] is not harness.client.asked[1][1], "vLLM may change the parameters of a request"
    assert {call.asked.role: call.version for call in harness.calls} == {
        "production": VersionRef("bot", 1),
        "shadow": VersionRef("bot", 2),
    }
    assert {call.asked.caller for call in harness.calls} == {"ann"}


def test_the_prompts_of_one_request_are_one_call_and_so_are_their_copies() -> None:
    harness = MeterHarness(output(2, finish="stop"))
    shadowed(harness)
    ask(harness, times=3)
    assert [(call.asked.role, call.prompt_tokens, call.output_tokens) for call in harness.calls] == [
        ("production", 9, 6),
        ("shadow", 9, 6),
    ]


@pytest.mark.parametrize("role", ["base", "alias", "pinned", "shadow"])
def test_only_requests_for_a_bare_name_are_copied(role: Any) -> None:
    harness = MeterHarness(output(1, finish="stop"))
    shadowed(harness)
    ask(harness, Asked("bot", role))
    assert len(harness.client.asked) == 1


def test_a_copy_that_fails_concerns_no_request() -> None:
    harness = MeterHarness(output(1, finish="stop"))
    shadowed(harness)
    harness.client.fails = "bot/2"
    ask(harness)
    assert {(call.asked.role, call.outcome) for call in harness.calls} == {("production", "ok"), ("shadow", "error")}


def test_no_more_copies_run_at_once_than_a_few() -> None:
    harness = MeterHarness(output(1, finish="stop"))
    shadow = shadowed(harness)

    async def story() -> None:
        answers = [harness.client.generate("x", params("DELTA"), "id", lora_request=REQUEST) for _ in range(9)]
        assert shadow.skipped == 5
        for answer in answers:
            assert [found async for found in answer]

    harness.run(story)
