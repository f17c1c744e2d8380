"""Pickles, real ones: their tensors are read and their code is not."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file

from loradock.registry import versions
from loradock.registry.artifact import WEIGHTS
from loradock.registry.base import LocalBase
from loradock.registry.errors import BadInput, Refused
from loradock.registry.pickled import convert
from loradock.registry.store import Store
from tests.support.adapters import write_adapter


class HostileObject:
    """An object whose unpickling makes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.proof),)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """An adapter as PEFT wrote it before safetensors."""
    directory = write_adapter(tmp_path / "old")
    (directory / "manifest.json").unlink()
    tensors = {name: torch.from_numpy(values) for name, values in load_file(directory / WEIGHTS).items()}
    torch.save(tensors, directory / "adapter_model.bin")
    (directory / WEIGHTS).unlink()
    return directory


def test_the_tensors_of_a_pickle_are_those_of_the_safetensors(old: Path, tmp_path: Path) -> None:
    convert(old / "adapter_model.bin", tmp_path / "out.safetensors")
    wanted = load_file(write_adapter(tmp_path / "same") / WEIGHTS)
    found = load_file(tmp_path / "out.safetensors")
    assert {name: values.tobytes() for name, values in found.items()} == {
        name: values.tobytes() for name, values in wanted.items()
    }


def test_types_views_and_shared_storage_are_kept_as_values(tmp_path: Path) -> None:
    whole = torch.arange(12, dtype=torch.bfloat16).reshape(3, 4)
    torch.save({"a": whole.T, "b": whole, "c": whole[1]}, tmp_path / "x.bin")
    convert(tmp_path / "x.bin", tmp_path / "x.safetensors")
    from safetensors.torch import load_file as load_torch

    found = load_torch(tmp_path / "x.safetensors")
    assert torch.equal(found["a"], whole.T)
    assert (found["b"].dtype, found["c"].tolist()) == (torch.bfloat16, [4, 5, 6, 7])


def test_a_pickle_is_imported_at_the_users_word_only(store: Store, base: LocalBase, old: Path) -> None:
    with pytest.raises(BadInput, match="pickled") as caught:
        versions.import_directory(store, old, base, "support-bot")
    assert "--convert-pickle" in caught.value.hint
    version = versions.import_directory(store, old, base, "support-bot", convert_pickle=True)
    with versions.fetched(store, version) as directory:
        assert sorted(path.suffix for path in directory.iterdir()) == [".json", ".json", ".safetensors"]
    assert versions.import_directory(store, old, base, "support-bot", convert_pickle=True) == version


@pytest.mark.parametrize("form", ["zip", "legacy", "bare"])
def test_a_hostile_pickle_is_refused_and_does_not_run(
    store: Store, base: LocalBase, old: Path, tmp_path: Path, form: str
) -> None:
    proof, path = tmp_path / "it-ran", old / "adapter_model.bin"
    content = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": HostileObject(proof)}
    if form == "bare":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(Refused, match="nothing of it was run"):
        versions.import_directory(store, old, base, "support-bot", convert_pickle=True)
    assert not proof.exists()
    assert store.find_family("support-bot") is None
    torch.load(path, weights_only=False) if form != "bare" else pickle.loads(path.read_bytes())  # noqa: S301
    assert proof.exists()  # it would have


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x02", b"not a pickle", b"PK\x03\x04 cut off", pickle.dumps([1]), pickle.dumps({"a": 1})]
)
def test_what_is_no_state_dictionary_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "adapter_model.bin").write_bytes(content)
    with pytest.raises(Refused, match="not the tensors"):
        convert(tmp_path / "adapter_model.bin", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [1, torch.ones(2, 2).to_sparse(), {"deeper": torch.ones(1)}])
def test_what_is_more_than_tensors_is_refused(tmp_path: Path, value: Any) -> None:
    torch.save({"good": torch.ones(1), "bad": value}, tmp_path / "adapter_model.bin")
    with pytest.raises(Refused, match="'bad' is no plain tensor"):
        convert(tmp_path / "adapter_model.bin", tmp_path / "out")
