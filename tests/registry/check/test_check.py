from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from loradock.registry import check
from loradock.registry.artifact import CONFIG, WEIGHTS
from loradock.registry.check.config import _CONVERTED, _MERGED
from loradock.registry.check.findings import MENDINGS, VERBS, Diagnosis, Finding
from loradock.registry.check.names import parse
from loradock.registry.check.settings import Scaling
from loradock.registry.check.shapes import Layer, read_shapes
from loradock.registry.errors import BadInput, NotFound
from loradock.registry.patterns import is_tame, matches
from tests.support.adapters import write_adapter
from tests.support.registry.ailing import CASES, make_bases, write

ROOT = Path(__file__).resolve().parents[3]
SMOL = {
    "hidden_size": 576,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_bases(tmp_path_factory.mktemp("bases"))


def test_a_plain_lora_on_its_own_base_has_no_findings(tmp_path: Path, base_dir: Path) -> None:
    adapter = write_adapter(tmp_path)
    assert check.findings(adapter, base=check.shapes_of_config(SMOL), max_rank=16) == []
    assert check.examine(adapter, base=check.read_shapes(base_dir), max_rank=16).findings == ()


def test_an_adapter_for_a_wider_base_is_found_by_its_shapes(tmp_path: Path) -> None:
    found = check.findings(write_adapter(tmp_path, hidden=2048), base=check.shapes_of_config(SMOL))
    assert any("another base" in line and "2048 wide where the base is 576" in line for line in found)
    assert check.misfits(tmp_path, check.shapes_of_config(SMOL)) == found


def test_an_adapter_for_a_deeper_base_is_found_by_its_layers(tmp_path: Path) -> None:
    (found,) = check.findings(write_adapter(tmp_path, layers=32), base=check.shapes_of_config(SMOL))
    assert "4 modules are not in the base" in found
    assert "the base has 30 layers" in found


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_found_in_every_type(tmp_path: Path, dtype: str, value: float) -> None:
    import torch
    from safetensors.torch import load_file as load
    from safetensors.torch import save_file as save

    tensors = {
        name: tensor.to(getattr(torch, dtype)) for name, tensor in load(write_adapter(tmp_path) / WEIGHTS).items()
    }
    save(tensors, tmp_path / WEIGHTS)
    assert check.findings(tmp_path) == []
    name, tensor = next(iter(tensors.items()))
    tensor.view(-1)[-1] = value
    save(tensors, tmp_path / WEIGHTS)
    assert check.findings(tmp_path) == [f"{name} holds a value that is no finite number"]


def test_what_is_no_adapter_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no directory"):
        check.examine(tmp_path / "nothing")
    write(tmp_path / "run" / "checkpoint-3")
    with pytest.raises(BadInput, match="no adapter") as caught:
        check.examine(tmp_path / "run")
    assert "checkpoint-3" in caught.value.hint


def test_the_links_of_the_hub_s_cache_lead_nowhere_bad_and_others_do(tmp_path: Path) -> None:
    snapshot = write(tmp_path / "snapshots" / "0123")
    (tmp_path / "blobs").mkdir()
    (snapshot / WEIGHTS).rename(tmp_path / "blobs" / ("a" * 64))
    (snapshot / WEIGHTS).symlink_to(f"../../blobs/{'a' * 64}")
    assert check.examine(snapshot).blocking == ()
    (snapshot / "circle").symlink_to("circle")
    assert check.examine(snapshot).blocking == ()
    (snapshot / "README.md").symlink_to("/etc/hostname")
    assert [finding.code for finding in check.examine(snapshot).blocking] == ["link-leads-out"]


@pytest.mark.parametrize(
    "junk", [None, -1, 0, 1.5, 10**30, float("nan"), "64", "\x1b[2J", [], {}, [1], {"a": "b"}, True], ids=str
)
def test_no_value_in_a_configuration_breaks_the_doctor(tmp_path: Path, bases: dict[str, Path], junk: Any) -> None:
    config = json.loads((write(tmp_path) / CONFIG).read_text())
    others = ("rank_pattern", "alpha_pattern", "modules_to_save", "exclude_modules", "use_dora", "lora_bias")
    for key in (*config, *others, "target_parameters", "layer_replication", "use_rslora", "kasa_config"):
        (tmp_path / CONFIG).write_text(json.dumps(config | {key: junk}))
        found = check.examine(tmp_path, base=read_shapes(bases["llama"]), max_rank=16)
        assert all(finding.text.isprintable() for finding in found.findings)


def test_names_from_a_file_are_printed_without_their_control_characters(tmp_path: Path) -> None:
    tensors = load_file(write(tmp_path) / WEIGHTS)
    save_file(
        {f"\x1b[31m{name}": value for name, value in tensors.items()} | {"x" * 10**5: tensors.popitem()[1]},
        tmp_path / WEIGHTS,
    )
    found = check.examine(tmp_path)
    assert found.findings
    assert all(finding.text.isprintable() and len(finding.text) < 700 for finding in found.findings)


@pytest.mark.parametrize(
    ("name", "module", "part", "faults"),
    [
        ("base_model.model.a.q.lora_A.weight", "a.q", "A", ()),
        ("base_model.model.a.q.lora_B.default.weight", "a.q", "B", ("adapter-in-names",)),
        ("base_model.model.a.lora_embedding_A", "a", "embedding_A", ()),
        ("base_model.model.a.lora_embedding_B.default", "a", "embedding_B", ("adapter-in-names",)),
        ("base_model.model.a.q.lora_B.bias", "a.q", "bias", ()),
        ("base_model.model.a.q.lora_magnitude_vector", "a.q", "magnitude_vector", ()),
        ("base_model.model.a.q.lora_magnitude_vector.default.weight", "a.q", "magnitude_vector", ("adapter-in-names",)),
        ("a._orig_mod.q.lora_A.weight", "a.q", "A", ("prefix-missing", "wrapper-in-names")),
        ("base_model.model.base_model.model.a.lora_A.weight", "a", "A", ("prefix-doubled",)),
    ],
)
def test_names_are_taken_apart_and_written_as_peft_does(
    name: str, module: str, part: str, faults: tuple[str, ...]
) -> None:
    parsed = parse(name)
    assert (parsed.module, parsed.part, parsed.faults) == (module, part, faults)
    assert parse(parsed.written()).faults == ()
    assert parse(parsed.written()).written() == parsed.written()


@pytest.mark.slow
def test_patterns_mean_what_they_mean_to_peft() -> None:
    from peft.utils.other import get_pattern_key

    modules = ["model.layers.0.mlp.up_proj", "model.layers.10.mlp.up_proj", "up_proj", "sup_proj"]
    for key in (
        "up_proj",
        "mlp.up_proj",
        r"layers\.0\.mlp\.up_proj",
        "^up_proj",
        r"layers\.(\d+)\.mlp\.up_proj",
        "(",
        "",
    ):
        try:
            theirs = [get_pattern_key([key], module) == key for module in modules]
        except re.error:
            theirs = [False] * len(modules)
        assert [matches(key, module) for module in modules] == theirs, key


@pytest.mark.parametrize("pattern", ["(a+)+", "(a|a)*b", "(.*)*", ".*.*.*.*.*.*x", "(x{1,}){2,}", "a" * 3000])
def test_an_expression_that_may_never_end_is_not_tried(pattern: str) -> None:
    assert not is_tame(pattern)
    start = time.thread_time()
    assert not matches(pattern, "a" * 5000)
    assert time.thread_time() - start < 1


def test_rank_and_scaling_of_each_layer_are_vllm_s_and_peft_s() -> None:
    config = {"r": 8, "lora_alpha": 16, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"mlp.up_proj": 4}}
    scaling, stabilised = Scaling.of(config), Scaling.of(config | {"use_rslora": True})
    assert [scaling.rank_of(name) for name in ("a.q_proj", "a.v_proj")] == [2, 8]
    assert [scaling.scale_of(name) for name in ("a.q_proj", "a.v_proj", "mlp.up_proj")] == [8, 2, 0.5]
    assert stabilised.scale_of("a.q_proj") == 16 / 2**0.5


def test_the_shapes_of_each_base_are_read_from_its_headers(bases: dict[str, Path]) -> None:
    llama, tied, gpt2 = (read_shapes(bases[name]) for name in ("llama", "tied", "gpt2"))
    assert llama.layer("model.layers.1.mlp.down_proj") == Layer(96, 64)
    assert llama.layer("model.layers.2.mlp.down_proj") is None
    assert llama.renames("layers.1.mlp.down_proj") == "model.layers.1.mlp.down_proj"
    assert tied.layer("lm_head") == llama.layer("lm_head") == Layer(64, 120)
    assert gpt2.layer("transformer.h.0.attn.c_attn") == Layer(64, 192)
    assert gpt2.weight("transformer.h.0.attn.c_attn").shape == (192, 64)
    assert gpt2.renames("h.0.attn.c_attn") == "transformer.h.0.attn.c_attn"


def test_a_base_whose_pieces_are_not_all_there_is_read_by_its_configuration(
    tmp_path: Path, bases: dict[str, Path]
) -> None:
    (tmp_path / "config.json").write_bytes((bases["llama"] / "config.json").read_bytes())
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "x.safetensors"}}))
    shapes = read_shapes(tmp_path)
    assert not shapes.complete
    assert shapes.layer("model.layers.1.mlp.down_proj") == Layer(96, 64)
    assert shapes.layer("model.layers.1.mlp.other") == Layer()
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(BadInput, match=r"config\.json"):
        read_shapes(tmp_path)


def test_every_method_has_the_remedy_that_the_trainer_tells_of() -> None:
    from loradock.trainer.catalogue import ENTRIES, Served

    of_peft = {name.upper(): entry.served for name, entry in ENTRIES.items() if not entry.peft_type}
    assert {name for name, served in of_peft.items() if served is Served.CONVERTED} == set(_CONVERTED)
    assert {name for name, served in of_peft.items() if served is Served.MERGED} == set(_MERGED)


@pytest.mark.parametrize(
    ("remedies", "verdict"),
    [
        ((), "servable"),
        (("one-rank", "names"), "servable after repair: names, one-rank"),
        (("convert",), "servable after convert"),
        (("convert", "merge", "names"), "servable after repair: names, then merge"),
        (("names", ""), "not servable"),
    ],
)
def test_findings_add_up_to_a_verdict(remedies: tuple[str, ...], verdict: str) -> None:
    note = Finding("note", "nothing that blocks", "", blocks=False)
    found = Diagnosis((*(Finding("x", "y", remedy) for remedy in remedies), note))
    assert (found.verdict, found.servable) == (verdict, not remedies)
    doubted = Diagnosis((*found.findings, Finding("z", "nobody knows", unknown=True)))
    assert doubted.verdict == verdict.replace("servable", "unknown", "not" not in verdict)
    assert doubted.servable is (False if remedies else None)


def test_every_finding_is_in_the_suite_and_in_the_documentation_and_no_other() -> None:
    text = (ROOT / "docs" / "check.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `([a-z0-9-]+)` \|", text.split("## Repair")[0], re.MULTILINE)
    sources = "".join(path.read_text() for path in (ROOT / "registry" / "check").glob("*.py"))
    assert set(re.findall(r'Finding\(\s*"([a-z-]+)"', sources)) <= set(told)
    assert sorted(told) == sorted({*told})
    assert {*told} - {"other-base"} == set().union(*(case.codes for case in CASES))
    mended = re.findall(r"^\| `([a-z-]+)` \|", text.split("## Repair")[1], re.MULTILINE)
    assert mended == [*MENDINGS, *VERBS]
    assert len(CASES) >= 60
