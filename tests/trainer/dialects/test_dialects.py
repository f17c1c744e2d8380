"""Another trainer's recipe is told apart by its keys, and no key of it is dropped in silence."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from loradock.cli.translate import translate
from loradock.registry.errors import BadInput, NotFound
from loradock.trainer import data, dialects, recipe_file
from loradock.trainer.dialects import axolotl_keys, llamafactory_keys
from loradock.trainer.dialects.rules import Kind, Rule

FIXTURES = Path(__file__).parent
AXOLOTL: Mapping[str, Any] = {
    "base_model": "org/base",
    "datasets": [{"path": "rows.jsonl", "type": "alpaca"}],
    "adapter": "lora",
    "lora_r": 8,
    "lora_alpha": 16,
    "lora_target_modules": ["q_proj"],
    "learning_rate": 0.0002,
    "val_set_size": 0.1,
}
LLAMA_FACTORY: Mapping[str, Any] = {
    "model_name_or_path": "org/base",
    "stage": "sft",
    "dataset": "identity",
    "template": "llama3",
    "val_size": 0.1,
}
OURS = "base: org/base\ndata: rows.jsonl\n"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with rows in both trainers' ways."""
    monkeypatch.chdir(tmp_path)
    rows = '{"instruction": "Greet.", "output": "Ahoy!"}\n' * 40
    (tmp_path / "rows.jsonl").write_text(rows)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "identity.jsonl").write_text(rows)
    (tmp_path / "data" / "dataset_info.json").write_text('{"identity": {"file_name": "identity.jsonl"}}')
    return tmp_path


def translated(value: Mapping[str, Any], path: Path = Path("other.yml")) -> dialects.Translation:
    found = dialects.translate(yaml.safe_dump(dict(value), sort_keys=False), path)
    assert found is not None
    return found


def said(value: Mapping[str, Any]) -> tuple[str, ...]:
    """All that is told of a recipe: its faults, or its warnings with what it becomes."""
    try:
        found = translated(value)
    except BadInput as error:
        return error.problems
    return (*found.warnings, body(found.recipe_text))


def body(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))


@pytest.mark.parametrize(
    ("text", "dialect"),
    [
        (yaml.safe_dump(dict(AXOLOTL)), dialects.Dialect.AXOLOTL),
        (yaml.safe_dump(dict(LLAMA_FACTORY)), dialects.Dialect.LLAMA_FACTORY),
        ("base_model: x\nrl: dpo\n", dialects.Dialect.AXOLOTL),
        (OURS, None),
        ("base_model: x\n", None),
        ("model_name_or_path: x\nlora_r: 8\n", None),
        ("compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\n", None),
        ("a: [\n", None),
        ("- base_model\n- datasets\n", None),
        ("", None),
    ],
)
def test_a_dialect_is_told_by_keys_that_only_it_has(text: str, dialect: dialects.Dialect | None) -> None:
    assert dialects.detect(text) is dialect
    if dialect is None:
        assert dialects.translate(text, Path("other.yml")) is None


def values(rule: Rule) -> tuple[Any, ...]:
    """What a key can be given that asks for something, in good and bad shapes."""
    return tuple(value for value in (True, 7, "x", ["x"], {"a": 1}) if not rule.is_off(value))


def silent(
    start: Mapping[str, Any], table: Mapping[str, Rule], put: Callable[[dict[str, Any]], Mapping[str, Any]]
) -> list[Any]:
    """The keys of a table that neither change what becomes of `start` nor are named, `put` adding keys to it."""
    untouched = body(translated(start).recipe_text)

    def named(key: str, text: str) -> bool:
        return re.search(rf"(?<!\w){key}(?!\w)", text) is not None

    def told(key: str, texts: tuple[str, ...]) -> bool:
        return any(named(key, text) or (text.startswith("name:") and text != untouched) for text in texts)

    found: list[Any] = []
    for kind in (Kind.IDLE, Kind.REFUSED):  # one path for all of these: they are told together
        given = {key: values(rule)[0] for key, rule in table.items() if rule.kind is kind}
        texts = said(put(given))
        found += [key for key in given if not any(named(key, text) for text in texts)]
    return found + [
        (key, value)
        for key, rule in table.items()
        if rule.kind in (Kind.TO, Kind.WORKED)
        for value in values(rule)
        if not told(key, said(put({key: value})))
    ]


@pytest.mark.parametrize(
    ("start", "table"),
    [(AXOLOTL, axolotl_keys.KEYS), (LLAMA_FACTORY, llamafactory_keys.KEYS)],
    ids=["axolotl", "llamafactory"],
)
def test_no_key_is_dropped_in_silence(start: Mapping[str, Any], table: Mapping[str, Rule]) -> None:
    found = silent(start, table, lambda keys: {**start, **keys})
    assert found == [("do_train", True)] * ("do_train" in table)


@pytest.mark.parametrize("kind", ["alpaca", "chat_template", "completion"])
def test_no_key_of_a_data_set_is_dropped_in_silence(kind: str) -> None:
    rows = {"path": "rows.jsonl", "type": kind}
    start = {**AXOLOTL, "datasets": [rows]}
    assert silent(start, axolotl_keys.DATASET, lambda keys: {**start, "datasets": [{**rows, **keys}]}) == []


@pytest.mark.parametrize(
    ("section", "table", "more"),
    [
        ("special_tokens", axolotl_keys.TOKENS, {}),
        ("bnb_config_kwargs", axolotl_keys.BNB, {"adapter": "qlora", "load_in_4bit": True}),
    ],
)
def test_no_nested_key_is_dropped_in_silence(section: str, table: Mapping[str, Rule], more: dict[str, Any]) -> None:
    start = {**AXOLOTL, **more}
    assert silent(start, table, lambda keys: {**start, section: keys}) == []


def test_what_is_switched_off_says_nothing() -> None:
    off = {key: None for key, rule in axolotl_keys.KEYS.items() if rule.kind in (Kind.IDLE, Kind.REFUSED)}
    assert translated({**AXOLOTL, **off}).warnings == translated(AXOLOTL).warnings
    off = dict.fromkeys(off, False)
    assert translated({**AXOLOTL, **off}).warnings == translated(AXOLOTL).warnings


def test_every_key_of_axolotl_s_examples_and_schemas_has_a_rule() -> None:
    known = names("axolotl-keys.txt")
    tables = {
        "datasets": axolotl_keys.DATASET,
        "special_tokens": axolotl_keys.TOKENS,
        "bnb_config_kwargs": axolotl_keys.BNB,
    }
    for section, keys in known.items():
        assert not keys - set(tables.get(section, axolotl_keys.KEYS)), section


def test_every_key_of_llama_factory_s_examples_and_arguments_has_a_rule() -> None:
    from transformers import Seq2SeqTrainingArguments

    known = names("llamafactory-keys.txt")
    known["transformers"] = set(Seq2SeqTrainingArguments.__dataclass_fields__)
    for section, keys in known.items():
        table = llamafactory_keys.INFO if section == "dataset_info" else llamafactory_keys.KEYS
        assert not keys - set(table), section


def names(file: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    section = ""
    for line in (FIXTURES / file).read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            found.setdefault(section, set()).add(line)
    return found


def test_the_docs_tell_of_every_key_what_becomes_of_it() -> None:
    rows = [
        line for line in (FIXTURES.parents[2] / "docs" / "dialects.md").read_text().splitlines() if line[:3] == "| `"
    ]
    for table in (
        axolotl_keys.KEYS,
        axolotl_keys.DATASET,
        axolotl_keys.TOKENS,
        axolotl_keys.BNB,
        llamafactory_keys.KEYS,
        llamafactory_keys.INFO,
    ):
        for key, rule in table.items():
            assert any(f"`{key}`" in row and rule.said in row for row in rows), key


def test_rows_are_read_as_the_other_trainer_means_them(home: Path) -> None:
    (home / "talk.jsonl").write_text(
        '{"turns": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Ahoy!"}], "source": "ship"}\n' * 2
    )
    mapped = {"role": "from", "content": "value"}
    talk = {
        "path": "talk.jsonl",
        "type": "chat_template",
        "field_messages": "turns",
        "message_property_mappings": mapped,
    }
    found = translated({**AXOLOTL, "datasets": [talk]})
    source = recipe_file.parse(found.recipe_text, home / "recipe.yaml")
    rows = data.load(source.recipe.data, source.directory)
    (example,) = rows.rows[0].examples()
    assert example.plain() == {
        "prompt": [{"role": "user", "content": "Hello"}],
        "completion": [{"role": "assistant", "content": "Ahoy!"}],
    }


def test_defaults_that_are_written_out_are_not_ours_and_values_are_the_trainers() -> None:
    from transformers import Seq2SeqTrainingArguments

    ours = recipe_file.parse("base: org/base\ndata: rows.jsonl\n", Path("recipe.yaml")).recipe.model_dump()
    for table in (axolotl_keys.DEFAULTS, llamafactory_keys.DEFAULTS):
        for key, value in table.items():
            section, _, name = key.partition(".")
            assert ours[section][name] != value or key == "training.num_train_epochs", key
    fields = Seq2SeqTrainingArguments.__dataclass_fields__
    for key, value in llamafactory_keys.DEFAULTS.items():
        section, _, name = key.partition(".")
        if section == "training" and name != "max_length":
            assert fields[name].default == value, key


def test_a_value_that_our_recipe_refuses_is_told_where_the_other_gives_it() -> None:
    with pytest.raises(BadInput) as raised:
        translated({**AXOLOTL, "optimizer": "muon", "num_epochs": -1, "lora_r": 0})
    found = raised.value.problems
    assert len(found) == 3
    assert found[0].startswith("other.yml:6: lora_r: should be at least 1")
    assert found[1].startswith("other.yml:12: optimizer: should be 'adamw_torch'")
    assert found[2] == "other.yml:13: num_epochs: should be greater than 0, not -1"


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(BadInput) as raised:
        translated({**AXOLOTL, "micro_bach_size": 2})
    assert raised.value.problems == (
        "other.yml:12: micro_bach_size: is no key of Axolotl that is known; did you mean micro_batch_size?",
    )


def test_a_key_given_twice_is_a_fault() -> None:
    with pytest.raises(BadInput, match="cannot be honoured") as raised:
        dialects.translate(yaml.safe_dump(dict(AXOLOTL)) + "lora_r: 9\n", Path("other.yml"))
    assert any("lora_r: is given twice" in problem for problem in raised.value.problems)


@pytest.mark.parametrize(("stem", "name"), [("Llama 3.1_QLoRA", "llama-3.1_qlora"), ("...", "translated")])
def test_the_run_is_called_after_the_file(stem: str, name: str) -> None:
    assert yaml.safe_load(translated(AXOLOTL, Path(f"{stem}.yml")).recipe_text)["name"] == name


def test_paths_stay_right_wherever_the_recipe_is_written(home: Path) -> None:
    (home / "recipes").mkdir()
    (home / "recipes" / "beside.jsonl").write_text("{}\n")
    (home / "base").mkdir()
    sets = [{"path": "rows.jsonl", "type": "alpaca"}, {"path": "beside.jsonl", "type": "alpaca"}]
    text = yaml.safe_dump({**AXOLOTL, "base_model": "./base", "datasets": sets})
    source = home / "recipes" / "other.yml"
    for directory, paths in (
        (None, ["../rows.jsonl", "beside.jsonl"]),
        (home, ["rows.jsonl", "recipes/beside.jsonl"]),
        (home / "a" / "b", ["../../rows.jsonl", "../../recipes/beside.jsonl"]),
    ):
        found = dialects.translate(text, source, directory=directory)
        assert found
        assert yaml.safe_load(found.recipe_text)["data"]["path"] == paths
        place = (directory or source.parent) / "recipe.yaml"
        place.parent.mkdir(parents=True, exist_ok=True)
        assert recipe_file.parse(found.recipe_text, place).recipe.base == os.path.relpath(home / "base", place.parent)
    absolute = dialects.translate(text, source, absolute=True)
    assert absolute
    assert yaml.safe_load(absolute.recipe_text)["data"]["path"] == [
        str(home / "rows.jsonl"),
        str(source.parent / "beside.jsonl"),
    ]


def test_a_path_that_was_given_whole_stays_as_it_was(home: Path) -> None:
    (home / "base").mkdir()
    found = translated({**AXOLOTL, "base_model": str(home / "base")}, home / "recipes" / "other.yml")
    assert yaml.safe_load(found.recipe_text)["base"] == str(home / "base")


def written(home: Path) -> Path:
    path = home / "other.yml"
    path.write_text(yaml.safe_dump(dict(AXOLOTL)))
    return path


def test_translate_prints_the_recipe_and_says_the_warnings(home: Path) -> None:
    done = CliRunner().invoke(translate, [str(written(home))], catch_exceptions=False)
    assert recipe_file.parse(done.stdout, Path("/elsewhere/recipe.yaml")).recipe.method.type == "lora"
    assert "other.yml:" in done.stderr
    assert "empty lines" in done.stderr


def test_translate_writes_a_file_whole_and_not_over_another(home: Path) -> None:
    source, output = written(home), home / "recipe.yaml"
    run = CliRunner()
    run.invoke(translate, [str(source), "--output", str(output)], catch_exceptions=False)
    assert recipe_file.load(output).recipe.data.path == ("rows.jsonl",)
    assert output.stat().st_mode & 0o777 == source.stat().st_mode & 0o777
    output.write_text("mine")
    with pytest.raises(BadInput, match="is there already"):
        run.invoke(translate, [str(source), "--output", str(output)], catch_exceptions=False)
    assert output.read_text() == "mine"
    run.invoke(translate, [str(source), "--output", str(output), "--overwrite"], catch_exceptions=False)
    assert recipe_file.load(output).recipe.base == "org/base"
    assert sorted(path.name for path in home.iterdir()) == ["data", "other.yml", "recipe.yaml", "rows.jsonl"]


def test_translate_tells_what_it_cannot_take(home: Path) -> None:
    run = CliRunner()
    ours = home / "ours.yaml"
    ours.write_text(OURS)
    with pytest.raises(BadInput, match="is no recipe of Axolotl or LLaMA-Factory"):
        run.invoke(translate, [str(ours)], catch_exceptions=False)
    with pytest.raises(NotFound):
        run.invoke(translate, [str(home / "nowhere.yml")], catch_exceptions=False)
    with pytest.raises(BadInput, match="cannot be written"):
        run.invoke(translate, [str(written(home)), "--output", str(home / "no" / "x.yaml")], catch_exceptions=False)
    ours.write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="cannot be used"):
        run.invoke(translate, [str(ours)], catch_exceptions=False)


def test_the_verb_imports_nothing_heavy() -> None:
    heavy = {"torch", "peft", "transformers", "datasets"}
    code = f"import sys, loradock.cli.translate; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
