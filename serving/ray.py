"""loradock on Ray Serve: each of Ray's replicas is one of ours, in an actor, behind Ray's own proxy.

Ray starts, spreads, scales, checks and replaces the actors. What each serves it finds out as every replica does: the
vLLM in the actor is the one that `loradock serve` starts, with the same arguments and the same plugin.

    serve deploy examples/ray/serve.yaml        # its import_path is loradock.serving.ray:app
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from types import SimpleNamespace
from typing import Any, Final

import uvicorn
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve
from ray.serve import Application
from starlette.types import Receive, Scope, Send

from loradock.registry.errors import BadInput, LoradockError, faults_of
from loradock.registry.settings import Settings
from loradock.serving.launch import ServeOptions, check_address, check_extra, check_keys, command, parsed

_POLL_SECONDS: Final = 0.2

log = logging.getLogger(__name__)


class Options(BaseModel):
    """The application's arguments: those of `loradock serve`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str
    max_loras: int | None = Field(default=None, ge=1)
    adapter_memory: float | None = Field(default=None, gt=0)
    vllm: tuple[str, ...] = ()
    """Arguments for vLLM, as they are."""
    open: bool = False
    """Whether whoever reaches Ray's proxy may call without a key."""
    host: str = "127.0.0.1"
    port: int | None = Field(default=None, ge=1, le=65535)
    """Where the first replica listens itself, for `loradock status`, nudges and `/metrics`, and each further one at the
    next port; None for none."""


class Actor:
    """One replica: an actor with one vLLM."""

    async def __init__(self, options: Options) -> None:  # type: ignore[misc]  # Ray awaits it
        """Return, and so take requests, once every version that is promoted for this base is loaded and proven."""
        _tell_niceness()
        self._running = AsyncExitStack()
        try:
            with _told():
                self.vllm = await self._running.enter_async_context(_serving(options))
            await _until_ready(self.vllm.state.loradock)
        except BaseException:
            await self._running.aclose()
            raise

    async def check_health(self) -> None:
        """Raise when the engine is dead; Ray then starts another actor."""
        await self.vllm.state.engine_client.check_health()

    async def __del__(self) -> None:
        """End vLLM; Ray calls this when the requests have ended, or their time is over."""
        await self._running.aclose()


class _Door:
    """The ASGI application that Ray hands requests to: it hands them on to the vLLM of the actor that it is in."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on; the actor begins and ends vLLM itself, so there is nothing to do when the application is."""
        if scope["type"] == "lifespan":
            for step in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{step}.complete"})
            return
        await serve.get_replica_context().servable_object.vllm(scope, receive, send)


Replica: Final = serve.deployment(
    name="loradock",
    max_ongoing_requests=1000,  # what runs and what waits is vLLM's to say
    health_check_period_s=5,
    graceful_shutdown_wait_loop_s=1,
    graceful_shutdown_timeout_s=60,
)(serve.ingress(_Door())(Actor))


def app(args: Mapping[str, Any]) -> Application:
    """What Ray Serve imports, and runs; raises RuntimeError with every argument that cannot be meant."""
    with _told():
        try:
            options = Options.model_validate(args)
        except ValidationError as error:
            raise BadInput("invalid arguments", problems=faults_of(error)) from error
        check_extra(options.vllm)
    return Replica.bind(options)


def _tell_niceness() -> None:
    """Say when all else on the machine goes first: Ray begins its workers at niceness 15, and engines inherit it."""
    if (niceness := os.nice(0)) > 0:
        log.warning(
            "this replica and its engine run at niceness %d, after all else on this machine: set RAY_worker_niceness=0 "
            "where `ray start` runs",
            niceness,
        )


@contextmanager
def _told() -> Iterator[None]:
    """Raise what Ray can show, and send from one process to another: an error's whole text."""
    try:
        yield
    except LoradockError as error:
        raise RuntimeError(error.text) from error


@asynccontextmanager
async def _serving(options: Options) -> AsyncIterator[Any]:
    """The application of vLLM in this process, with its engine, as its own server builds it."""
    port = None if options.port is None else options.port + serve.get_replica_context().rank.rank
    if port is not None:
        check_address(options.host, port)
    given = ServeOptions(
        options.base, options.host, port or 0, options.max_loras, options.vllm, options.adapter_memory, options.open
    )
    # Who reaches Ray's proxy is Ray's to say, so a loopback address of ours says nothing.
    check_keys(given, host="")
    args = parsed(await asyncio.to_thread(command, given, Settings()))
    check_keys(given, host="", args=args)

    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client
    from vllm.entrypoints.launchers.app import build_app

    async with build_async_engine_client(args) as engine:
        tasks = await engine.get_supported_tasks()
        application = build_app(args, tasks, engine.model_config)
        await init_app_state(engine, application.state, args, tasks)
        # Begun past our middleware for a SIGTERM: Ray itself lets requests end before it ends an actor.
        async with application.router.lifespan_context(application), _listening(application, options.host, port):
            yield application


@asynccontextmanager
async def _listening(application: Any, host: str, port: int | None) -> AsyncIterator[None]:
    """The application on a port of its own too, beside Ray's proxy."""
    if port is None:
        application.state.server = SimpleNamespace(should_exit=False)  # vLLM sets it when its engine is dead
        yield
        return
    config = uvicorn.Config(application, host, port, lifespan="off", log_level="warning", access_log=False)
    application.state.server = server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    try:
        yield
    finally:
        server.should_exit = True
        with suppress(asyncio.CancelledError):
            await task


async def _until_ready(replica: Any) -> None:
    """Wait as a load balancer does that asks /loradock/ready: a replica without what is promoted takes no requests."""
    if not replica.ready:
        log.warning("no requests yet: %s", "; ".join(f"{name}: {why}" for name, why in replica.unmet().items()))
    while not replica.ready:  # noqa: ASYNC110 - it has no event for that, and needs none elsewhere
        await asyncio.sleep(_POLL_SECONDS)
