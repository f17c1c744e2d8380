from __future__ import annotations

import pytest

from loradock.registry.errors import BadInput
from loradock.registry.refs import AliasRef, VersionRef, parse_alias, parse_name, parse_ref, parse_version


def test_a_version_an_alias_and_a_bare_name() -> None:
    assert parse_ref("support-bot/3") == VersionRef("support-bot", 3)
    assert parse_ref("support-bot@canary") == AliasRef("support-bot", "canary")
    assert parse_ref("support-bot") == AliasRef("support-bot", "production")
    assert [str(parse_ref(text)) for text in ("a/1", "a@b")] == ["a/1", "a@b"]


@pytest.mark.parametrize(
    "text",
    ["", "m-abc", "Support", "a b", "a\n", "-a", ".a", "a..b", "../a", "a" * 64, "text", "image", "naïve", "a:b"],
)
def test_a_name_that_mlflow_vllm_or_a_path_could_take_otherwise_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        parse_name(text)


@pytest.mark.parametrize("text", ["", "latest", "v1", "v22", "Prod", "a\n", "1a", "a" * 32, "a_b"])
def test_an_alias_that_mlflow_reserves_or_misreads_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        parse_alias(text)


@pytest.mark.parametrize("text", ["a", "a/", "a/0", "a/01", "a/-1", "a/1/2", "a/1\n", "a/x", "/1", "a/1234567890"])
def test_what_is_not_a_version_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        parse_version(text)


def test_v_words_that_are_not_versions_are_aliases() -> None:
    assert parse_alias("vnext") == "vnext"
