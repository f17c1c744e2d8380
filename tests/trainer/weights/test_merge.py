"""A merged model holds the weights that PEFT's own merge gives, speaks as base and adapter do, or is refused."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from loradock.registry import entries, lineage, promotion, versions
from loradock.registry.base import LocalBase, identify
from loradock.registry.errors import (
    BadInput,
    DigestMismatch,
    GateFailed,
    LoradockError,
    NotServable,
    Refused,
    WrongBase,
)
from loradock.registry.records import Version
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.trainer import base, catalogue
from loradock.trainer.evaluation import contestants
from loradock.trainer.weights import fold, parents, quantized, staging
from loradock.trainer.weights.fold import Merged, Task
from loradock.trainer.weights.layers import Layers, skeleton
from loradock.trainer.weights.shards import Shards
from loradock.trainer.weights.speaker import speaker, streamed
from tests.support import dying, warm
from tests.support.adapters import log_adapter
from tests.support.trainer.adapters import AdapterMaker, adapter_maker, merged_by_peft, rows, weights_in

pytestmark = pytest.mark.slow

LORA = {"r": 4, "target_modules": ["q_proj", "down_proj"]}
UNMERGED = {
    # change no weight
    *("adaption_prompt", "cartridge", "cpt", "multitask_prompt_tuning", "p_tuning", "prefix_tuning", "prompt_tuning"),
    *("poly", "shadow", "xlora", catalogue.FULL),
    # PEFT does not merge it; it adds a bias where this base has none; as lora is on a base in 4 bits
    *("lily", "beft", "qlora", "loftq"),
    *("pissa", "olora"),  # made plain LoRA before: test_convert
}
MERGED = sorted(set(catalogue.ENTRIES) - UNMERGED)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory, shallow_dir: Path) -> Path:
    """The small base in several files."""
    directory = tmp_path_factory.mktemp("sharded") / "SmolLM2-2-layers"
    AutoModelForCausalLM.from_pretrained(shallow_dir).save_pretrained(directory, max_shard_size="10MB")
    AutoTokenizer.from_pretrained(shallow_dir).save_pretrained(directory)
    (directory / "LICENSE").write_text("a licence")
    return directory


@pytest.fixture
def here(settings: Settings, store: Store, shallow_dir: Path, tmp_path: Path) -> AdapterMaker:
    return adapter_maker(settings, store, shallow_dir, tmp_path)


def merge(here: AdapterMaker, version: Version, **changes: object) -> Merged:
    task = replace(Task(version.ref, base=str(here.local.path)), **changes)  # type: ignore[arg-type]
    return fold.merge(task, here.settings, lambda _: None)


def versions_of(here: AdapterMaker) -> list[str]:
    return [str(version.ref) for family in here.store.families() for version in here.store.versions(family.name)]


@pytest.mark.parametrize("method", MERGED)
def test_module_by_module_is_what_peft_merges_on_the_whole_model(method: str, here: AdapterMaker) -> None:
    directory = here.adapter("x", method)
    kind = json.loads((directory / "adapter_config.json").read_text())["peft_type"].lower()
    layers = Layers(here.local, directory, kind)
    expected = merged_by_peft(here.local.path, directory)
    apart = effect = 0.0
    for _ in range(2):  # a module gives back what it was given
        for name in layers.names:
            after = layers.after(name)
            assert after is not None
            apart += float((after - expected[name].double()).square().sum())
            effect += float((expected[name].double() - layers.before(name)).square().sum())
    assert layers.names
    assert apart**0.5 < 5e-3 * effect**0.5  # the reference computes in float32


def test_a_model_of_several_files_is_merged_file_by_file_and_registered(
    here: AdapterMaker, sharded: Path, tmp_path: Path
) -> None:
    here = adapter_maker(here.settings, here.store, sharded, tmp_path)
    version = here.make("bot", "lora", **LORA)
    out = tmp_path / "merged"
    outcome = merge(here, version, out=out)
    assert len(list(sharded.glob("*.safetensors"))) > 2
    assert {path.name for path in out.glob("model*")} == {path.name for path in sharded.glob("model*")}
    expected, found = merged_by_peft(sharded, tmp_path / "bot"), weights_in(out)
    assert found.keys() == weights_in(sharded).keys()
    assert max(float((found[name] - expected[name]).abs().max()) for name in found) < 1e-6
    for name in ("tokenizer.json", "generation_config.json", "LICENSE"):
        assert (out / name).read_bytes() == (sharded / name).read_bytes()
    assert (outcome.version, outcome.dtype, outcome.into) == ("bot-merged/1", "float32", "full")
    assert outcome.likeness.relative < 1e-4
    assert outcome.likeness.same_answers == outcome.likeness.answers == 8
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".merged")]
    made = here.store.version(promotion.resolve(here.store, _ref("bot-merged/1")).ref)
    assert (made.facts.method, made.facts.parents, made.facts.digest) == (parents.MERGED, ("bot/1",), outcome.digest)
    assert [str(child) for child in here.store.children(version.ref)] == ["bot-merged/1"]
    assert any(node.id == "bot/1" for node in lineage.graph(lineage.kin(here.store, made)).nodes)
    with pytest.raises(NotServable):
        promotion.promote(here.store, made.ref, "production", actor="tester")
    run = here.store.client.get_run(made.facts.run_id)
    assert run.data.params["merge.parent"] == "bot/1"
    assert run.data.metrics["merge.largest"] == pytest.approx(outcome.likeness.largest)
    assert merge(here, version).version == "bot-merged/1"
    with pytest.raises(BadInput, match="is a merged model"):
        merge(here, made)


def _ref(text: str) -> fold.VersionRef:
    name, _, number = text.partition("/")
    return fold.VersionRef(name, int(number))


@pytest.mark.parametrize(("dtype", "relative"), [("float32", 1e-4), ("float16", 2e-2), ("bfloat16", 0.15)])
def test_in_each_precision_it_is_within_the_bound(dtype: str, relative: float, here: AdapterMaker) -> None:
    outcome = merge(here, here.make("bot", "dora", **LORA), dtype=dtype, out=here.scratch / "out")
    assert outcome.likeness.relative < relative < fold.BOUNDS[dtype] * 1.01 + 1e-3
    assert {str(value.dtype) for value in weights_in(here.scratch / "out").values()} == {f"torch.{dtype}"}
    assert json.loads((here.scratch / "out" / "config.json").read_text())["dtype"] == dtype


def test_what_speaks_otherwise_is_refused_and_leaves_nothing(
    here: AdapterMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fold.BOUNDS, "bfloat16", 1e-5)  # type: ignore[misc]
    version = here.make("bot", "lora", **LORA)
    with pytest.raises(Refused, match="speaks otherwise"):
        merge(here, version, dtype="bfloat16", out=here.scratch / "out")
    assert versions_of(here) == ["bot/1"]
    assert not [path for path in here.scratch.iterdir() if "out" in path.name]
    assert merge(here, version, dtype="bfloat16", forced="a try").version == "bot-merged/1"


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_a_head_and_embeddings_that_were_one_are_two_where_the_adapter_parts_them(
    target: str, here: AdapterMaker
) -> None:
    said = {"modules_to_save": ["lm_head"]} if target == "lm_head" else {"target_modules": ["q_proj", "embed_tokens"]}
    directory = here.raw("bot", "lora", **({"r": 4, "target_modules": ["q_proj"]} | said))
    outcome = merge(here, here.version(directory, "bot"), out=here.scratch / "out")
    assert outcome.likeness.relative < 1e-4
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= weights_in(here.scratch / "out").keys()
    assert json.loads((here.scratch / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    with torch.inference_mode():
        ids = torch.arange(12)[None]
        found = AutoModelForCausalLM.from_pretrained(here.scratch / "out")(ids).logits
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(here.local.path), directory)
        assert float((adapted(ids).logits - found).abs().max()) < 1e-3


def test_trained_tokens_keep_head_and_embeddings_one(here: AdapterMaker) -> None:
    outcome = merge(here, here.make("bot", "trainable_tokens"), out=here.scratch / "out")
    assert outcome.likeness.relative < 1e-4
    assert "lm_head.weight" not in weights_in(here.scratch / "out")


def quantized_version(here: AdapterMaker) -> Version:
    version = here.version(here.adapter("bot", "lora", **LORA), "bot", quantization="nf4")
    here.store.client.log_param(version.facts.run_id, "recipe.training.dtype", "float32")
    return version


def test_weights_that_were_in_four_bits_come_back_to_the_last_bit(here: AdapterMaker) -> None:
    version = quantized_version(here)
    recipe = contestants.as_trained(version, {"recipe.training.dtype": "float32"})
    assert recipe.quantization
    shards = Shards(here.local.path)
    source = quantized.source(here.local.path, shards.read, recipe.quantization, torch.float32)
    model = base.load(here.local, recipe).model.dequantize()
    for name, value in model.named_parameters():
        assert torch.equal(value.float().cpu(), source(name).float()), name
    assert not torch.equal(
        source("model.layers.0.mlp.down_proj.weight"), shards.read("model.layers.0.mlp.down_proj.weight")
    )


def test_where_an_adapter_of_a_quantised_base_goes_is_the_users_choice(here: AdapterMaker) -> None:
    version, data = quantized_version(here), rows(here.scratch)
    with pytest.raises(BadInput, match="say what it goes into"):
        merge(here, version)
    with pytest.raises(Refused, match="most of the training is lost"):
        merge(here, version, into="quantized")
    exact = merge(here, version, into="dequantized", data=data)
    assert exact.likeness.relative < 1e-4
    assert exact.losses["merged into dequantized"] == pytest.approx(exact.losses["dequantized"], abs=2e-3)
    full = merge(here, version, into="full", data=data)
    assert full.losses["merged into full"] == pytest.approx(full.losses["full"], abs=2e-3)
    assert full.losses["full"] != pytest.approx(full.losses["dequantized"], abs=1e-4)
    assert (exact.version, full.version) == ("bot-merged/1", "bot-merged/2")
    lost = merge(here, version, into="quantized", forced="a try", out=here.scratch / "quantized")
    assert lost.likeness.relative > 100 * exact.likeness.relative
    bits = LocalBase(here.scratch / "quantized", identify(here.scratch / "quantized", base_id="quantized"))
    with pytest.raises(BadInput, match="the files of quantized are quantised"):
        merge(here, here.version(here.scratch / "bot", "on-bits", **dict(bits.base)), base=str(bits.path))
    plain = here.make("plain", "lora", **LORA)
    with pytest.raises(BadInput, match="not quantised"):
        merge(here, plain, into="dequantized")


def test_a_policy_that_asks_for_figures_asks_before_a_merge_too(here: AdapterMaker) -> None:
    version = here.make("bot", "lora", **LORA)
    entries.set_policy(here.store, "bot", "production:\n  better_than_base: {loss: 0}\n", actor="tester")
    with pytest.raises(GateFailed) as raised:
        merge(here, version)
    assert "--force" in raised.value.hint
    assert "loradock evaluate bot/1" in raised.value.problems[0]
    assert merge(here, version, forced="a try").version == "bot-merged/1"
    run_id = here.store.version(_ref("bot-merged/1")).facts.run_id
    assert here.store.parameters_of(run_id)["merge.forced"] == "a try"


def test_what_cannot_be_merged_is_refused_with_the_reason(here: AdapterMaker, base_dir: Path) -> None:
    prompt = here.raw("prompt", "prompt_tuning", num_virtual_tokens=4)
    with pytest.raises(Refused, match="prompt_tuning, which leaves the base's weights as they are"):
        merge(here, _registered(here, prompt, "prompt"))
    version = here.make("bot", "lora", **LORA)
    with pytest.raises(WrongBase):
        merge(here, version, base=str(base_dir))
    (here.scratch / "there").mkdir()
    with pytest.raises(BadInput, match="is there already"):
        merge(here, version, out=here.scratch / "there")
    location = here.store.client.get_logged_model(version.source.removeprefix("models:/")).artifact_location
    weights = Path(location.removeprefix("file://")) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(DigestMismatch, match=r"adapter_model\.safetensors changed"):
        merge(here, version, out=here.scratch / "out")
    assert sorted(versions_of(here)) == ["bot/1", "prompt/1"]
    assert not (here.scratch / "out").exists()


def _registered(here: AdapterMaker, directory: Path, name: str) -> Version:
    return versions.register(here.store, log_adapter(here.store, directory, base=here.local.base), name)


def test_room_is_seen_to_before_anything_is_read(tmp_path: Path) -> None:
    staging.check_room({tmp_path: 1})
    with pytest.raises(LoradockError, match="there is no room left"):
        staging.check_room({tmp_path / "not" / "yet": shutil.disk_usage(tmp_path).free // 2, tmp_path: 2**60})


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """As a disk that is full after so many bytes of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_fills_up_is_told_in_a_line_and_leaves_nothing(here: AdapterMaker) -> None:
    version = here.make("bot", "lora", **LORA)
    with file_limit(40 * 2**20), pytest.raises(LoradockError, match="there is no room left"):
        merge(here, version, out=here.scratch / "out")
    assert versions_of(here) == ["bot/1"]
    assert not [path for path in here.scratch.iterdir() if "out" in path.name]


def test_one_that_is_killed_registers_nothing_and_can_be_run_again(here: AdapterMaker) -> None:
    version, out = here.make("bot", "lora", **LORA), here.scratch / "out"
    command = ["bot/1", "--base", str(here.local.path), "--out", str(out)]
    code = f"from loradock.cli.merge import merge; merge.main({command}, standalone_mode=False)"
    done = warm.run(dying.command(code, "loradock.trainer.weights.shards", "save_file"), kind="trainer")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list(here.scratch.glob(".out-*/*.safetensors"))
    assert versions_of(here) == ["bot/1"]
    assert not out.exists()
    assert merge(here, version, out=out).version == "bot-merged/1"


def test_the_weights_of_a_large_base_are_not_in_memory() -> None:
    before = psutil.Process().memory_info().rss
    model = skeleton(Path(__file__).parents[2] / "bases" / "Llama-3.1-8B")
    assert sum(parameter.numel() for parameter in model.parameters()) > 8e9
    assert psutil.Process().memory_info().rss - before < 200 * 2**20


@pytest.mark.parametrize(
    ("method", "said"),
    [
        *(("lora", LORA), ("dora", LORA), ("ia3", {}), ("hira", {}), ("ln_tuning", {}), ("trainable_tokens", {})),
        ("lora", {"modules_to_save": ["lm_head"], **LORA}),
    ],
)
def test_a_model_read_as_it_runs_says_the_same(method: str, said: dict[str, Any], here: AdapterMaker) -> None:
    adapter = here.raw("x", method, **said) if "modules_to_save" in said else here.adapter("x", method, **said)
    ids = torch.arange(100, 120)[None]
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for directory in (None, adapter):
            whole, read = speaker(here.local, directory, method), streamed(here.local, directory)
            for _ in range(2):
                assert torch.equal(whole(ids, use_cache=False).logits, read(ids, use_cache=False).logits)
            assert all(value.isnan().any() for value in read.parameters() if value.dim() == 1 and not directory)


def test_a_merged_model_is_a_base_for_the_next(here: AdapterMaker) -> None:
    merge(here, here.make("bot", "lora", **LORA), out=here.scratch / "out")
    found = identify(here.scratch / "out", base_id="out")
    assert not found.same_weights(here.local.base)
    next_ = adapter_maker(here.settings, here.store, here.scratch / "out", here.scratch)
    assert next_.local == LocalBase(here.scratch / "out", found)
    assert merge(next_, next_.make("next", "lora", **LORA)).likeness.relative < 1e-4
