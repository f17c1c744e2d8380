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
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse

from registry import base as bases
from registry.base import LocalBase
from registry.errors import BadInput
from registry.settings import Settings
from serving import access
from serving import engine as engines
from serving.cache import Cache
from serving.desired import Source
from serving.replica import Replica
from serving.settings import ServingSettings

NAME: Final = "loradock"
"""The entry point's name, which VLLM_PLUGINS must hold."""

router = APIRouter()


@router.get("/v1/models")
async def models(request: Request) -> JSONResponse:
    """The base and every public adapter name, each with the version that answers it."""
    return JSONResponse({"object": "list", "data": await request.app.state.loradock_engine.cards()})


@router.get(access.STATUS)
async def status(request: Request) -> JSONResponse:
    """What this replica holds, answers with, holds back and refuses, and how fresh its view of the registry is."""
    return JSONResponse(request.app.state.loradock.status())


@router.get(access.READY)
async def ready(request: Request) -> JSONResponse:
    """200 from when every version promoted for this base was loaded and proven, else 503.

    `waiting` has the names that their promoted version does not answer now: names alone, since this needs no key.
    """
    replica = request.app.state.loradock
    body = {"ready": replica.ready, "waiting": sorted(replica.unmet())}
    return JSONResponse(body, status_code=200 if replica.ready else 503)


class Plugin:
    """What the entry point `vllm.endpoint_plugins: loradock` gives vLLM."""

    name = NAME
    # Any task: a server that this plugin cannot serve shall stop with an error, and not run without it.
    required_tasks = None

    def attach_router(self, app: FastAPI) -> None:
        """Add the routes, and where vLLM has API keys, a guard over what its own leaves open."""
        app.include_router(router)
        if found := access.keys(app.state.args.api_key, os.environ):
            app.add_middleware(access.Guard, allowed=engines.bearer_check(found))

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Wire the replica, bring up all that is promoted, and begin to follow the registry.

        An error from here stops vLLM's start.
        """
        serving_models = getattr(state, "openai_serving_models", None)
        if engine_client is None or serving_models is None:
            raise BadInput("loradock needs vLLM's API server with a generative model")
        if faults := engines.unfit(args, os.environ):
            raise BadInput("vLLM's arguments do not fit loradock", problems=faults)
        show_logs()
        settings = Settings()
        local = await asyncio.to_thread(_base, args, settings)
        source = Source(settings)
        cache = Cache(
            settings.adapters,
            lambda version, into: source.store().download(version.source, into, what=str(version.ref)),
            base_config=local.config,
            max_rank=engines.max_lora_rank(engine_client),
        )
        engine = engines.Engine(engine_client, serving_models)
        replica = Replica(source, cache, engine, local.base, ServingSettings())
        await replica.start()
        state.loradock, state.loradock_engine = replica, engine
        state.loradock_task = asyncio.create_task(replica.run())


def _base(args: Namespace, settings: Settings) -> LocalBase:
    """The base that vLLM loaded, found by the name that it was given."""
    pinned = args.revision and not Path(args.model).is_dir()
    return bases.resolve(f"{args.model}@{args.revision}" if pinned else args.model, settings)


def show_logs() -> None:
    """Let loradock's log lines be seen beside vLLM's, which has a handler for its own only."""
    for name in ("registry", "serving"):
        logger = logging.getLogger(name)
        if not logger.hasHandlers():
            handler = logging.StreamHandler(sys.stderr)
            handler.setFormatter(logging.Formatter("loradock %(levelname)s %(asctime)s %(message)s", "%m-%d %H:%M:%S"))
            logger.addHandler(handler)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)
