"""What is recorded of an adapter is what plain PEFT says with it alone, on the base as its files have it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from loradock.registry import artifact, recording, versions
from loradock.registry.base import LocalBase, identify
from loradock.registry.errors import BadInput, DigestMismatch
from loradock.registry.records import Version
from loradock.registry.reference import ANSWER, Reference
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.trainer.reference import Witness
from tests.support.adapters import make_version, write_adapter
from tests.support.trainer.adapters import bare, made

pytestmark = pytest.mark.slow

KINDS: dict[str, dict[str, Any]] = {
    "q, v": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
    "all layers, rank-stabilised": {"r": 32, "target_modules": "all-linear", "use_rslora": True},
    "patterns": {"r": 4, "target_modules": "all-linear", "rank_pattern": {"q_proj": 8}, "alpha_pattern": {"v_proj": 2}},
    "embeddings": {"r": 4, "target_modules": ["q_proj", "embed_tokens"]},
}


@pytest.fixture(scope="module")
def local(shallow_dir: Path) -> LocalBase:
    return LocalBase(shallow_dir, identify(shallow_dir, base_id=shallow_dir.name))


@pytest.fixture(scope="module")
def adapters(local: LocalBase, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: made(local, tmp_path_factory.mktemp("adapter"), settings) for kind, settings in KINDS.items()}


def plainly(model: Any, tokens: Sequence[int]) -> list[float]:
    ids = torch.tensor([tokens])
    with torch.inference_mode():
        logs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    return logs.gather(1, ids[0, 1:, None])[:, 0].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_peft_says(kind: str, local: LocalBase, adapters: dict[str, Path]) -> None:
    found = Witness(local).reference(adapters[kind], "a" * 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone, adapted = bare(local), PeftModel.from_pretrained(bare(local), adapters[kind]).eval()
    for probe in found.probes:
        assert list(probe.bare) == pytest.approx(plainly(alone, probe.tokens), abs=1e-5)
        assert list(probe.adapted) == pytest.approx(plainly(adapted, probe.tokens), abs=1e-5)
        ids = torch.tensor([probe.tokens])
        logits = adapted(input_ids=ids).logits[0, -ANSWER - 1 : -1]
        assert list(probe.answer) == logits.argmax(-1).tolist()
        assert list(probe.margins) == pytest.approx([float(row[0] - row[1]) for row in logits.topk(2).values], abs=1e-4)
    distance = [a - b for probe in found.probes for a, b in zip(probe.adapted, probe.bare, strict=True)]
    assert max(map(abs, distance)) > 1e-3
    assert (found.base, found.config) == (local.base.weights_digest, local.base.config_digest)


def test_one_base_wears_many_and_keeps_nothing_of_them(local: LocalBase, adapters: dict[str, Path]) -> None:
    shared = Witness(local)
    first, *others = adapters.values()
    in_turn = [shared.reference(path, "a" * 64).probes for path in (first, *others, first)]
    assert in_turn[0] == in_turn[-1]
    assert in_turn[-2] == Witness(local).reference(others[-1], "a" * 64).probes


def test_a_base_that_does_not_fit_says_the_same(
    local: LocalBase, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Witness(local)
    monkeypatch.setattr("loradock.trainer.reference._SHARE", 0.0)  # of the free memory
    for path in (adapters["patterns"], adapters["embeddings"]):
        streamed = Witness(local).reference(path, "a" * 64)
        for one, other in zip(streamed.probes, whole.reference(path, "a" * 64).probes, strict=True):
            assert one.tokens == other.tokens
            assert one.adapted == pytest.approx(other.adapted, abs=1e-5)
            assert one.bare == pytest.approx(other.bare, abs=1e-5)


class RecordingSay(list[str]):
    def __call__(self, text: str) -> None:
        self.append(text)


def recorded(store: Store, version: Version, local: LocalBase) -> Reference:
    recording.record(store, (version,), RecordingSay(), str(local.path))
    found = store.find_reference(version.facts.digest, local.base)
    assert found is not None
    return found


def test_the_entry_point_records_a_version_once(store: Store, local: LocalBase, tmp_path: Path) -> None:
    version, said = make_version(store, tmp_path / "one", base=local.base), RecordingSay()
    for _ in range(2):
        recording.record(store, (version,), said, str(local.path))
    assert said == [f"recording the PEFT reference of {version.ref} on {local.base.id}"]
    found = store.find_reference(version.facts.digest, local.base)
    assert found is not None
    assert found.probes == Witness(local).reference(tmp_path / "one", version.facts.digest).probes


def test_an_adapter_of_a_quantised_base_is_heard_on_the_base_in_full(
    store: Store, local: LocalBase, tmp_path: Path
) -> None:
    quantised = local.base.model_copy(update={"quantization": "nf4"})
    trained = make_version(store, tmp_path / "one", "qlora", base=quantised)
    assert recorded(store, trained, local).probes == recorded(store, trained, local).probes
    plain = Witness(local).reference(write_adapter(tmp_path / "two"), "a" * 64)
    assert recorded(store, trained, local).probes == plain.probes


def test_damaged_bytes_are_not_heard(store: Store, local: LocalBase, settings: Settings, tmp_path: Path) -> None:
    version, said = make_version(store, tmp_path / "one", base=local.base), RecordingSay()
    (weights,) = settings.artifacts.rglob(artifact.WEIGHTS)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x07")
    with pytest.raises(DigestMismatch):
        recording.record(store, (version,), said, str(local.path))
    recording.attempt(store, version, said, str(local.path))
    assert "does not hold the bytes" in said[-2]
    assert store.find_reference(version.facts.digest, local.base) is None


def test_an_import_can_be_recorded(store: Store, local: LocalBase, tmp_path: Path) -> None:
    version = versions.import_directory(store, write_adapter(tmp_path / "one"), local, "imported")
    assert recorded(store, version, local).adapter == version.facts.digest


def test_a_base_without_a_tokenizer_is_told(local: LocalBase, tmp_path: Path) -> None:
    for path in local.path.iterdir():
        if "token" not in path.name:
            (tmp_path / path.name).symlink_to(path)
    config = json.loads((local.path / "config.json").read_text())
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(BadInput, match="tokenizer"):
        Witness(LocalBase(tmp_path, local.base))
