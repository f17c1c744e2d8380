"""What was worked out of a base once is remembered, and the plan is the same as without."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from loradock.trainer import base, hardware, meta, plan, recipe_file, remembered
from loradock.trainer.recipe import Recipe
from loradock.trainer.remembered import Remembered

LLAMA = Path(__file__).parents[1] / "bases" / "Llama-3.1-8B"
ROW = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'


def recipe(directory: Path, method: dict[str, Any], **training: Any) -> Path:
    (directory / "rows.jsonl").write_text(ROW)
    whole = {"base": str(LLAMA), "data": "rows.jsonl", "method": method, "training": training}
    (directory / "tiny.yaml").write_text(json.dumps(whole))
    return directory / "tiny.yaml"


def cold_plan(path: Path, cache: Path, *options: str) -> tuple[dict[str, Any], list[str]]:
    """The plan in a fresh interpreter, and what of the heavy libraries it imported."""
    code = (
        "import sys; from loradock.cli import cli; cli.main(sys.argv[1:], standalone_mode=False); "
        "print(*sorted({'torch', 'peft', 'transformers', 'mlflow'} & set(sys.modules)), file=sys.stderr)"
    )
    environ = {"LORADOCK_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    words = [sys.executable, "-c", code, "plan", str(path), "--json", *options]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environ)
    found = json.loads(done.stdout)
    found["this_machine"].pop("available_gib")
    return found, done.stderr.splitlines()[-1].split()


def test_a_plan_that_was_made_before_is_the_same_and_imports_neither_torch_nor_peft_nor_transformers(
    tmp_path: Path,
) -> None:
    path = recipe(tmp_path, {"type": "dora", "r": 8, "target_modules": ["q_proj", "v_proj"]})
    first, heavy = cold_plan(path, tmp_path / "cache", "--gpu", "12")
    assert {"torch", "peft", "transformers"} <= set(heavy)
    assert first["changes"]
    assert cold_plan(path, tmp_path / "cache", "--gpu", "12") == (first, [])
    if not hardware.may_have_gpu():
        found, heavy = cold_plan(path, tmp_path / "cache")
        assert (found["memory_gib"], heavy) == (first["memory_gib"], [])


def test_another_name_data_seed_or_learning_rate_asks_nothing_new(tmp_path: Path) -> None:
    cache = tmp_path / "cache"

    def planned(path: Path) -> plan.Estimator:
        known = Remembered.of(LLAMA, cache)
        found = plan.Estimator(LLAMA, tmp_path, known)
        source = recipe_file.load(path)
        found.check(source)
        found.needed(source.recipe, cuda=True)
        known.save()
        return found

    assert "config" in vars(planned(recipe(tmp_path, {"r": 8})))
    assert "config" not in vars(planned(recipe(tmp_path, {"r": 8}, learning_rate=1e-3)))
    assert "config" in vars(planned(recipe(tmp_path, {"r": 4})))
    assert "config" in vars(planned(recipe(tmp_path, {"r": 8}, max_length=512)))


@pytest.mark.parametrize("name", ["lora", "qlora", "ia3", "full", "prompt_tuning"])
def test_what_is_remembered_is_what_is_worked_out(name: str, tmp_path: Path) -> None:
    given = Recipe.model_validate({"name": "x", "base": "b", "data": "x.jsonl", "method": name})
    worked_out = plan.Estimator(meta.config(LLAMA))
    known = Remembered.of(LLAMA, tmp_path)
    plan.Estimator(LLAMA, remembered=known).needed(given, cuda=True)
    known.save()
    again = plan.Estimator(tmp_path / "no such base", remembered=Remembered.of(LLAMA, tmp_path))
    assert again.needed(given, cuda=True) == worked_out.needed(given, cuda=True)
    assert again.counts(given) == worked_out.counts(given)
    assert again.sizes == worked_out.sizes


@pytest.mark.parametrize(
    "method",
    [
        {"type": "xlora", "adapters": {"a": "a"}},
        {"type": "prompt_tuning", "tokenizer_name_or_path": "x", "prompt_tuning_init": "TEXT"},
        {"type": "boft"},
    ],
    ids=lambda method: str(method["type"]),
)
def test_what_follows_from_other_files_or_from_the_gpu_does_not_last(method: dict[str, Any]) -> None:
    given = Recipe.model_validate({"name": "x", "base": "b", "data": "x.jsonl", "method": method})
    assert not plan._lasts(given.method)


def test_a_recipe_that_is_refused_is_refused_again(tmp_path: Path) -> None:
    path = recipe(tmp_path, {"target_modules": ["q_prej"]})
    for _ in range(2):
        known = Remembered.of(LLAMA, tmp_path / "cache")
        with pytest.raises(Exception, match="cannot be used"):
            plan.Estimator(LLAMA, tmp_path, known).check(recipe_file.load(path))
        known.save()


def test_another_configuration_library_or_line_of_code_is_asked_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")

    def asked() -> int:
        known = Remembered.of(tmp_path, tmp_path / "cache")
        asked: list[int] = []
        known.ask("how many", lambda: asked.append(1) or 7)  # type: ignore[func-returns-value]
        known.save()
        return len(asked)

    assert [asked(), asked()] == [1, 0]
    (tmp_path / "config.json").write_text("{ }")
    assert [asked(), asked()] == [1, 0]
    monkeypatch.setattr(remembered, "_LIBRARIES", ("torch", "transformers", "trl"))
    assert [asked(), asked()] == [1, 0]
    code = tmp_path / "code" / "trainer"
    code.mkdir(parents=True)
    (tmp_path / "code" / "registry").mkdir()
    (tmp_path / "code" / "registry" / "patterns.py").write_text("")
    monkeypatch.setattr(remembered, "__file__", str(code / "remembered.py"))
    assert [asked(), asked()] == [1, 0]
    (code / "count.py").write_text("# another line")
    assert [asked(), asked()] == [1, 0]


def test_two_writers_keep_what_both_found(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "x.json"
    one, other = Remembered(path), Remembered(path)
    one.ask("a", lambda: 1)
    other.ask("b", lambda: 2)
    other.ask("c", lambda: 3, lasting=False)
    one.save()
    other.save()
    known = Remembered(path)
    assert [known.ask(question, lambda: 0) for question in "abc"] == [1, 2, 0]
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"{}", b"half"], ids=["empty", "no text", "no sum", "half"])
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "x.json"
    for answer in (1, 2, 3):
        known = Remembered(path)
        assert known.ask("a", lambda answer=answer: answer) == (1 if answer == 1 else 2)
        known.save()
        if answer == 1:
            path.write_bytes(path.read_bytes()[:-3] if damage == b"half" else damage)


def test_a_cache_that_cannot_be_written_to_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    known = Remembered(tmp_path / "file" / "x.json")
    assert known.ask("a", lambda: 1) == 1
    known.save()


def test_the_newest_answers_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "_MOST", 2)
    known = Remembered(tmp_path / "x.json")
    for question in "abc":
        known.ask(question, lambda: 1)
    known.save()
    assert [Remembered(tmp_path / "x.json").ask(question, lambda: 0) for question in "abc"] == [0, 1, 1]


def test_the_machine_has_what_torch_says_it_has() -> None:
    assert hardware.bytes_per_weight() == base.best_dtype().itemsize
    assert hardware.may_have_gpu() or not torch.cuda.is_available()
