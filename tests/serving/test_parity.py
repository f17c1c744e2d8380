"""Admission on a real vLLM: versions that say what PEFT says take traffic, others are quarantined with the reason.

A version that vLLM loads otherwise than PEFT is made the other way round: what is recorded for its bytes is what PEFT
says with other bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from loradock.registry import promotion, recording
from loradock.registry.artifact import CONFIG, WEIGHTS, write_manifest
from loradock.registry.base import LocalBase
from loradock.registry.records import Version
from loradock.registry.reference import Reference
from loradock.registry.refs import VersionRef
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.registry.versions import import_directory
from loradock.trainer.reference import Witness
from tests.support.serving import exact
from tests.support.serving.server import Server, serving
from tests.support.trainer.adapters import made

pytestmark = pytest.mark.slow

OFF, GAP = (0.2, 0.1) if exact.ON_GPU else (0.01, 1e-4)
"""How far from 1 the size of the effect may be, and how many nats a token from what PEFT says: docs/proof.md."""
ALL = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
RIGHT: dict[str, dict[str, Any]] = {
    "all-layers": ALL,
    "two-projections": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
    "rank-stabilised": {"r": 64, "target_modules": "all-linear", "use_rslora": True},
    "patterns": ALL | {"rank_pattern": {"q_proj": 32, "down_proj": 4}, "alpha_pattern": {"v_proj": 8}},
    "embeddings": {"r": 8, "target_modules": ["q_proj", "embed_tokens"]},
    "head": {"r": 8, "target_modules": ["q_proj", "lm_head"]},
}


def halved(tensors: dict[str, Any], config: dict[str, Any]) -> None:
    config["lora_alpha"] /= 2


def without_upper_layers(tensors: dict[str, Any], config: dict[str, Any]) -> None:
    for name, value in tensors.items():
        if "lora_B" in name and int(name.split(".layers.")[1].split(".")[0]) >= 15:
            value[:] = 0


def with_two_layers_swapped(tensors: dict[str, Any], config: dict[str, Any]) -> None:
    for name in [name for name in tensors if ".layers.10." in name]:
        other = name.replace(".layers.10.", ".layers.11.")
        tensors[name], tensors[other] = tensors[other], tensors[name]


def without_a_projection(tensors: dict[str, Any], config: dict[str, Any]) -> None:
    for name, value in tensors.items():
        if "down_proj.lora_B" in name:
            value[:] = 0


WRONG: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], None], str]] = {
    "halved": (halved, "of that in the PEFT reference"),
    "half-loaded": (without_upper_layers, "of that in the PEFT reference"),
    "swapped": (with_two_layers_swapped, "the PEFT reference"),
    "ignored": (without_a_projection, "the PEFT reference"),
}


def changed(source: Path, into: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    shutil.copytree(source, into)
    tensors, config = load_file(into / WEIGHTS), json.loads((into / CONFIG).read_text())
    change(tensors, config)
    save_file(tensors, into / WEIGHTS)
    (into / CONFIG).write_text(json.dumps(config))
    write_manifest(into)
    return into


class PromotedRegistry:
    """A registry whose versions are all promoted before the one server starts."""

    def __init__(self, base: LocalBase, scratch: Path) -> None:
        self.base, self.scratch = base, scratch
        self.store = Store(Settings(home=scratch / "home"))
        self.witness = Witness(base)

    def add(self, name: str, directory: Path, told_of: Path | None) -> Version:
        version = import_directory(self.store, directory, self.base, name)
        if told_of:
            self.store.record_reference(self.reference(told_of, version))
        promotion.promote(self.store, version.ref, "production", actor="tester")
        return version

    def reference(self, directory: Path, version: Version) -> Reference:
        return self.witness.reference(directory, version.facts.digest)

    def fill(self) -> None:
        right = {kind: made(self.base, self.scratch / kind, settings) for kind, settings in RIGHT.items()}
        for kind, directory in right.items():
            self.add(kind, directory, directory)
        whole = right["all-layers"]
        for fault, (change, _) in WRONG.items():
            self.add(fault, changed(whole, self.scratch / fault, change), whole)
        self.add("another", made(self.base, self.scratch / "another", ALL | {"r": 8}), right["two-projections"])
        self.add("unknown", made(self.base, self.scratch / "unknown", ALL | {"r": 2}), None)
        stranger = self.add("strange-base", made(self.base, self.scratch / "strange", ALL | {"r": 3}), None)
        self.store.record_reference(strange(self.reference(self.scratch / "strange", stranger)))


def strange(reference: Reference) -> Reference:
    """As recorded on a base in 4 bits: every figure is elsewhere."""
    probes = tuple(
        probe.model_copy(
            update={
                "bare": tuple(value - 0.4 for value in probe.bare),
                "adapted": tuple(value - 0.4 for value in probe.adapted),
            }
        )
        for probe in reference.probes
    )
    return reference.model_copy(update={"probes": probes})


@pytest.fixture(scope="module")
def server(base: LocalBase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    scratch = tmp_path_factory.mktemp("parity")
    registry = PromotedRegistry(base, scratch)
    registry.fill()
    settings = {"LORADOCK_SERVE_POLL_SECONDS": "0.2", "LORADOCK_SERVE_RETRY_SECONDS": "1"}
    with serving(scratch / "home", base, registry.store, scratch, settings=settings) as found:
        yield found


@pytest.mark.parametrize("kind", RIGHT)
def test_a_version_that_says_what_peft_says_is_served(kind: str, server: Server) -> None:
    status = server.status()
    assert status["adapters"][kind]["version"] == f"{kind}/1"
    figures = status["proofs"][f"{kind}/1"]
    assert figures["size"] == pytest.approx(1, abs=OFF)
    assert figures["gap"] < GAP


@pytest.mark.parametrize("fault", WRONG)
def test_a_version_that_was_loaded_otherwise_is_quarantined(fault: str, server: Server) -> None:
    status = server.status()
    assert fault not in status["adapters"]
    assert WRONG[fault][1] in status["quarantined"][f"{fault}/1"]["reason"]


def test_another_adapter_s_weights_are_quarantined(server: Server) -> None:
    assert "of that in the PEFT reference" in server.status()["quarantined"]["another/1"]["reason"]


def test_a_reference_of_another_base_is_told_as_that(server: Server) -> None:
    assert (
        "the base here differs from the base in the reference"
        in server.status()["quarantined"]["strange-base/1"]["reason"]
    )


def test_a_version_without_a_reference_waits_for_one(server: Server) -> None:
    assert "loradock reference unknown/1" in server.status()["quarantined"]["unknown/1"]["reason"]
    recording.record(server.store, (server.store.version(VersionRef("unknown", 1)),), print)
    server.until(lambda status: status["adapters"].get("unknown", {}).get("version") == "unknown/1")


def test_what_was_proven_is_kept_for_a_restart(server: Server) -> None:
    kept = {path.name.split("-")[0] for path in (server.home / "references").glob("*.json")}
    status = server.status()
    assert {row["digest"] for row in status["adapters"].values()} <= kept
    assert len(kept) == len(status["proofs"])
