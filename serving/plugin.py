"""vLLM's endpoint plugin: the one place where a replica's services are wired, and its routes.

vLLM makes the object, calls `attach_router` while it builds its application, and `init_state` before it accepts
requests. No route changes anything: what is served is decided in the registry.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse

from loradock.registry import base as bases
from loradock.registry.base import LocalBase
from loradock.registry.check import read_shapes
from loradock.registry.errors import BadInput
from loradock.registry.records import TextSettings
from loradock.registry.replica_status import ReplicaStatus
from loradock.registry.settings import Settings
from loradock.registry.text import settings_of
from loradock.serving import access, refusals, report
from loradock.serving import engine as engines
from loradock.serving.admission import Admission
from loradock.serving.cache import Cache
from loradock.serving.desired import Source
from loradock.serving.front import Front
from loradock.serving.guard import CALLER, Guard
from loradock.serving.keyfile import BASE
from loradock.serving.keys import Caller, Keys
from loradock.serving.launch import on_cpu
from loradock.serving.metrics import Metrics
from loradock.serving.nudge import Nudges
from loradock.serving.references import References
from loradock.serving.replica import Replica
from loradock.serving.settings import ServingSettings
from loradock.serving.shadow import Shadow
from loradock.serving.signals import Signals
from loradock.serving.stopping import Stopping

NAME: Final = "loradock"
"""The entry point's name, which VLLM_PLUGINS must hold."""

router = APIRouter()


@router.get("/v1/models")
async def models(request: Request) -> JSONResponse:
    """The base and every public adapter name that this key may call, each with the version that answers it."""
    return JSONResponse({"object": "list", "data": await _cards(request)})


@router.get("/v1/models/{model:path}")
async def one_model(request: Request, model: str) -> JSONResponse:
    """One of them."""
    caller: Caller = request.scope[CALLER]
    found = next((card for card in await _cards(request) if card["id"] == model), None)
    if found is not None:
        return JSONResponse(found)
    bases = request.app.state.loradock.table().bases
    may = caller.may(BASE if model in bases else model)
    refuse = refusals.no_such_model if may else refusals.may_not_call
    return refuse(model, caller=caller.name).response()


async def _cards(request: Request) -> list[dict[str, Any]]:
    state, caller = request.app.state, request.scope[CALLER]
    named = state.loradock.table().names()
    cards = await state.loradock_engine.cards(
        {name: ref for name, ref in named.items() if caller.may(name)}, state.loradock.digests()
    )
    return [card for card in cards if card["parent"] or caller.may(BASE)]


@router.get(access.STATUS)
async def status(request: Request) -> JSONResponse:
    """What this replica holds, answers with, quarantines and refuses, and how fresh its view of the registry is."""
    state, caller = request.app.state, request.scope[CALLER]
    found: ReplicaStatus = state.loradock.status(state.loradock_keys.status())
    return JSONResponse((report.seen_by(caller, found) if caller.restricted else found).as_json())


@router.get(access.READY)
async def ready(request: Request) -> JSONResponse:
    """200 from when every version promoted for this base was loaded and proven until it stops, else 503.

    `waiting` has the names that their promoted version does not answer now: names alone, since this needs no key.
    """
    replica = request.app.state.loradock
    is_ready = replica.ready and not replica.stopping
    body = {"ready": is_ready, "waiting": sorted(replica.unmet())}
    return JSONResponse(body, status_code=200 if is_ready else 503)


@router.get(access.SIGNALS)
async def signals(request: Request, name: str, since: int = 0) -> JSONResponse:
    """What was measured on an adapter's calls that ended after a sequence number; no text."""
    return JSONResponse(asdict(request.app.state.loradock_signals.page(name, since)))


@router.post(access.NUDGE)
async def nudge(request: Request) -> JSONResponse:
    """Have the registry read now; it changes nothing by itself."""
    answer: JSONResponse = await request.app.state.loradock_nudges.answer(request)
    return answer


class Plugin:
    """What the entry point `vllm.endpoint_plugins: loradock` gives vLLM."""

    name = NAME
    # Any task: a server that this plugin cannot serve shall stop with an error, and not run without it.
    required_tasks = None

    def attach_router(self, app: FastAPI) -> None:
        """Add the routes, and what every request passes: the guard, then the front."""
        app.include_router(router)
        state, settings = app.state, ServingSettings()
        keys = Keys(settings.keys, access.take_over(state.args, os.environ))
        metrics = Metrics(most_adapters=settings.metrics_adapters)
        state.loradock, state.loradock_keys, state.loradock_metrics = None, keys, metrics
        state.loradock_signals = Signals()
        # What is added last is outermost.
        app.add_middleware(
            Front,
            house=lambda: state.loradock,
            quotas=keys,
            base_digest=lambda: state.loradock_base.weights_digest,
            stored=lambda response_id: engines.stored_model(state, response_id),
            refused=metrics.refused,
            most=int(settings.body_mib * 2**20),
        )
        app.add_middleware(Guard, keys=keys, open_metrics=settings.metrics_open, refused=metrics.refused)
        app.add_middleware(Stopping, seconds=settings.stop_seconds, began=lambda: state.loradock.stop())  # noqa: PLW0108 - it is not there yet

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Wire the replica, bring up all that is promoted, and begin to follow the registry.

        An error from here stops vLLM's start.
        """
        serving_models = getattr(state, "openai_serving_models", None)
        if engine_client is None or serving_models is None:
            raise BadInput("loradock needs vLLM's API server with a generative model")
        if faults := engines.unfit(args, os.environ, cpu=on_cpu()):
            raise BadInput("vLLM's arguments do not fit loradock", problems=faults)
        args.loradock_engine = engine_client  # `launch` asks it in the end whether it died
        show_logs()
        settings, serving = Settings(), ServingSettings()
        local = await asyncio.to_thread(_base, args, settings)
        source = Source(settings, aliases=serving.followed)
        cache = Cache(
            settings.adapters,
            lambda version, into: source.store().download(version.source, into, what=str(version.ref)),
            base=await asyncio.to_thread(read_shapes, local.path),
            max_rank=engines.max_lora_rank(engine_client),
            most=serving.cache_bytes,
        )
        references = References(
            settings.root / "references", local.base, lambda digest: source.store().find_reference(digest, local.base)
        )
        engine = engines.Engine(engine_client, serving_models)
        precision = engines.precision(engine_client)
        replica = Replica(
            source,
            Admission(cache, references, engine, proof=serving.proof, precision=precision),
            engine,
            local.base,
            serving,
            capacity=engines.capacity(engine_client),
            slots=engines.slots(engine_client),
            max_rank=engines.max_lora_rank(engine_client),
            watcher=state.loradock_metrics,
            text=await asyncio.to_thread(_text, args, local),
        )
        Shadow(engine_client, lambda name: replica.table().shadow(name), engine.request)
        engine.meter.ended += [state.loradock_metrics.ended, state.loradock_keys.ended, state.loradock_signals.ended]
        await replica.start()
        state.loradock, state.loradock_engine, state.loradock_base = replica, engine, local.base
        engine.readmit = replica.readmit
        state.loradock_metrics.watch(lambda: replica.status(state.loradock_keys.status()), settings.adapters)
        state.loradock_nudges = Nudges(
            state.loradock_keys,
            serving.webhook_secret,
            wake=replica.nudge,
            refused=state.loradock_metrics.refused,
        )
        state.loradock_tasks = [
            asyncio.create_task(replica.run()),
            asyncio.create_task(state.loradock_keys.follow()),
        ]


def _base(args: Namespace, settings: Settings) -> LocalBase:
    """The base that vLLM loaded, found by the name that it was given."""
    pinned = args.revision and not Path(args.model).is_dir()
    return bases.resolve(f"{args.model}@{args.revision}" if pinned else args.model, settings)


def _text(args: Namespace, local: LocalBase) -> TextSettings:
    """What vLLM writes prompts and chooses tokens by; what its options take from elsewhere is not known."""
    found = settings_of(local.path)
    if args.tokenizer:
        other = settings_of(Path(args.tokenizer)) if Path(args.tokenizer).is_dir() else TextSettings()
        found = found.model_copy(update={"tokenizer": other.tokenizer, "template": other.template})
    elsewhere = {
        "template": args.chat_template,
        "generation": args.generation_config != "auto" or args.override_generation_config,
    }
    return found.model_copy(update={name: "" for name, given in elsewhere.items() if given})


def show_logs() -> None:
    """Let loradock's log lines be seen beside vLLM's, which has a handler for its own only."""
    for name in ("loradock.registry", "loradock.serving"):
        logger = logging.getLogger(name)
        if not logger.hasHandlers():
            handler = logging.StreamHandler(sys.stderr)
            handler.setFormatter(logging.Formatter("loradock %(levelname)s %(asctime)s %(message)s", "%m-%d %H:%M:%S"))
            logger.addHandler(handler)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)
