"""What vLLM is started with, and everything that is refused before a second is spent on loading."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import loradock
from loradock.registry import machine
from loradock.registry.base import LocalBase
from loradock.registry.errors import BadInput, LoradockError, NotFound, Unreachable
from loradock.registry.records import Base, Facts, Version
from loradock.registry.refs import VersionRef
from loradock.registry.settings import Settings
from loradock.serving import launch
from loradock.serving.capacity import Capacity
from loradock.serving.desired import Promoted
from loradock.serving.launch import ServeOptions, arguments
from tests.support import warm
from tests.support.adapters import SMOL
from tests.support.ports import free_port

OTHER = Base(id="other/base", config_digest="1" * 64, weights_digest="2" * 64)
LOCAL = LocalBase(Path("/models/smol"), SMOL)
CHOSEN = Capacity(
    promoted=3, slots=5, kept=40, rank=64, slot_bytes=10, kept_bytes=1, budget=100, of_memory=800, above_rank=()
)


def options(**changes: object) -> ServeOptions:
    return ServeOptions(**{"base": "smol", "host": "127.0.0.1", "port": 8000, "max_loras": None} | changes)  # type: ignore[arg-type]


def version(name: str, rank: int = 8, base: Base = SMOL) -> Version:
    facts = Facts(digest="a" * 64, base=base, method="lora", rank=rank, targets=(), run_id="run", data_digest="")
    return Version(ref=VersionRef(name, 1), facts=facts, source="models:/m-1", created_at=datetime.now(UTC))


def promoted(*versions: Version) -> Promoted:
    return Promoted(versions={item.ref.name: item for item in versions})


def given(command: list[str], flag: str) -> str:
    assert command.count(flag) == 1
    return command[command.index(flag) + 1]


def test_what_was_chosen_becomes_vllms_arguments() -> None:
    command = arguments(options(), LOCAL, CHOSEN, cpu=False)
    assert (given(command, "--max-loras"), given(command, "--max-cpu-loras")) == ("5", "40")
    assert given(command, "--max-lora-rank") == "64"


@pytest.fixture
def local(base: LocalBase) -> LocalBase:
    """A base whose files are read, under the identity that the versions here have."""
    return LocalBase(base.path, SMOL)


def test_what_is_promoted_for_the_base_decides(local: LocalBase) -> None:
    versions = [version("a", 8), version("a@canary", 40), version("b", 256, OTHER)]
    chosen = launch.choose(options(), local, promoted(*versions), cpu=False)
    assert (chosen.promoted, chosen.slots, chosen.rank) == (2, 4, 64)


@pytest.mark.parametrize(
    ("asked", "slots", "kept", "rank"),
    [
        ({"max_loras": 9}, 9, None, 16),
        ({"extra": ("--max-cpu-loras", "77")}, 4, 77, 16),
        ({"extra": ("--max_cpu_loras=78", "--max-lora-rank=32", "--max-num-seqs", "3")}, 4, 78, 32),
        ({"extra": ("--max-cpu-loras", "many")}, 4, None, 16),
    ],
)
def test_what_the_user_says_is_not_chosen(
    local: LocalBase, asked: dict[str, object], slots: int, kept: int | None, rank: int
) -> None:
    chosen = launch.choose(options(**asked), local, promoted(version("a")), cpu=False)
    assert (chosen.slots, chosen.rank) == (slots, rank)
    assert kept in (None, chosen.kept)


def test_room_for_a_single_adapter_is_refused(local: LocalBase) -> None:
    with pytest.raises(BadInput, match="leaves no room to load and prove a version"):
        launch.choose(options(extra=("--max-cpu-loras", "1")), local, promoted(), cpu=False)


def test_memory_for_adapters_is_in_gib(local: LocalBase) -> None:
    assert launch.choose(options(adapter_memory=0.5), local, promoted(), cpu=False).budget == 2**29


@pytest.mark.parametrize(("extra", "wide"), [((), 1), (("--dtype", "float32"), 2), (("--lora-dtype=float32",), 2)])
def test_values_are_as_wide_as_vllm_holds_them(
    local: LocalBase, monkeypatch: pytest.MonkeyPatch, extra: tuple[str, ...], wide: int
) -> None:
    monkeypatch.setattr(machine, "has_bfloat16", lambda: True)
    half = launch.choose(options(), local, promoted(), cpu=True).slot_bytes
    assert launch.choose(options(extra=extra), local, promoted(), cpu=True).slot_bytes == wide * half
    monkeypatch.setattr(machine, "has_bfloat16", lambda: False)
    assert launch.choose(options(), local, promoted(), cpu=True).slot_bytes == 2 * half


def test_the_base_answers_under_its_own_name_on_the_address_asked_for() -> None:
    command = arguments(options(host="0.0.0.0", port=9000), LOCAL, CHOSEN, cpu=False)  # noqa: S104
    assert given(command, "--model") == "/models/smol"
    assert given(command, "--served-model-name") == "smol"
    assert (given(command, "--host"), given(command, "--port")) == ("0.0.0.0", "9000")  # noqa: S104
    assert "--enable-lora" in command


def test_a_cpu_without_bfloat16_gets_float32_and_a_context_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "has_bfloat16", lambda: False)
    command = arguments(options(), LOCAL, CHOSEN, cpu=True)
    assert (given(command, "--dtype"), given(command, "--max-model-len")) == ("float32", "auto")
    assert not {"--dtype", "--max-model-len"} & set(arguments(options(), LOCAL, CHOSEN, cpu=False))
    monkeypatch.setattr(machine, "has_bfloat16", lambda: True)
    assert "--dtype" not in arguments(options(), LOCAL, CHOSEN, cpu=True)


def test_what_the_user_set_in_the_environment_stays() -> None:
    environ = {"VLLM_CPU_KVCACHE_SPACE": "7", "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "5", "VLLM_PLUGINS": "mine, theirs"}
    launch.prepare(environ, cpu=True)
    assert (environ["VLLM_CPU_KVCACHE_SPACE"], environ["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"]) == ("7", "5")
    assert environ["VLLM_PLUGINS"] == "mine,theirs,loradock,loradock-cpu-ops"
    assert environ["VLLM_TARGET_DEVICE"] == "cpu"


def test_what_vllm_starts_imports_nothing_from_the_directory_that_it_is_started_in(tmp_path: Path) -> None:
    (tmp_path / "loradock").mkdir()
    (tmp_path / "loradock" / "__init__.py").write_text("raise AssertionError('a stranger')")
    environ = dict(os.environ)
    launch.prepare(environ, cpu=True)
    command = [sys.executable, "-c", "import loradock; print(loradock.__file__)"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == Path(loradock.__file__)


def test_a_gpu_gets_no_cpu_settings() -> None:
    environ: dict[str, str] = {}
    launch.prepare(environ, cpu=False)
    assert not [name for name in environ if "CPU" in name or name == "VLLM_TARGET_DEVICE"]
    assert "loradock" in environ["VLLM_PLUGINS"].split(",")


def test_without_a_list_every_plugin_that_vllm_would_load_stays_on(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"vllm.general_plugins": ["resolver", "loradock-cpu-ops"], "vllm.endpoint_plugins": ["stranger"]}
    monkeypatch.setattr(
        launch, "entry_points", lambda group: [EntryPoint(name, "x:y", group) for name in there.get(group, [])]
    )
    assert launch.plugin_names({}, cpu=False) == "loradock-cpu-ops,resolver,loradock"
    assert launch.plugin_names({"VLLM_PLUGINS": ""}, cpu=False) == "loradock"


def test_our_plugins_are_found_and_load() -> None:
    launch.prove_plugins(cpu=False)


@pytest.mark.parametrize("found", [[], [EntryPoint("loradock", "loradock.nowhere:Plugin", "vllm.endpoint_plugins")]])
def test_a_plugin_that_vllm_would_only_log_about_stops_the_start(
    found: list[EntryPoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "entry_points", lambda **_: found)
    with pytest.raises(LoradockError, match="loradock"):
        launch.prove_plugins(cpu=False)


def test_a_port_in_use_is_told_at_once(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match=rf"cannot listen on 127.0.0.1:{port}: address already in use"):
            launch.serve(options(port=port), settings)


def test_a_host_that_is_not_ours_is_told_at_once(settings: Settings) -> None:
    with pytest.raises(BadInput, match="cannot listen"):
        launch.serve(options(host="192.0.2.1"), settings)


KEYS = {
    "vLLM's own": {"VLLM_API_KEY": "secret"},
    "a file": {"LORADOCK_SERVE_KEYS": "keys.json"},
}


@pytest.mark.parametrize("extra", [(), ("--max-model-len", "256"), ("--api-key", "")])
def test_other_machines_get_no_server_without_keys(extra: tuple[str, ...], settings: Settings) -> None:
    with pytest.raises(BadInput, match=r"no keys are configured, and anyone who reaches 0\.0\.0\.0") as refused:
        launch.serve(options(base="no such base", host="0.0.0.0", port=free_port(), extra=extra), settings)  # noqa: S104
    assert "LORADOCK_SERVE_KEYS" in refused.value.hint
    assert "--open" in refused.value.hint


@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS)
def test_with_keys_it_goes_on(keys: dict[str, str], settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(NotFound, match="no base model"):
        launch.serve(options(base="no such base", host="0.0.0.0", port=free_port()), settings)  # noqa: S104


@pytest.mark.parametrize(
    "said",
    [
        {"open": True},
        {"extra": ("--api-key", "secret")},
        {"extra": ("--api_key=secret",)},
        {"extra": ("--config", "vllm.yaml")},  # it may have keys: what vLLM reads in it is looked at later
        {"host": "127.0.0.2"},
        {"host": "localhost"},
    ],
)
def test_so_it_does_where_they_are_said_and_where_this_machine_alone_can_call(
    said: dict[str, object], settings: Settings
) -> None:
    with pytest.raises(NotFound, match="no base model"):
        launch.serve(options(**{"base": "no such base", "host": "0.0.0.0", "port": free_port()} | said), settings)  # noqa: S104


@pytest.mark.parametrize(
    ("host", "alone"),
    [("127.0.0.1", True), ("::1", True), ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("", False)],  # noqa: S104
)
def test_which_addresses_are_this_machines_alone(host: str, alone: bool) -> None:
    assert launch.is_loopback(host) is alone


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [["--host=0.0.0.0", "--", "--config", "vllm.yaml"], ["--", "--hos", "0.0.0.0"]],  # noqa: S104
    ids=["a file of arguments without a key", "an option's short form"],
)
def test_what_vllm_makes_of_its_arguments_decides(words: list[str], base_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "vllm.yaml").write_text("max-model-len: 256\n")
    command = [warm.LORADOCK, "serve", "--base", base_dir, "--port", str(free_port()), *words]
    environ = os.environ | {"LORADOCK_HOME": str(tmp_path / "home")}
    done = warm.run(command, kind="serving", cwd=tmp_path, env=environ)
    assert done.returncode == BadInput.exit_code, done.stderr
    assert "no keys are configured, and anyone who reaches 0.0.0.0" in done.stderr


def test_an_unknown_base_is_not_found(settings: Settings) -> None:
    with pytest.raises(NotFound, match="no base model"):
        launch.serve(options(base="no such base", port=free_port()), settings)


def test_a_registry_out_of_reach_without_a_last_plan_is_unreachable(
    base_dir: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(Unreachable):
        launch.serve(options(base=str(base_dir), port=free_port()), Settings())


@pytest.mark.parametrize(
    "extra", [("--model", "x"), ("--model=x",), ("--port", "1"), ("--max_loras", "3"), ("--host=h",)]
)
def test_an_argument_with_an_option_of_its_own_is_refused(extra: tuple[str, ...], settings: Settings) -> None:
    with pytest.raises(BadInput) as refused:
        launch.serve(options(extra=extra), settings)
    assert len(refused.value.problems) == 1
