"""A tokenizer, template or generation_config.json that means something else is another; the same saved anew is not."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from transformers import AutoTokenizer

from loradock.cli.diff import diff
from loradock.cli.show import show
from loradock.registry import evidence, gates, policy, promotion, text, versions
from loradock.registry.base import LocalBase, identify
from loradock.registry.records import TextSettings, Version
from loradock.registry.store import Store
from loradock.registry.store.tags import facts_from, tags_of
from tests.support.adapters import NAME, make_version, write_adapter


@pytest.fixture
def copied(shallow_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(shallow_dir, tmp_path / "base")


def edited(path: Path, **changes: Any) -> None:
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({key: value for key, value in (found | changes).items() if value is not None}))


def vocabulary(base: Path) -> None:
    inner = json.loads((base / "tokenizer.json").read_text())
    inner["normalizer"] = {"type": "Lowercase"}
    (base / "tokenizer.json").write_text(json.dumps(inner))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda base: edited(base / "tokenizer_config.json", tokenizer_class="LlamaTokenizer"), ("tokenizer",)),
        (lambda base: edited(base / "tokenizer_config.json", add_bos_token=True), ("tokenizer",)),
        (lambda base: edited(base / "tokenizer_config.json", eos_token="<|endoftext|>"), ("tokenizer",)),
        (vocabulary, ("tokenizer",)),
        (lambda base: (base / "chat_template.jinja").write_text("{{ messages[0].content }}"), ("chat template",)),
        (lambda base: (base / "chat_template.jinja").unlink(), ("chat template",)),
        (lambda base: edited(base / "generation_config.json", no_repeat_ngram_size=3), ("generation_config.json",)),
        (lambda base: edited(base / "generation_config.json", repetition_penalty=1.2), ("generation_config.json",)),
        (lambda base: edited(base / "generation_config.json", eos_token_id=[0, 2]), ("generation_config.json",)),
        (lambda base: (base / "generation_config.json").unlink(), ("generation_config.json",)),
    ],
)
def test_what_changes_an_answer_is_another_one(
    copied: Path, change: Callable[[Path], object], names: tuple[str, ...]
) -> None:
    before, weights = text.settings_of(copied), identify(copied, base_id="base")
    change(copied)
    assert text.settings_of(copied).unlike(before) == names
    assert identify(copied, base_id="base") == weights


def saved_again(base: Path) -> None:
    AutoTokenizer.from_pretrained(base).save_pretrained(base)


def as_older_transformers(base: Path) -> None:
    """The template within tokenizer_config.json, tokens as objects, and the older name of the class."""
    template = (base / "chat_template.jinja").read_text()
    (base / "chat_template.jinja").unlink()
    end = {"content": "<|im_end|>", "lstrip": False, "special": True}
    kind = "PreTrainedTokenizerFast"
    edited(base / "tokenizer_config.json", chat_template=template, eos_token=end, tokenizer_class=kind)


@pytest.mark.parametrize(
    "change",
    [
        saved_again,
        as_older_transformers,
        lambda base: edited(base / "generation_config.json", transformers_version="4.1", use_cache=False),
        lambda base: (base / "tokenizer.json").write_text(
            json.dumps(json.loads((base / "tokenizer.json").read_text()))
        ),
    ],
)
def test_the_same_saved_otherwise_is_the_same(copied: Path, change: Callable[[Path], object]) -> None:
    before = text.settings_of(copied)
    change(copied)
    assert text.settings_of(copied) == before


def test_what_an_older_loradock_wrote_is_unknown_and_still_serves(
    store: Store, copied: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = make_version(store, tmp_path / "adapter")
    tags = tags_of(made.facts)
    assert json.loads(tags.pop("loradock.text")) == {"tokenizer": "", "template": "", "generation": ""}
    assert facts_from(tags) == made.facts
    assert made.facts.text.unlike(text.settings_of(copied)) == ()
    text.warn(made, copied)
    assert caplog.messages == []
    versions.verify(store, made)
    promotion.promote(store, made.ref, "production", actor="tester")
    shown = CliRunner().invoke(show, [NAME, "--json"])
    assert json.loads(shown.output)["facts"]["text"] == dict.fromkeys(TextSettings.model_fields, "unknown")


def imported(store: Store, directory: Path, base: Path, name: str) -> Version:
    return versions.import_directory(store, directory, LocalBase(base, identify(base, base_id="base")), name)


def test_a_version_knows_the_text_settings_of_its_base(
    store: Store, copied: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = text.settings_of(copied)
    first = imported(store, write_adapter(tmp_path / "one", seed=1), copied, NAME)
    assert store.version(first.ref).facts.text == settings
    (copied / "chat_template.jinja").write_text("{{ messages[0].content }}")
    second = imported(store, write_adapter(tmp_path / "two", seed=2), copied, NAME)
    caplog.clear()
    text.warn(second, copied)
    assert caplog.messages == []
    text.warn(first, copied)
    assert caplog.messages == [f"warning: {NAME}/1 was trained with another chat template than its base has here"]
    shown = CliRunner().invoke(diff, [str(first.ref), str(second.ref), "--json"])
    assert list(json.loads(shown.output)["base"]) == ["template"]


def test_a_tokenizer_or_template_beside_an_adapter_that_is_not_the_bases_is_told(
    store: Store, copied: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    for seed, name in enumerate(("none", "same", "other")):
        write_adapter(tmp_path / name, seed=seed)
    for name in ("same", "other"):
        AutoTokenizer.from_pretrained(copied).save_pretrained(tmp_path / name)
    edited(tmp_path / "other" / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    (tmp_path / "other" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    for name in ("none", "same"):
        imported(store, tmp_path / name, copied, name)
    assert [words for words in caplog.messages if "beside the adapter" in words] == []
    imported(store, tmp_path / "other", copied, "other")
    [told] = [words for words in caplog.messages if "beside the adapter" in words]
    assert told.startswith("warning: another tokenizer and chat template than the base's lies beside the adapter")


def test_evidence_by_another_template_counts_for_nothing(store: Store, copied: Path, tmp_path: Path) -> None:
    made = imported(store, write_adapter(tmp_path / "one"), copied, NAME)
    rules = policy.parse("production: {min_rows: 1, metrics: {loss: {max: 2}}}").of("production")
    assert rules is not None

    def verdict(settings: TextSettings) -> gates.Verdict:
        scores = evidence.Scores(better="lower", weighted=True, candidate=(1.0,))
        found = evidence.Evidence(
            run_id="r",
            name=NAME,
            candidate=made.facts.digest,
            incumbent="",
            base=made.facts.base.weights_digest,
            data_digest="d",
            at=made.created_at,
            metrics={"loss": scores},
            weights=(1.0,),
            text=settings,
        )
        case = gates.Case(made, None, (found,), {}, {}, made.created_at)
        return next(gates.verdicts(rules, case))

    other = made.facts.text.model_copy(update={"template": "1" * 64})
    assert verdict(made.facts.text).passed
    assert verdict(TextSettings()).passed
    assert verdict(made.facts.text.model_copy(update={"generation": "1" * 64})).passed
    assert not verdict(other).passed
    assert "it was evaluated with another chat template" in verdict(other).figure
