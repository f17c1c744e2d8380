"""What a request costs that vLLM splits, or nobody waits for: on vLLM's own code, with no model behind it."""

from __future__ import annotations

import asyncio
import time
import warnings
from argparse import Namespace
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from copy import copy
from typing import Any

import pytest

from loradock.serving.calls import Asked, Call, Request, current
from loradock.serving.engine import computed
from loradock.serving.meter import Meter
from loradock.serving.shadow import Shadow
from tests.support.serving.versions import TWO

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM's and torch's own, while they are imported
    from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin
    from vllm.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams
    from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector
    from vllm.v1.engine.parallel_sampling import ParentRequest

pytestmark = pytest.mark.slow

LORA = Namespace(lora_name="bot/1", lora_int_id=1)
BOT = Asked("bot", "production", "ann")
EOS = 0


class FakeEngineCore:
    async def abort_requests_async(self, ids: Sequence[str]) -> None:
        pass


class EnginelessClient:
    """vLLM's client, which splits a request into samples and aborts them, with tokens that a test gives it."""

    generate, abort = AsyncLLM.generate, AsyncLLM.abort
    log_requests = False

    def __init__(self) -> None:
        self.engine_core = FakeEngineCore()
        self.output_processor = OutputProcessor(None, log_stats=False)
        self.added = asyncio.Event()

    async def encode(self) -> None:
        raise AssertionError

    async def add_request(self, request_id: str, prompt: Any, params: SamplingParams, **_: Any) -> Any:
        """What AsyncLLM's does once it has read the prompt."""
        ids = prompt["prompt_token_ids"]
        request = EngineCoreRequest(f"{request_id}-12345678", ids, None, params, None, time.time(), None, None, None)
        request.external_req_id = request_id
        queue = RequestOutputCollector(params.output_kind, request.request_id)
        parent = ParentRequest(request) if params.n > 1 else None
        for index in range(params.n):
            child = copy(request)
            if parent:
                child.request_id, child.sampling_params = parent.get_child_info(index)
            self.output_processor.add_request(child, None, parent, index, queue)
        self.added.set()
        return queue

    def step(self, *tokens: Sequence[int], ended: FinishReason | None = None) -> None:
        """Let the engine say these tokens, of each request that runs one after another."""
        running = list(self.output_processor.request_states)
        self.output_processor.process_outputs(
            [
                EngineCoreOutput(request_id, list(new), finish_reason=ended)
                for request_id, new in zip(running, tokens, strict=False)
            ]
        )


class SplitsHarness:
    def __init__(self) -> None:
        self.client = EnginelessClient()
        self.calls: list[Call] = []
        meter = Meter(self.client, computed=lambda request_id: computed(self.client, request_id))
        meter.ended.append(self.calls.append)

    def run(self, story: Callable[[], Awaitable[None]]) -> Call:
        """One request in which this happens: its only call."""

        async def request() -> None:
            request = Request(BOT)
            current.set(request)
            await story()
            assert self.calls == [], "before its answer has ended"
            request.answered()

        asyncio.run(request())
        (call,) = self.calls
        return call

    async def answer(self, prompt: Sequence[int], params: SamplingParams, request_id: str = "cmpl-1-0") -> None:
        answers = self.client.generate({"prompt_token_ids": list(prompt)}, params, request_id, lora_request=LORA)
        async with aclosing(answers):
            async for _ in answers:
                pass

    async def begun(self, prompt: Sequence[int], params: SamplingParams, request_id: str = "cmpl-1-0") -> Any:
        task = asyncio.create_task(self.answer(prompt, params, request_id))
        await self.client.added.wait()
        self.client.added.clear()
        return task


def whole(n: int = 1) -> SamplingParams:
    return SamplingParams(n=n, output_kind=RequestOutputKind.FINAL_ONLY, detokenize=False)


async def given_up(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("kind", list(RequestOutputKind))
def test_an_answer_that_is_abandoned_costs_what_was_computed_of_it(kind: RequestOutputKind) -> None:
    harness = SplitsHarness()

    async def story() -> None:
        task = await harness.begun([5, 6, 7], SamplingParams(output_kind=kind, detokenize=False))
        for _ in range(4):
            harness.client.step([9])
        await given_up(task)

    call = harness.run(story)
    assert (call.prompt_tokens, call.output_tokens, call.outcome) == (3, 4, "aborted")


def test_a_prompt_that_is_abandoned_before_its_first_token_is_paid() -> None:
    harness = SplitsHarness()

    async def story() -> None:
        await given_up(await harness.begun([5, 6, 7], whole()))

    call = harness.run(story)
    assert (call.prompt_tokens, call.output_tokens, call.outcome) == (3, 0, "aborted")


def test_samples_that_are_abandoned_cost_what_each_had() -> None:
    harness = SplitsHarness()

    async def story() -> None:
        task = await harness.begun([5, 6, 7], whole(n=3))
        harness.client.step([9], [9, 9], [9])
        harness.client.step([9], ended=FinishReason.STOP)
        await given_up(task)

    call = harness.run(story)
    assert (call.prompt_tokens, call.output_tokens, call.longest, call.outcome) == (3, 5, 2, "aborted")


def test_only_the_tokens_of_ones_own_answer_are_paid_where_ids_are_the_same() -> None:
    harness = SplitsHarness()

    async def story() -> None:
        task = await harness.begun([5, 6, 7], whole())
        states = harness.client.output_processor.request_states
        states["cmpl-1-0-other"] = other = copy(next(iter(states.values())))
        other.request_id = "cmpl-1-0-other"
        harness.client.output_processor.external_req_ids["cmpl-1-0"].append("cmpl-1-0-other")
        harness.client.step([9])
        await given_up(task)
        assert "cmpl-1-0-other" in states

    assert harness.run(story).output_tokens == 1


@pytest.mark.parametrize("n", [1, 4])
def test_samples_and_prompts_are_one_call_whose_tokens_are_all_counted(n: int) -> None:
    harness = SplitsHarness()

    async def story() -> None:
        tasks = [await harness.begun([5] * (2 + at), whole(n), f"cmpl-1-{at}") for at in range(3)]
        harness.client.step(*([8] * (1 + at % 3) for at in range(3 * n)), ended=FinishReason.LENGTH)
        await asyncio.gather(*tasks)

    call = harness.run(story)
    assert (call.prompt_tokens, call.output_tokens) == (2 + 3 + 4, sum(1 + at % 3 for at in range(3 * n)))
    assert (call.longest, call.finish, call.outcome) == (3, "length", "ok")


class FakeBeamClient:
    """Says of every step which tokens may come next, as a model of eight tokens would."""

    def __init__(self) -> None:
        self.input_processor = Namespace(resolve_watermarking=lambda _: False)
        self.steps, self.lasting, self.last = 0, 10**9, asyncio.Event()

    async def encode(self) -> None:
        raise AssertionError

    async def abort(self, request_id: str) -> None:
        raise AssertionError

    async def generate(self, prompt: Any, params: Any, request_id: str, **_: Any) -> Any:
        self.steps += 1
        if self.steps > self.lasting:
            self.last.set()
            await asyncio.Event().wait()
        tokens = [(sum(prompt["prompt_token_ids"]) + add) % 7 + 1 for add in range(params.logprobs)]
        said = {token: Namespace(logprob=-0.1 * (1 + at)) for at, token in enumerate(tokens)}
        piece = Namespace(index=0, token_ids=tokens[:1], finish_reason="length", logprobs=[said])
        yield Namespace(
            prompt_token_ids=prompt["prompt_token_ids"], outputs=[piece], finished=True, metrics=None, prompt=None
        )


class FakeServing(BeamSearchOnlineMixin):
    def __init__(self, client: Any) -> None:
        self.engine_client = client
        self.renderer = Namespace(
            get_tokenizer=lambda: Namespace(eos_token_id=EOS, decode=lambda _, skip_special_tokens: "")
        )


class BeamHarness:
    def __init__(self) -> None:
        self.client = FakeBeamClient()
        self.calls: list[Call] = []
        Meter(self.client).ended.append(self.calls.append)
        self.shadow = Shadow(self.client, lambda _: TWO.ref, lambda ref: Namespace(lora_name=str(ref)))
        self.serving = FakeServing(self.client)

    async def search(self, prompt: Sequence[int], width: int, steps: int) -> Mapping[str, int]:
        """A whole search, and the usage that vLLM reports of it."""
        params = BeamSearchParams(beam_width=width, max_tokens=steps, temperature=0.0)
        found = self.serving.beam_search(
            {"type": "token", "prompt_token_ids": list(prompt)}, "cmpl-1", params, lora_request=LORA
        )
        (final,) = [one async for one in found]
        return {"prompt": len(final.prompt_token_ids), "steps": len(final.outputs[0].token_ids)}

    def run(self, story: Callable[[], Awaitable[None]]) -> Call:
        async def request() -> None:
            request = Request(BOT)
            current.set(request)
            await story()
            request.answered()

        asyncio.run(request())
        (call,) = self.calls
        return call


@pytest.mark.parametrize(("width", "prompts"), [(1, 1), (3, 1), (3, 2)])
def test_a_beam_search_is_one_call_and_reads_its_prompts_once(width: int, prompts: int) -> None:
    harness = BeamHarness()

    async def story() -> None:
        told = await asyncio.gather(*(harness.search([3, 4, 5, at], width, steps=6) for at in range(prompts)))
        assert told == [{"prompt": 4, "steps": 6}] * prompts

    call = harness.run(story)
    assert call.prompt_tokens == 4 * prompts
    assert call.output_tokens == prompts * (1 + 5 * width) == harness.client.steps
    assert (call.longest, call.finish, call.outcome) == (6, "stop", "ok")


def test_a_beam_search_that_is_abandoned_costs_the_steps_before_and_is_aborted() -> None:
    harness = BeamHarness()
    harness.client.lasting = 1 + 3 + 3

    async def story() -> None:
        task = asyncio.create_task(harness.search([3, 4, 5], 3, steps=100))
        await harness.client.last.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)

    call = harness.run(story)
    assert (call.prompt_tokens, call.output_tokens, call.outcome) == (3, 7, "aborted")


def test_a_shadow_is_not_asked_the_steps_of_a_beam_search() -> None:
    harness = BeamHarness()

    async def story() -> None:
        await harness.search([3, 4, 5], 3, steps=4)

    assert harness.run(story).asked == BOT
    assert harness.shadow.skipped == 0
