"""vLLM's engine as a replica drives it: load a version beside the others, move a name, count requests, unload.

Every version has an engine name of its own (`support-bot/3`) and an id of its own, for as long as the process lives:
vLLM compares adapters by name and stores them by id, and checks neither. A public name is an entry of the plain dict in
which vLLM looks up a request's model, so that one assignment moves it; requests that looked it up before keep theirs.
"""

from __future__ import annotations

import time
import uuid
from argparse import Namespace
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from registry.errors import NotServable
from registry.records import Version
from registry.refs import VersionRef
from serving.reconcile import Resident

FORBIDDEN: Final = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "it opens routes that load and unload adapters behind the registry's back",
    "VLLM_SKIP_MODEL_NAME_VALIDATION": "it lets the base answer for a name that is not served",
}
"""Variables of vLLM that break what loradock promises."""

_MODES: Final = ("generate", "encode")


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
        self._in_flight: Counter[str] = Counter()
        self._pointed: dict[str, VersionRef] = {}
        self._generate = client.generate
        for mode in _MODES:
            setattr(client, mode, self._counting(getattr(client, mode)))

    @property
    def served_as(self) -> frozenset[str]:
        """The names under which the base itself answers."""
        return frozenset(path.name for path in self._models.base_model_paths)

    @property
    def pointed(self) -> Mapping[str, VersionRef]:
        """Public names that answer now, and with which version."""
        return dict(self._pointed)

    @property
    def resident(self) -> Mapping[VersionRef, Resident]:
        """Versions that the engine holds, with their requests."""
        return {
            held.version.ref: Resident(held.version, self._in_flight[name], held.idle_since)
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
            raise NotServable(name, [f"vLLM cannot load it: {_first_line(error)}"]) from error
        if not loaded:
            raise NotServable(name, ["vLLM did not load it"])

    def admit(self, ref: VersionRef) -> None:
        """Let names point at a version that was loaded and probed."""
        held = self._held[str(ref)]
        held.resident, held.idle_since = True, self._clock()

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
        await self._client.remove_lora(held.request.lora_int_id)

    async def log_probabilities(self, prompt: str, ref: VersionRef | None) -> Sequence[float]:
        """Of each token of a prompt but the first, in nats, by a loaded version, or by the base for None."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=0.0, max_tokens=1, prompt_logprobs=0, output_kind=RequestOutputKind.FINAL_ONLY
        )
        request = self._held[str(ref)].request if ref else None
        final: Any = None
        answers = self._generate(
            self._tokens(prompt), params, f"loradock-probe-{uuid.uuid4().hex}", lora_request=request
        )
        async with aclosing(answers) as outputs:
            async for output in outputs:
                final = output
        given = zip(final.prompt_token_ids, final.prompt_logprobs, strict=True)
        return [entry[token].logprob for token, entry in given if entry]

    def _tokens(self, prompt: str) -> Any:
        from vllm.inputs import tokens_input

        return tokens_input(prompt_token_ids=self._client.renderer.get_tokenizer().encode(prompt))

    async def cards(self) -> list[dict[str, Any]]:
        """`GET /v1/models`: the base, then every public name with the version that answers it."""
        from vllm.entrypoints.serve.engine.protocol import ModelCard, ModelPermission

        bases = (await self._models.registry.show_available_models()).data
        adapters = [
            ModelCard(
                id=name,
                root=str(ref),
                parent=bases[0].id,
                max_model_len=bases[0].max_model_len,
                permission=[ModelPermission()],
                digest=self._held[str(ref)].version.facts.digest,
            )
            for name, ref in sorted(self._pointed.items())
        ]
        return [card.model_dump() for card in (*bases, *adapters)]

    def _counting(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The engine's own method, with the requests of each version counted while they run."""

        def start(*args: Any, lora_request: Any = None, **options: Any) -> Any:
            if lora_request is None:
                return original(*args, **options)
            return counted(lora_request.lora_name, original(*args, lora_request=lora_request, **options))

        async def counted(name: str, answers: Any) -> AsyncIterator[Any]:
            self._enter(name)
            try:
                async with aclosing(answers) as outputs:
                    async for output in outputs:
                        yield output
            finally:
                self._leave(name)

        return start

    def _enter(self, name: str) -> None:
        self._in_flight[name] += 1
        if held := self._held.get(name):
            # A request that looked its name up before a drain ended makes vLLM load the version again by itself.
            held.resident = True

    def _leave(self, name: str) -> None:
        self._in_flight[name] -= 1
        if held := self._held.get(name):
            held.idle_since = self._clock()

    def _mark_idle(self, ref: VersionRef | None) -> None:
        if ref and (held := self._held.get(str(ref))):
            held.idle_since = self._clock()


def unfit(args: Namespace, environ: Mapping[str, str]) -> list[str]:
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
    return [*faults, *(f"{name} is set: {why}" for name, why in FORBIDDEN.items() if _is_set(environ, name))]


def _is_set(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").strip().lower() not in ("", "0", "false")


def max_lora_rank(client: Any) -> int:
    """The largest rank that this engine was started for."""
    return int(client.vllm_config.lora_config.max_lora_rank)


def bearer_check(keys: Sequence[str]) -> Callable[[Any], bool]:
    """The test that vLLM itself holds a request's headers to, for these API keys."""
    from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

    async def nothing(*_: Any) -> None: ...

    check: Callable[[Any], bool] = AuthenticationMiddleware(nothing, list(keys)).verify_token
    return check


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
