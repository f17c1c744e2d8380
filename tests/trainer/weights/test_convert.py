"""Adapters of other methods as plain LoRA: as near as a rank allows, or refused with the reason."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from loradock.cli.combine import combine as combine_command
from loradock.cli.convert import convert as convert_command
from loradock.cli.merge import merge as merge_command
from loradock.registry.errors import BadInput, DigestMismatch, NotServable, Refused
from loradock.registry.records import Version
from loradock.registry.refs import parse_version
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.trainer.weights import convert
from loradock.trainer.weights.convert import Converted, Task
from tests.support.trainer.adapters import AdapterMaker, adapter_maker, deltas, rows

TARGETS = {"target_modules": ["q_proj", "down_proj"]}


@pytest.fixture
def here(settings: Settings, store: Store, shallow_dir: Path, tmp_path: Path) -> AdapterMaker:
    return adapter_maker(settings, store, shallow_dir, tmp_path)


def converted(here: AdapterMaker, version: Version, **changes: object) -> Converted:
    task = replace(Task(version.ref, base=str(here.local.path)), **changes)  # type: ignore[arg-type]
    return convert.convert(task, here.settings, lambda _: None)


def apart(here: AdapterMaker, outcome: Converted, original: Path) -> float:
    """How far any logit of the converted adapter, as plain PEFT loads it, is from the original's."""
    into = here.scratch / outcome.version.replace("/", "-")
    into.mkdir()
    made = here.store.version(parse_version(outcome.version))
    here.store.download(made.source, into, what="it")
    config = json.loads((into / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["rank_pattern"], made.findings) == ("LORA", outcome.rank, {}, ())
    ids = torch.arange(100, 130)[None]
    logits = []
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in (original, into):
            model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(here.local.path), path).eval()
            logits.append(model(ids).logits)
    return float((logits[0] - logits[1]).abs().max())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "said", "rank"),
    [
        ("adalora", {}, 12),
        ("loha", {"r": 4}, 16),
        ("miss", {"r": 8}, 8),
        ("delora", {"r": 8}, 8),
        ("tinylora", {}, 0),
        ("vblora", {}, 0),
        ("unilora", {}, 0),
        ("hra", {"r": 8}, 8),
        ("deft", {"para": True, "r": 8}, 8),
        ("gralora", {"r": 32}, 0),
        ("psoft", {}, 0),
        ("peanut", {}, 0),
    ],
)
def test_methods_of_low_rank_are_converted_without_loss(
    method: str, said: dict[str, Any], rank: int, here: AdapterMaker
) -> None:
    version = here.make("bot", method, **TARGETS, **{key: value for key, value in said.items() if key != "para"})
    outcome = converted(here, version, energy=0.999999999)
    assert outcome.method == method
    assert outcome.rank == rank or not rank
    assert outcome.error < 1e-4
    assert outcome.likeness.relative < 1e-2
    assert apart(here, outcome, here.scratch / "bot") < 2e-2


@pytest.mark.slow
def test_what_has_no_low_rank_loses_the_less_the_higher_the_rank(here: AdapterMaker) -> None:
    version = here.make("bot", "dora", r=4, **TARGETS)
    found = [converted(here, version, rank=rank, bound=1.0) for rank in (2, 16, 128)]
    assert found[0].error > found[1].error > found[2].error > 0
    assert found[0].likeness.kl > found[1].likeness.kl > found[2].likeness.kl
    assert [outcome.version for outcome in found] == ["bot-lora/1", "bot-lora/2", "bot-lora/3"]
    assert set(found[0].errors) == {
        f"model.layers.{layer}.{name}" for layer in (0, 1) for name in ("self_attn.q_proj", "mlp.down_proj")
    }
    assert apart(here, found[2], here.scratch / "bot") < apart(here, found[0], here.scratch / "bot")


@pytest.mark.slow
def test_the_error_is_what_is_left_of_the_change_of_weights(here: AdapterMaker) -> None:
    version = here.make("bot", "lora", r=8, **TARGETS)
    outcome = converted(here, version, rank=2, bound=1.0, name="small", data=rows(here.scratch, 4))
    assert (outcome.version, outcome.rank) == ("small/1", 2)
    apart(here, outcome, here.scratch / "bot")
    before, after = deltas(here.scratch / "bot"), deltas(here.scratch / "small-1")
    for name, value in before.items():
        left = float((value - after[name]).norm() / value.norm())
        best = torch.linalg.svdvals(value)
        assert left == pytest.approx(float(best[2:].norm() / best.norm()), abs=1e-5)
        assert outcome.errors[name.removeprefix("base_model.model.")] == pytest.approx(left, abs=1e-5)
    assert set(outcome.losses) == {"base", "original", "converted"}
    made = here.store.version(parse_version("small/1"))
    assert made.facts.parents == ("bot/1",)
    run = here.store.client.get_run(made.facts.run_id).data
    assert run.params["convert.rank"] == "2"
    assert run.metrics["loss/converted"] == pytest.approx(outcome.losses["converted"])
    report = json.loads(Path(here.store.client.download_artifacts(made.facts.run_id, "report.json")).read_text())
    assert report["errors"] == dict(outcome.errors)
    assert converted(here, version, rank=2, bound=1.0, name="small").version == "small/1"


@pytest.mark.slow
@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_from_the_base_is_put_back_exactly(start: str, here: AdapterMaker) -> None:
    version = here.version(here.raw("bot", "lora", r=4, init_lora_weights=start, **TARGETS), "bot")
    assert version.findings
    outcome = converted(here, version)
    assert (outcome.rank, outcome.error) == (8, 0.0)
    assert apart(here, outcome, here.scratch / "bot") < 2e-2


@pytest.mark.slow
def test_more_than_the_bound_is_lost_only_when_told(here: AdapterMaker) -> None:
    version = here.make("bot", "ia3")
    with pytest.raises(Refused, match="is lost") as raised:
        converted(here, version, rank=2)
    assert "loradock merge bot/1" in raised.value.hint
    assert here.store.find_family("bot-lora") is None
    assert converted(here, version, rank=2, bound=1.0).lost > convert.BOUND


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "said", "error", "words"),
    [
        ("prompt_tuning", {"num_virtual_tokens": 4}, Refused, "leaves the base's weights as they are"),
        ("prefix_tuning", {"num_virtual_tokens": 4}, Refused, "leaves the base's weights as they are"),
        ("p_tuning", {"num_virtual_tokens": 4}, Refused, "leaves the base's weights as they are"),
        ("ln_tuning", {}, Refused, "changes what LoRA does not add to: model.layers.0.input_layernorm.weight"),
        (
            "lora",
            {"modules_to_save": ["embed_tokens"], **TARGETS},
            Refused,
            "does not add to: model.embed_tokens.weight",
        ),
        ("lora", {"alora_invocation_tokens": [1, 2], **TARGETS}, NotServable, "activated LoRA"),
        ("lora", TARGETS, BadInput, "is plain LoRA"),
    ],
)
def test_what_cannot_be_converted_is_refused_with_the_reason(
    kind: str, said: dict[str, Any], error: type[Exception], words: str, here: AdapterMaker
) -> None:
    version = here.version(here.raw("bot", kind, **said), "bot")
    with pytest.raises(error, match=words):
        converted(here, version)
    assert [family.name for family in here.store.families()] == ["bot"]


@pytest.mark.slow
def test_other_bytes_are_refused(here: AdapterMaker) -> None:
    version = here.make("bot", "dora", r=4, **TARGETS)
    location = here.store.client.get_logged_model(version.source.removeprefix("models:/")).artifact_location
    (Path(location.removeprefix("file://")) / "stray.txt").write_text("x")
    with pytest.raises(DigestMismatch, match=r"stray\.txt is extra"):
        converted(here, version)


@pytest.mark.parametrize("command", [merge_command, combine_command, convert_command])
def test_every_option_has_help(command: click.Command) -> None:
    assert all(option.help for option in command.params if isinstance(option, click.Option))
    assert command.help


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        (merge_command, ["a/1", "--limit", "4"], "--limit does nothing without --data"),
        (merge_command, ["a/1", "--force"], "--force needs a --reason"),
        (merge_command, ["a/1", "--reason", "x"], "--reason does nothing without --force"),
        (combine_command, ["a/1", "--name", "x"], "one version cannot be combined"),
        (combine_command, ["a/1", "b/1", "--name", "x", "--limit", "4"], "--limit does nothing without --data"),
        (combine_command, ["a/1", "b/1", "--name", "x", "--method", "svd", "--seed", "1"], "--seed does nothing"),
        (convert_command, ["a/1", "--limit", "4"], "--limit does nothing without --data"),
        (merge_command, ["a//1"], "is not a version"),
        (convert_command, ["a/1", "--rank", "4", "--energy", "0.9"], "exclude each other"),
        (convert_command, ["A/1"], "is not an adapter name"),
    ],
)
def test_words_that_cannot_be_meant(command: click.Command, words: list[str], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        command.main(words, standalone_mode=False)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (combine_command, ["a/1", "b/1", "--name", "x", "--weights", "x"]),
        (combine_command, ["a/1", "b/1"]),
        (merge_command, ["a/1", "b/1"]),
        (merge_command, ["a/1", "--dtype", "int8"]),
        (merge_command, ["a/1", "--into", "4bit"]),
    ],
)
def test_values_that_cannot_be_parsed(command: click.Command, words: list[str]) -> None:
    with pytest.raises(click.UsageError):
        command.main(words, standalone_mode=False)
