"""What PEFT declares is known without PEFT, and is what the installed PEFT declares."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import typing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import Enum, EnumType
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from loradock.cli.methods import methods
from loradock.trainer import catalogue, declared

AXOLOTL = """\
base_model: org/name
datasets: [{path: org/rows, type: alpaca}]
adapter: lora
lora_r: 8
lora_alpha: 16
lora_target_modules: [q_proj]
micro_batch_size: 2
sequence_len: 512
num_epochs: 1
learning_rate: 2e-4
"""


@pytest.fixture
def another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The cache of a machine whose PEFT is not the one that the shipped table is of."""
    shipped = tmp_path / "shipped.json"
    shipped.write_text('{"peft": "0.0.1", "settings": []}')
    monkeypatch.setattr(declared, "SHIPPED", shipped)
    monkeypatch.setenv("LORADOCK_CACHE", str(tmp_path / "cache"))
    forget()
    yield tmp_path / "cache"
    forget()


def forget() -> None:
    declared.settings_of.cache_clear()
    declared._rows.cache_clear()


def test_the_shipped_table_is_of_the_installed_peft() -> None:
    again = 'python -c "from loradock.trainer import declared; declared.SHIPPED.write_text(declared.text())"'
    assert declared.SHIPPED.read_text(encoding="utf-8") == declared.text(), f"make it again: {again}"


@pytest.mark.parametrize("kind", sorted(PeftType), ids=lambda kind: kind.value.lower())
def test_every_field_of_pefts_configurations_is_declared_as_peft_has_it(kind: PeftType) -> None:
    config = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    hints, fields = typing.get_type_hints(config), {field.name: field for field in dataclasses.fields(config)}
    found = declared.settings_of(kind.value.lower())
    common = {field.name for field in dataclasses.fields(PeftConfig)}
    assert fields.keys() - common >= found.keys() >= fields.keys() - common - declared._NOT_A_RECIPES
    for name, setting in found.items():
        default = fields[name].default
        assert str(setting.default) == str(None if default is dataclasses.MISSING else default)
        assert setting.annotation == declared.PEFTS_OWN or plain(setting.annotation) == plain(hints[name])


def plain(annotation: Any) -> Any:
    """A type in which an enumeration is its name and its members, since two of these are never equal."""
    if isinstance(annotation, EnumType):
        return annotation.__name__, [(member.name, member.value) for member in annotation]
    parts = typing.get_args(annotation)
    if any(isinstance(part, EnumType) for part in parts):
        return sorted(repr(plain(part)) for part in parts)
    return annotation


@pytest.mark.parametrize("as_json", [False, True])
def test_the_verb_prints_what_it_prints_with_peft_itself(as_json: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def printed() -> list[str]:
        options = ["--json"] if as_json else []
        return [CliRunner().invoke(methods, [name, *options]).stdout for name in catalogue.ENTRIES]

    told = printed()
    monkeypatch.setattr(declared, "settings_of", declared.from_peft)
    assert told == printed()


@pytest.mark.parametrize(
    "words", [["translate", "axolotl.yml"], ["methods"], ["methods", "prompt_tuning"]], ids=" ".join
)
def test_translate_and_methods_import_neither_torch_nor_peft_nor_transformers(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "axolotl.yml").write_text(AXOLOTL)
    code = (
        "import sys; from loradock.cli import cli; cli.main(sys.argv[1:], standalone_mode=False); "
        "print(*sorted({'torch', 'peft', 'transformers', 'mlflow'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout
    assert done.stderr.splitlines()[-1] == ""


def test_another_version_of_peft_is_read_once_and_said(
    another_version: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level("INFO", "loradock"):
        found = declared.settings_of("lora")
    assert found["r"].default == 8
    assert ["which takes seconds" in record.message for record in caplog.records] == [True]
    caplog.clear()
    forget()
    monkeypatch.setattr(declared, "text", None)  # nothing may ask PEFT again
    assert declared.settings_of("lora") == found
    assert caplog.records == []
    assert len([*another_version.iterdir()]) == 1


@pytest.mark.parametrize("held", [b"", b"\xff\xfe", b"{}", b"0" * 64 + b"\n{}"], ids=["empty", "no text", "{}", "sum"])
def test_a_damaged_table_is_made_again(another_version: Path, held: bytes) -> None:
    found = declared.settings_of("lora")
    (path,) = another_version.iterdir()
    whole = path.read_bytes()
    path.write_bytes(held or whole[: len(whole) // 2])
    forget()
    assert declared.settings_of("lora") == found
    assert path.read_bytes() == whole


def test_a_cache_that_cannot_be_written_to_is_done_without(another_version: Path) -> None:
    another_version.write_text("a file where the directory should be")
    assert declared.settings_of("lora")["r"].default == 8


def test_writers_at_the_same_time_leave_one_whole_table(another_version: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = {*pool.map(lambda _: declared._kept("9.9"), range(8))}
    (path,) = another_version.iterdir()
    assert found == {declared.text()} == {path.read_text().partition("\n")[2]}
    assert json.loads(found.pop())["settings"]


def test_an_enumeration_is_told_by_its_members() -> None:
    default = declared.settings_of("prompt_tuning")["prompt_tuning_init"].default
    assert isinstance(default, Enum)
    assert (str(default), default.value) == ("PromptTuningInit.RANDOM", "RANDOM")
