"""`loradock methods` lists what can be named, and counts what it trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from loradock.cli.methods import methods
from loradock.registry.errors import NotFound
from loradock.trainer import catalogue

BASES = Path(__file__).parents[1] / "bases"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(methods, arguments, catch_exceptions=False)


def test_every_method_is_listed_with_what_can_be_made_of_it() -> None:
    rows = json.loads(run("--json").stdout)
    assert [row["method"] for row in rows] == list(catalogue.ENTRIES)
    of = {row["method"]: row for row in rows}
    assert of["lora"]["vLLM_serves_it"] == "as it is"
    assert (of["qlora"]["base_in_4_bits"], of["loha"]["base_in_4_bits"]) == ("always", "no")
    assert "trainable" not in of["lora"]
    assert "https://arxiv.org/abs/2402.09353" in run().stdout


def test_the_hyper_parameters_of_one_with_what_its_name_stands_for() -> None:
    rows = {row["hyper_parameter"]: row for row in json.loads(run("dora", "--json").stdout)}
    assert rows["use_dora"]["default"] is True
    assert rows["r"]["help"]
    assert "peft_type" not in rows
    assert json.loads(run("full", "--json").stdout) == []


@pytest.mark.slow
def test_what_every_method_trains_on_a_base_of_which_only_the_configuration_is_there() -> None:
    rows = {row["method"]: row for row in json.loads(run("--json", "--base", str(BASES / "Llama-3.1-8B")).stdout)}
    assert rows["lora"]["trainable"] == rows["qlora"]["trainable"] == 41_943_040
    assert rows["ia3"]["trainable"] == 524_288
    assert rows["full"]["trainable"] == 8_030_261_248
    assert rows["prompt_tuning"]["trainable"] == 20 * 4096
    assert "with the adapters that it mixes" in rows.pop("xlora")["share"]
    assert [name for name, row in rows.items() if row["trainable"] is None] == []


def test_an_unknown_method() -> None:
    with pytest.raises(NotFound, match="there is no method 'lorra'"):
        run("lorra")
