"""What vLLM is started with, and everything that is refused before a second is spent on loading."""

from __future__ import annotations

import socket
from datetime import UTC, datetime
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from registry.base import LocalBase
from registry.errors import BadInput, LoradockError, NotFound, Unreachable
from registry.records import Base, Facts, Version
from registry.refs import VersionRef
from registry.settings import Settings
from serving import launch
from serving.desired import Promoted
from serving.launch import ServeOptions, arguments
from tests.adapters import SMOL

OTHER = Base(id="other/base", config_digest="1" * 64, weights_digest="2" * 64)
LOCAL = LocalBase(Path("/models/smol"), SMOL)


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


@pytest.mark.parametrize(
    ("ranks", "limit"), [((), 16), ((4,), 16), ((16,), 16), ((17,), 32), ((8, 200), 256), ((257,), 320), ((9999,), 512)]
)
def test_the_rank_limit_is_the_least_that_admits_every_promoted_version(ranks: tuple[int, ...], limit: int) -> None:
    versions = [version(f"bot-{index}", rank) for index, rank in enumerate(ranks)]
    assert given(arguments(options(), LOCAL, promoted(*versions), cpu=False), "--max-lora-rank") == str(limit)


def test_an_adapter_of_another_base_does_not_count() -> None:
    command = arguments(options(), LOCAL, promoted(version("other", 256, OTHER)), cpu=False)
    assert given(command, "--max-lora-rank") == "16"


@pytest.mark.parametrize(("adapters", "slots", "kept"), [(0, 4, 32), (3, 5, 32), (14, 16, 32), (40, 16, 80)])
def test_slots_and_kept_adapters_grow_with_what_is_promoted(adapters: int, slots: int, kept: int) -> None:
    command = arguments(options(), LOCAL, promoted(*(version(f"bot-{i}") for i in range(adapters))), cpu=False)
    assert given(command, "--max-loras") == str(slots)
    assert given(command, "--max-cpu-loras") == str(kept)


def test_the_user_decides_on_slots() -> None:
    command = arguments(options(max_loras=40), LOCAL, promoted(), cpu=False)
    assert given(command, "--max-loras") == "40"
    assert given(command, "--max-cpu-loras") == "80"


def test_the_base_answers_under_its_own_name_on_the_address_asked_for() -> None:
    command = arguments(options(host="0.0.0.0", port=9000), LOCAL, promoted(), cpu=False)  # noqa: S104
    assert given(command, "--model") == "/models/smol"
    assert given(command, "--served-model-name") == "smol"
    assert (given(command, "--host"), given(command, "--port")) == ("0.0.0.0", "9000")  # noqa: S104
    assert "--enable-lora" in command


def test_a_cpu_without_bfloat16_gets_float32_and_a_context_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_has_bfloat16", lambda: False)
    command = arguments(options(), LOCAL, promoted(), cpu=True)
    assert (given(command, "--dtype"), given(command, "--max-model-len")) == ("float32", "auto")
    assert not {"--dtype", "--max-model-len"} & set(arguments(options(), LOCAL, promoted(), cpu=False))
    monkeypatch.setattr(launch, "_has_bfloat16", lambda: True)
    assert "--dtype" not in arguments(options(), LOCAL, promoted(), cpu=True)


def test_what_the_user_set_in_the_environment_stays() -> None:
    environ = {"VLLM_CPU_KVCACHE_SPACE": "7", "VLLM_PLUGINS": "mine, theirs"}
    launch.prepare(environ, cpu=True)
    assert environ["VLLM_CPU_KVCACHE_SPACE"] == "7"
    assert environ["VLLM_PLUGINS"] == "mine,theirs,loradock,loradock-cpu-ops"
    assert environ["VLLM_TARGET_DEVICE"] == "cpu"


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


@pytest.mark.parametrize("found", [[], [EntryPoint("loradock", "serving.nowhere:Plugin", "vllm.endpoint_plugins")]])
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


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


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
