"""The public API: which names it has, that they cost nothing until they are used, and the page that uses them."""

from __future__ import annotations

import ast
import inspect
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import loradock
from loradock.registry import card
from loradock.registry.store import Store
from tests.support.adapters import log_adapter, make_version, write_adapter
from tests.support.registry.fake_hub import hub

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "how-to" / "python.md").read_text(encoding="utf-8")
FUNCTIONS = """check_adapter combine convert diff_versions evaluate fetch_version import_adapter load_data load_recipe
merge open_store parse_ref promote publish read_history register resolve rollback train verify_version"""
ERRORS = """BadInput Conflict DigestMismatch Drifted GateFailed HistoryCut HistoryDamaged LoradockError NotFound
NotServable Refused Taken Unreachable WrongBase"""
VALUES = """AliasRef Base Combined Converted Diagnosis Difference EvaluationOutcome Facts Finding History Manifest
Merged Move Published Recipe RecipeFile Rows Settings Store TrainingOutcome Version VersionRef"""
SCRIPT = """
import loradock

def best(names: list[str], store: loradock.Store) -> dict[str, loradock.Version]:
    return {name: loradock.resolve(name, store=store) for name in names}

outcome = loradock.train("recipe.yaml")
version = loradock.register(outcome.run_id, "bot", report=print)
try:
    move = loradock.promote(version.ref, reason="better", expect=1)
except loradock.Conflict as conflict:
    print(conflict.winner)
else:
    reveal_type(move)
with loradock.fetch_version("bot") as directory:
    reveal_type(directory)
reveal_type(loradock.combine(["bot/1", "bot/2"], "both", weights=[1, 0.5]).error)
loradock.promot("bot/1")
"""


def blocks(mark: str = "") -> list[str]:
    """The page's blocks of Python that have this mark above them."""
    found = re.findall(r"(?:<!-- (\w+) -->\n)?```python\n(.*?)```", PAGE, re.DOTALL)
    return [code for above, code in found if above == mark]


def run(codes: list[str]) -> None:
    names: dict[str, object] = {}
    for code in codes:
        exec(code, names)  # noqa: S102 - our own page


def test_these_names_are_public_and_no_others() -> None:
    assert loradock.__all__ == sorted(f"{FUNCTIONS} {ERRORS} {VALUES}".split())


def test_type_checkers_read_the_same_names_from_the_same_modules() -> None:
    tree = ast.parse(Path(loradock.__file__).read_text(encoding="utf-8"))
    read = {
        name.asname: (node.module, name.name)
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    assert read == loradock._HOMES


def test_mypy_knows_the_types_of_a_script(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "mypy", tmp_path / "script.py"]  # strict, and with what `make lint` has looked at
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    told = [line.partition(": ")[2] for line in done.stdout.splitlines() if "script.py:" in line]
    assert told == [
        'note: Revealed type is "loradock.registry.records.Move | None"',
        'note: Revealed type is "pathlib.Path"',
        'note: Revealed type is "float"',
        'error: Module has no attribute "promot"; maybe "promote"?  [attr-defined]',
    ]


def test_each_name_is_there_is_listed_and_says_what_it_is() -> None:
    assert set(loradock.__all__) <= set(dir(loradock))
    assert all(getattr(loradock, name).__doc__ for name in loradock.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = loradock.nonsense  # type: ignore[attr-defined]


def test_a_name_of_a_module_is_never_a_name_of_something_else() -> None:
    assert not {path.stem for path in Path(loradock.__file__).parent.iterdir()} & set(loradock.__all__)


@pytest.mark.parametrize("name", FUNCTIONS.replace("parse_ref", "").split())
def test_a_function_says_of_each_argument_what_it_is_and_what_is_returned_and_raised(name: str) -> None:
    function = getattr(loradock, name)
    text = inspect.getdoc(function) or ""
    arguments = re.findall(r"^    (\w+): ", text.partition("Args:\n")[2].partition("\n\n")[0], re.MULTILINE)
    assert arguments == list(inspect.signature(function).parameters)
    assert re.search(r"^(Returns|Yields):\n    \S", text, re.MULTILINE)
    assert {*re.findall(r"^    (\w+): ", text.partition("Raises:\n")[2], re.MULTILINE)} <= set(ERRORS.split())
    assert "Raises:\n" in text


def test_importing_loradock_imports_nothing_else() -> None:
    code = (
        "import sys; before = set(sys.modules); import loradock; "
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) - sys.stdlib_module_names == {"loradock"}


def test_the_page_calls_each_function() -> None:
    assert {name for name in FUNCTIONS.split() if not re.search(rf"loradock\.{name}\(", PAGE)} == set()


def test_the_page_moves_aliases_and_looks_at_versions(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(2):
        make_version(store, tmp_path / str(seed), seed=seed)
    run(blocks())
    assert capsys.readouterr().out.splitlines() == [
        "support-bot/2 tester UTC",
        "[('promote', 1, 'first'), ('promote', 2, 'calmer'), ('rollback', 1, 'too calm')]",
        "support-bot@production version 1 by tester",
        "[('support-bot', {'production': 1})]",
        "True",
        "['digest'] True",
        "['adapter_config.json', 'adapter_model.safetensors', 'manifest.json']",
        "support-bot@production 2",
    ]


def test_a_move_is_made_known_in_mlflow(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = make_version(store, tmp_path / "adapter")
    refreshed: list[str] = []
    monkeypatch.setattr(card, "refresh", lambda _, name, **__: refreshed.append(name))
    loradock.promote(version.ref, store=store)
    assert loradock.promote(str(version.ref), "canary", actor="ann") is not None
    assert loradock.promote(version.ref) is None
    assert loradock.read_history("support-bot").moves[1].actor == "ann"
    assert refreshed == ["support-bot"] * 3


def test_a_version_without_a_reference_is_warned_of(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = log_adapter(store, write_adapter(tmp_path / "adapter"))
    with caplog.at_level(logging.INFO, "loradock"):
        loradock.register(run_id, "bot", store=store)
    told = [(record.levelno, record.message) for record in caplog.records if record.name == "loradock"]
    assert [level for level, _ in told] == [logging.WARNING] * 2
    assert told[0][1].startswith("warning: bot/1 has no reference")
    assert told[1][1].startswith("  -> ")


def test_what_is_forced_needs_a_reason(store: Store) -> None:
    with pytest.raises(loradock.BadInput, match="force needs a reason"):
        loradock.merge("bot/1", force=True)
    with pytest.raises(loradock.BadInput, match="force needs a reason"):
        loradock.publish("bot/1", "org/bot", force=True)


def test_several_processes_are_sent_to_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(loradock.BadInput, match="trains in one process") as raised:
        loradock.train(tmp_path / "recipe.yaml")
    assert raised.value.hint == "loradock train RECIPE --processes N"


@pytest.mark.slow
def test_the_page_trains_and_makes_versions_of_versions(
    home: Path, shallow_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.support.trainer.training import written

    written(tmp_path, shallow_dir)
    (tmp_path / "tiny.yaml").rename(tmp_path / "recipe.yaml")
    held = [{"role": "user", "content": "And who?"}, {"role": "assistant", "content": "Arr, nobody!"}]
    (tmp_path / "heldout.jsonl").write_text(json.dumps({"messages": held}))
    write_adapter(tmp_path / "adapter", config={"base_model_name_or_path": "base"})
    (tmp_path / "base").symlink_to(shallow_dir)
    monkeypatch.chdir(tmp_path)
    run(blocks("slow"))
    assert capsys.readouterr().out.splitlines() == [
        "lora 20",
        "support-bot/1 16 True",
        "['loss'] None",
        "servable",
        "support-bot/2 4",
        "support-bot-merged/1 both-bots/1 support-bot-lora/1 4",
    ]


@pytest.mark.slow
def test_the_page_publishes(store: Store, tmp_path: Path) -> None:
    make_version(store, tmp_path / "adapter")
    with hub(tmp_path / "hub") as there:
        environ = os.environ | there.environment(tmp_path / "hf")  # its client reads them when it is imported
        command = [sys.executable, "-c", *blocks("hub")]
        done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "org/support-bot True True\n"
