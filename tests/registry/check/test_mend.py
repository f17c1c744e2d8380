from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from loradock.registry.artifact import CONFIG, MANIFEST, WEIGHTS, read_header
from loradock.registry.check import examine
from loradock.registry.check.matrices import tensor
from loradock.registry.check.mend import Mended, mend
from loradock.registry.check.starts import taken_out
from loradock.registry.errors import BadInput, NotServable
from tests.support.registry.ailing import CASES, LLAMA, MAX_RANK, Case, make_bases, shapes, write


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_bases(tmp_path_factory.mktemp("bases"))


def mended(directory: Path, out: Path, base: Path) -> Mended:
    found = examine(directory, base=shapes(base), max_rank=MAX_RANK)
    done = mend(directory, out, found, base=shapes(base), max_rank=MAX_RANK)
    assert done is not None
    return done


def config_of(directory: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((directory / CONFIG).read_text())
    return config


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_has_a_mending_is_servable_after_it_and_does_what_it_did(
    case: Case, bases: dict[str, Path], tmp_path: Path
) -> None:
    found, base, out = case.examine(tmp_path / "adapter", bases), case.shapes(bases), tmp_path / "out"
    if not found.curable or (not found.mendings and found.blocking):
        with pytest.raises(NotServable):
            mend(tmp_path / "adapter", out, found, base=base, max_rank=MAX_RANK)
    elif not found.mendings:
        assert mend(tmp_path / "adapter", out, found, base=base, max_rank=MAX_RANK) is None
    else:
        done = mend(tmp_path / "adapter", out, found, base=base, max_rank=MAX_RANK)
        assert done is not None
        assert done.largest <= (1e-5 if "plain-start" in found.mendings else 1e-7)
        assert done.diagnosis.mendings == ()
        assert done.diagnosis.verdict == case.verdict.replace("repair: names, then ", "").partition(" after repair")[0]
        assert {path.name for path in out.iterdir()} == {CONFIG, WEIGHTS, MANIFEST}
        return
    assert not out.exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("stabilised", [False, True])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_one_rank_for_all_keeps_every_product_in_every_type(
    tmp_path: Path, bases: dict[str, Path], dtype: str, stabilised: bool
) -> None:
    config = {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"down_proj": 8, "v_proj": 24}, "use_rslora": stabilised}
    write(tmp_path / "in", config=config, ranks={"v_proj": 2})
    _as_type(tmp_path / "in", dtype)
    done = mended(tmp_path / "in", tmp_path / "out", bases["llama"])
    after = config_of(tmp_path / "out")
    assert done.mendings == ("one-rank",)
    assert (after["r"], after["rank_pattern"], after["alpha_pattern"]) == (8, {}, {})
    assert {info.dtype for info in read_header(tmp_path / "out" / WEIGHTS).values()} == {dtype}
    assert {info.shape[0] for name, info in read_header(tmp_path / "out" / WEIGHTS).items() if "lora_A" in name} == {8}
    assert done.largest <= {"F32": 1e-7, "F16": 1e-3, "BF16": 1e-2}[dtype]


def _as_type(directory: Path, dtype: str) -> None:
    from loradock.registry.check.matrices import write_tensors

    tensors = {name: tensor(value, dtype) for name, value in load_file(directory / WEIGHTS).items()}
    write_tensors(directory / WEIGHTS, tensors)


def test_bfloat16_is_rounded_as_torch_rounds_it() -> None:
    import torch

    values = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    ours = tensor(values, "BF16")
    theirs = torch.from_numpy(values).to(torch.bfloat16)
    assert ours.data == theirs.view(torch.int16).numpy().tobytes()
    assert np.array_equal(ours.values(), theirs.double().numpy())


def test_layers_that_do_nothing_are_left_out_and_are_no_targets_any_more(
    tmp_path: Path, bases: dict[str, Path]
) -> None:
    tensors = load_file(write(tmp_path / "in") / WEIGHTS)
    for name, value in tensors.items():
        if "lora_B" in name and ("v_proj" in name or "layers.1.self_attn.q_proj" in name):
            value[:] = 0
    save_file(tensors, tmp_path / "in" / WEIGHTS)
    done = mended(tmp_path / "in", tmp_path / "out", bases["llama"])
    after = config_of(tmp_path / "out")
    assert done.largest == 0
    assert len(read_header(tmp_path / "out" / WEIGHTS)) == 6
    assert after["target_modules"] == ["down_proj", "q_proj"]
    assert after["exclude_modules"] == ["model.layers.1.self_attn.q_proj"]


def test_names_that_the_base_tells_better_are_whole_names_where_a_part_would_mean_more(
    tmp_path: Path, bases: dict[str, Path]
) -> None:
    write(tmp_path / "in", layers=1, config={"target_modules": None})
    mended(tmp_path / "in", tmp_path / "out", bases["llama"])
    assert config_of(tmp_path / "out")["target_modules"] == sorted(
        f"model.layers.0.{name}" for name in LLAMA if name.endswith(("q_proj", "v_proj", "down_proj"))
    )


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (32, 32)])
def test_what_was_taken_out_is_what_svd_and_qr_give(shape: tuple[int, int]) -> None:
    weight = np.random.default_rng(1).standard_normal(shape)
    left, sizes, right = np.linalg.svd(weight, full_matrices=False)
    b, a = taken_out("pissa", weight, 6, 2.0)
    assert np.allclose(2.0 * b @ a, left[:, :6] * sizes[:6] @ right[:6], atol=1e-10)
    q, r = np.linalg.qr(weight)
    b, a = taken_out("olora", weight, 6, 2.0)
    assert np.allclose(b @ a, q[:, :6] @ r[:6], atol=1e-10)


@pytest.mark.parametrize("method", ["ADALORA", "IA3"])
def test_another_method_s_tensors_keep_their_names(method: str, tmp_path: Path, bases: dict[str, Path]) -> None:
    write(tmp_path / "in", config={"peft_type": method})
    tensors = {"prompt_embeddings": np.ones((2, 64), "float32")}
    tensors |= {n.removesuffix(".weight"): value for n, value in load_file(tmp_path / "in" / WEIGHTS).items()}
    save_file(tensors, tmp_path / "in" / WEIGHTS)
    (tmp_path / "in" / "optimizer.pt").write_bytes(b"x")
    found = examine(tmp_path / "in", base=shapes(bases["llama"]))
    done = mend(tmp_path / "in", tmp_path / "out", found, base=shapes(bases["llama"]), max_rank=MAX_RANK)
    assert done is not None
    assert done.mendings == ("files",)
    after = load_file(tmp_path / "out" / WEIGHTS)
    assert {name: value.tobytes() for name, value in after.items()} == {n: v.tobytes() for n, v in tensors.items()}


@pytest.mark.parametrize("prefix", ["base_model.model.", "", "module.base_model.model._orig_mod."])
def test_a_whole_module_and_what_names_it_are_renamed_with_the_others(
    prefix: str, tmp_path: Path, bases: dict[str, Path]
) -> None:
    write(tmp_path / "in", config={"modules_to_save": ["embed_tokens"]})
    whole = {"base_model.model.model.embed_tokens.weight": np.ones((120, 64), "float32")}
    tensors = load_file(tmp_path / "in" / WEIGHTS) | whole
    body = {prefix + name.removeprefix("base_model.model.model."): value for name, value in tensors.items()}
    save_file(body, tmp_path / "in" / WEIGHTS)
    done = mended(tmp_path / "in", tmp_path / "out", bases["llama"])
    assert load_file(tmp_path / "out" / WEIGHTS).keys() == tensors.keys()
    assert config_of(tmp_path / "out")["modules_to_save"] == ["embed_tokens"]
    assert (done.largest, done.diagnosis.verdict) == (0, "servable after merge")


def test_a_start_needs_the_base_s_weights(tmp_path: Path, bases: dict[str, Path]) -> None:
    write(tmp_path / "in", config={"init_lora_weights": "pissa"})
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_bytes((bases["llama"] / "config.json").read_bytes())
    with pytest.raises(BadInput, match="weight") as caught:
        mended(tmp_path / "in", tmp_path / "out", tmp_path / "base")
    assert "--base" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over(tmp_path: Path, bases: dict[str, Path]) -> None:
    write(tmp_path / "in", config={"bias": "all"})
    (tmp_path / "out").mkdir()
    mended(tmp_path / "in", tmp_path / "out", bases["llama"])
    for out in ("out", "in"):
        with pytest.raises(BadInput, match="there already"):
            mended(tmp_path / "in", tmp_path / out, bases["llama"])
    (tmp_path / "file").write_text("x")
    for out in ("file", "file/below"):
        with pytest.raises(BadInput):
            mended(tmp_path / "in", tmp_path / out, bases["llama"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "in", "out"]
