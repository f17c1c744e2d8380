from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from loradock.registry import artifact
from loradock.registry.errors import BadInput, DigestMismatch
from tests.support.adapters import write_adapter


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter")


def test_the_same_files_have_the_same_digest_wherever_they_lie(tmp_path: Path, adapter: Path) -> None:
    assert artifact.build_manifest(adapter).digest == artifact.build_manifest(write_adapter(tmp_path / "b")).digest


def test_one_changed_weight_is_another_digest(tmp_path: Path, adapter: Path) -> None:
    assert (
        artifact.build_manifest(adapter).digest != artifact.build_manifest(write_adapter(tmp_path / "b", seed=1)).digest
    )


@pytest.mark.parametrize("fault", ["changed", "missing", "extra"])
def test_every_kind_of_damage_is_found_and_named(adapter: Path, fault: str) -> None:
    digest = artifact.build_manifest(adapter).digest
    path = adapter / artifact.WEIGHTS
    if fault == "changed":
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    elif fault == "missing":
        path.unlink()
    else:
        path = adapter / "more.bin"
        path.write_bytes(b"x")
    with pytest.raises(DigestMismatch, match=f"{path.name} (is )?{fault}") as caught:
        artifact.verify(adapter, digest, what="support-bot/1")
    assert caught.value.exit_code == 3


def test_files_and_manifest_changed_together_are_found_by_the_digest(adapter: Path) -> None:
    digest = artifact.build_manifest(adapter).digest
    (adapter / artifact.CONFIG).write_text("{}")
    artifact.write_manifest(adapter)
    with pytest.raises(DigestMismatch):
        artifact.verify(adapter, digest, what="support-bot/1")


def test_an_adapter_without_manifest_does_not_verify(adapter: Path) -> None:
    (adapter / artifact.MANIFEST).unlink()
    with pytest.raises(DigestMismatch, match="manifest"):
        artifact.verify(adapter, "0" * 64, what="support-bot/1")


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "..\\x", ""])
def test_a_manifest_that_leads_out_of_its_directory_is_refused(path: str) -> None:
    text = json.dumps({"files": [{"path": path, "size": 1, "sha256": "0" * 64}]})
    with pytest.raises(BadInput, match="outside"):
        artifact.parse_manifest(text, what="support-bot/1")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"files": 3}', '{"files": [], "more": 1}'])
def test_a_manifest_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="manifest"):
        artifact.parse_manifest(text, what="support-bot/1")


def test_canonical_config_does_not_depend_on_the_order_of_sets(adapter: Path) -> None:
    path = adapter / artifact.CONFIG
    texts = []
    for order in (["q_proj", "o_proj"], ["o_proj", "q_proj"]):
        path.write_text(json.dumps({"r": 4, "target_modules": order}))
        artifact.canonicalise(adapter)
        texts.append(path.read_text())
    assert texts[0] == texts[1]
    assert json.loads(texts[0])["target_modules"] == ["o_proj", "q_proj"]


def test_a_header_is_read_without_the_weights(adapter: Path) -> None:
    header = artifact.read_header(adapter / artifact.WEIGHTS)
    assert header["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"] == artifact.TensorInfo(
        "F32", (4, 576)
    )
    assert len(header) == 8


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:5],
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: struct.pack("<Q", 2**60) + data[8:],
        lambda data: data[:8] + b"x" + data[9:],
        lambda data: struct.pack("<Q", 2) + b"[]",
    ],
)
def test_a_damaged_safetensors_file_is_refused(adapter: Path, damage: Callable[[bytes], bytes]) -> None:
    path = adapter / artifact.WEIGHTS
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadInput, match=r"safetensors|header"):
        artifact.read_header(path)


def with_header(directory: Path, text: str, *, data: int = 0) -> Path:
    path = directory / artifact.WEIGHTS
    path.write_bytes(struct.pack("<Q", len(text)) + text.encode() + bytes(data))
    return path


def tensor(shape: list[int], dtype: str = "F32", stop: int = 0) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, stop]}


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"a": tensor([10**9] * 80_000)}, "80000 dimensions"),
        ({"a": tensor([0, 10**4000])}, "too large"),
        ({"a": tensor([0, 2**63])}, "too large"),
        ({str(number): tensor([0]) for number in range(200_001)}, "200001 tensors"),
    ],
    ids=["dimensions", "digits", "bits", "tensors"],
)
def test_a_header_beyond_what_any_model_needs_is_refused(tmp_path: Path, header: object, said: str) -> None:
    path = with_header(tmp_path, json.dumps(header))
    with pytest.raises(BadInput, match=said):
        artifact.read_header(path)


def test_a_header_larger_than_any_model_s_is_not_read(tmp_path: Path) -> None:
    path = with_header(tmp_path, json.dumps({"__metadata__": {"a": "b" * (32 * 2**20)}}))
    with pytest.raises(BadInput, match=r"a header of \d+ bytes, and 33554432 are read"):
        artifact.read_header(path)


def test_a_header_as_large_as_an_adapter_of_every_expert_has_is_read(tmp_path: Path) -> None:
    names = [
        f"base_model.model.model.layers.{layer}.mlp.experts.{expert}.{part}_proj.lora_{side}.weight"
        for layer in range(58)
        for expert in range(256)
        for part in ("gate", "up", "down")
        for side in "AB"
    ]
    header = {name: {"dtype": "U8", "shape": [1], "data_offsets": [at, at + 1]} for at, name in enumerate(names)}
    assert len(artifact.read_header(with_header(tmp_path, json.dumps(header), data=len(names)))) == 89_088


def test_a_base_may_hold_types_that_an_adapter_may_not(tmp_path: Path) -> None:
    path = with_header(tmp_path, json.dumps({"a": tensor([1], "F8_NEW", stop=1)}), data=1)
    assert artifact.read_header(path, any_dtype=True)["a"].dtype == "F8_NEW"
    with pytest.raises(BadInput, match="unknown dtype 'F8_NEW'"):
        artifact.read_header(path)
    with pytest.raises(BadInput, match="dimensions"):
        artifact.read_header(with_header(tmp_path, json.dumps({"a": tensor([1] * 65)})), any_dtype=True)
