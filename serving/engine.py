"""vLLM's engine as a replica drives it: load a version beside the others, move a name, count requests, unload.

Every version has an engine name of its own (`support-bot/3`) and an id of its own, for as long as the process lives:
vLLM compares adapters by name and stores them by id, and checks neither. A public name is an entry of the plain dict in
which vLLM looks up a request's model, so that one assignment moves it; requests that looked it up before keep theirs.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from argparse import Namespace
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from loradock.registry.errors import NotServable, first_line
from loradock.registry.outside import printable
from loradock.registry.records import Version
from loradock.registry.refs import VersionRef
from loradock.serving.meter import Meter
from loradock.serving.probe import Scored
from loradock.serving.reconcile import Resident

FORBIDDEN: Final = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "it opens routes that load and unload adapters behind the registry's back",
    "VLLM_SKIP_MODEL_NAME_VALIDATION": "it lets the base answer for a name that is not served",
    "VLLM_SERVER_DEV_MODE": "it opens routes that pause the engine, change its weights and run any code in it",
    "PROMETHEUS_MULTIPROC_DIR": "with it /metrics leaves out what loradock measures",
}
"""Variables of vLLM that break what loradock promises."""

_HEAD: Final = "lm_head"


@dataclass(slots=True)
class _Held:
    version: Version
    request: Any
    resident: bool = False
    idle_since: float = 0.0


class Engine:
    """One vLLM engine client and the model table of its server; use it on the server's event loop only."""

    def __init__(self, client: Any, models: Any, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._models = models
        self._clock = clock
        self._held: dict[str, _Held] = {}
        self._waited: Counter[str] = Counter()
        self._pointed: dict[str, VersionRef] = {}
        self.meter = Meter(client, computed=lambda request_id: computed(client, request_id), clock=clock)
        self.meter.admitted = self._admitted
        self.meter.left.append(self._on_leave)
        self.readmit: Callable[[Version], Awaitable[None]] = _refuse
        """Loads and proves a version again that was let go of while a call was on its way to it."""

    @property
    def served_as(self) -> frozenset[str]:
        """The names under which the base itself answers."""
        return frozenset(path.name for path in self._models.base_model_paths)

    @property
    def pointed(self) -> Mapping[str, VersionRef]:
        """Public names that answer now, and with which version."""
        return MappingProxyType(self._pointed)

    @property
    def resident(self) -> Mapping[VersionRef, Resident]:
        """Versions that the engine holds, with their requests."""
        return {
            held.version.ref: Resident(held.version, self._in_flight(name), held.idle_since)
            for name, held in self._held.items()
            if held.resident
        }

    async def add(self, version: Version, directory: Path) -> None:
        """Load a version; nobody can ask for it yet, and `resident` does not show it before `admit`.

        Raises NotServable when vLLM refuses it. Its bytes are fixed by its digest, so loading it a second time may
        use the same id, and then a late request from its first stay cannot meet a second id under one name.
        """
        from vllm.lora.request import LoRARequest

        name = str(version.ref)
        held = self._held.get(name)
        if held is None:
            request = LoRARequest(
                lora_name=name, lora_int_id=self._models.lora_id_counter.inc(1), lora_path=str(directory)
            )
            held = self._held[name] = _Held(version, request)
        if held.version.facts.digest != version.facts.digest:
            raise NotServable(name, ["its number was loaded with other bytes before; restart the replica"])
        try:
            loaded = await self._client.add_lora(held.request)
        except Exception as error:
            said = first_line(error).removeprefix("Call to add_lora method failed:").strip()
            reason = printable(said) or "the reason is in its log"
            raise NotServable(name, [f"vLLM cannot load it: {reason}"]) from error
        if not loaded:
            raise NotServable(name, ["vLLM did not load it"])

    def admit(self, ref: VersionRef) -> None:
        """Let names point at a version that was loaded and probed, and requests ask for it by its number."""
        held = self._held[str(ref)]
        held.resident, held.idle_since = True, self._clock()
        self._models.lora_requests[str(ref)] = held.request

    def hold(self, ref: VersionRef) -> Version | None:
        """Keep a version from being unloaded until `release`; None when it is not resident."""
        held = self._held.get(str(ref))
        if held is None or not held.resident:
            return None
        self._waited[str(ref)] += 1
        return held.version

    def release(self, ref: VersionRef) -> None:
        """End what `hold` began."""
        self._waited[str(ref)] -= 1
        self._on_leave(str(ref))

    def point(self, name: str, ref: VersionRef) -> None:
        """Let a public name be answered by a resident version, from the next request on."""
        before = self._pointed.get(name)
        self._models.lora_requests[name] = self._held[str(ref)].request
        self._pointed[name] = ref
        self._mark_idle(before)

    def unpoint(self, name: str) -> None:
        """Take a public name off; its requests in flight go on."""
        self._models.lora_requests.pop(name, None)
        self._mark_idle(self._pointed.pop(name, None))

    async def remove(self, ref: VersionRef) -> None:
        """Unload a version that nothing points at."""
        held = self._held[str(ref)]
        held.resident = False
        self._models.lora_requests.pop(str(ref), None)
        await self._client.remove_lora(held.request.lora_int_id)

    async def lost(self) -> tuple[VersionRef, ...]:
        """Versions that the ledger holds and vLLM does not; they are no longer resident.

        A request that comes for one waits until it is loaded and proven again.
        """
        before = {name for name, held in self._held.items() if held.resident}
        there = await self._client.list_loras()
        gone = [held for name in before if (held := self._held[name]).request.lora_int_id not in there]
        for held in gone:
            held.resident = False
        return tuple(held.version.ref for held in gone)

    async def scores(self, tokens: Sequence[int], ref: VersionRef | None) -> Sequence[Scored]:
        """Of each given token but the first, by a loaded version, or by the base for None."""
        held = self._held[str(ref)] if ref else None
        if held and _HEAD in held.version.facts.targets:
            # vLLM computes a prompt's log-probabilities with the head of other rows, those that it samples from.
            steps = (
                self._ask(tokens[:end], held, logprobs=0, allowed_token_ids=[tokens[end]])
                for end in range(1, len(tokens))
            )
            found = [answer.outputs[0].logprobs[0] for answer in await asyncio.gather(*steps)]
            return [Scored(entry.logprob, entry.rank) for entries in found for entry in entries.values()]
        final = await self._ask(tokens, held, prompt_logprobs=0)
        given = zip(final.prompt_token_ids, final.prompt_logprobs, strict=True)
        return [Scored(entry[token].logprob, entry[token].rank) for token, entry in given if entry]

    async def _ask(self, tokens: Sequence[int], held: _Held | None, **options: Any) -> Any:
        """One step of the engine on these tokens: its last output."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(temperature=0.0, max_tokens=1, output_kind=RequestOutputKind.FINAL_ONLY, **options)
        final: Any = None
        answers = self.meter.generate(
            tokens_input(prompt_token_ids=list(tokens)),
            params,
            f"loradock-probe-{uuid.uuid4().hex}",
            lora_request=held.request if held else None,
        )
        async with aclosing(answers) as outputs:
            async for output in outputs:
                final = output
        return final

    def tokens(self, prompt: str) -> list[int]:
        """A prompt as the base's tokenizer has it."""
        return list(self._client.renderer.get_tokenizer().encode(prompt))

    def request(self, ref: VersionRef) -> Any:
        """The request of vLLM's for a version that was loaded."""
        return self._held[str(ref)].request

    async def cards(self, names: Mapping[str, VersionRef], digests: Mapping[VersionRef, str]) -> list[dict[str, Any]]:
        """`GET /v1/models`: the base, then each name with the version that answers it."""
        from vllm.entrypoints.serve.engine.protocol import ModelCard, ModelPermission

        bases = (await self._models.registry.show_available_models()).data
        adapters = [
            ModelCard(
                id=name,
                root=str(ref),
                parent=bases[0].id,
                max_model_len=bases[0].max_model_len,
                permission=[ModelPermission()],
                digest=digests[ref],
                loaded=(held := self._held.get(str(ref))) is not None and held.resident,
            )
            for name, ref in sorted(names.items())
        ]
        return [card.model_dump() for card in (*bases, *adapters)]

    def _in_flight(self, name: str) -> int:
        # A request is counted from when its version was chosen, and by its calls of the engine while they run, some of
        # which outlive it.
        return max(self._waited[name], self.meter.running(name))

    async def _admitted(self, name: str) -> None:
        # vLLM would load a version again by itself, from whatever its files hold by now, for a request that looked its
        # name up before a drain ended.
        if (held := self._held.get(name)) and not held.resident:
            await self.readmit(held.version)

    def _on_leave(self, name: str) -> None:
        if held := self._held.get(name):
            held.idle_since = self._clock()

    def _mark_idle(self, ref: VersionRef | None) -> None:
        if ref and (held := self._held.get(str(ref))):
            held.idle_since = self._clock()


async def _refuse(version: Version) -> None:
    raise NotServable(str(version.ref), ["it was unloaded"])


def unfit(args: Namespace, environ: Mapping[str, str], *, cpu: bool) -> list[str]:
    """What in vLLM's own arguments and variables rules out following a registry; empty when nothing does."""
    faults = []
    if not getattr(args, "enable_lora", False):
        faults.append("--enable-lora is missing")
    if (getattr(args, "api_server_count", None) or 1) > 1:
        faults.append("--api-server-count is above 1, and each of these servers would move names on its own")
    if getattr(args, "lora_modules", None):
        faults.append("--lora-modules adds adapters that no registry knows; register and promote them instead")
    if getattr(args, "headless", False) or getattr(args, "grpc", False):
        faults.append("--headless and --grpc leave out the HTTP server that loradock's routes are part of")
    faults += misreading(args, cpu=cpu)
    return [*faults, *(f"{name} is set: {why}" for name, why in FORBIDDEN.items() if _is_set(environ, name))]


_MISREADING: Final = {
    "lora_target_modules": "vLLM leaves out, without a word, what an adapter does to other modules",
    "default_mm_loras": "it adds adapters that no registry knows, by what a request holds",
    "enable_moe_shared_loras": "vLLM then reads adapters of experts in a form that PEFT does not write",
}


def misreading(args: Any, *, cpu: bool) -> list[str]:
    """What in vLLM's own arguments makes adapters do something else than they were trained to do, or nothing."""
    faults = [f"--{name.replace('_', '-')}: {why}" for name, why in _MISREADING.items() if getattr(args, name, None)]
    if not cpu and {"float", "float32"} & {getattr(args, "dtype", None), getattr(args, "lora_dtype", None)}:
        faults.append("--dtype float32: vLLM's LoRA kernels for GPUs compute in 16 bits only")
    return faults


def _is_set(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").strip().lower() not in ("", "0", "false")


def max_lora_rank(client: Any) -> int:
    """The largest rank that this engine was started for."""
    return int(client.vllm_config.lora_config.max_lora_rank)


def capacity(client: Any) -> int:
    """How many adapters this engine keeps loaded."""
    return int(client.vllm_config.lora_config.max_cpu_loras)


def slots(client: Any) -> int:
    """How many adapters this engine takes into one batch."""
    return int(client.vllm_config.lora_config.max_loras)


def precision(client: Any) -> str:
    """In what this engine holds the base: `float32`, `bfloat16`, `float16`, or `quantized`."""
    config = client.vllm_config.model_config
    return "quantized" if config.quantization else str(config.dtype).removeprefix("torch.")


def stored_model(state: Any, response_id: str) -> str:
    """The name of whoever gave a response that vLLM keeps, by its id; empty where it keeps none."""
    kept = getattr(getattr(state, "openai_serving_responses", None), "response_store", {})
    return str(getattr(kept.get(response_id), "model", ""))


def computed(client: Any, request_id: str) -> tuple[Sequence[int], Mapping[int, int]] | None:
    """Of a request that runs, by vLLM's own id of it: its prompt, and how many tokens each of its answers has."""
    processor = client.output_processor
    parent = processor.parent_requests.get(request_id)
    ids = parent.child_requests if parent else [request_id]
    states = [state for each in ids if (state := processor.request_states.get(each))]
    if not states:
        return None
    tokens = {state.request_index: state.detokenizer.num_output_tokens() for state in states if state.detokenizer}
    ended = [answer for answer in parent.output_aggregator if answer] if parent else []
    prompt = states[0].prompt_token_ids or [0] * states[0].prompt_len
    return prompt, tokens | {answer.index: len(answer.token_ids) for answer in ended}


def died(client: Any) -> bool:
    """Whether the engine's process ended by itself, and not because it was told to."""
    return getattr(client.engine_core.resources.engine_manager, "failed_proc_name", None) is not None
