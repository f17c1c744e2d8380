from __future__ import annotations

import ast
import dataclasses
import importlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from pydantic import BaseModel, SecretStr

from loradock.cli import settings as verb
from loradock.registry import promotion, secret
from loradock.registry.errors import BadInput
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.serving.settings import ServingSettings
from tests.support import warm
from tests.support.adapters import make_version

ROOT = Path(__file__).parents[2]
MARK: Final = "hush-hush"


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Each secret in a file of its own, as an editor writes one."""
    for name in secret.VARIABLES:
        (tmp_path / name).write_text(f" {name}-{MARK}\r\n", encoding="utf-8")
    return {f"{name}_FILE": str(tmp_path / name) for name in secret.VARIABLES}


def test_every_variable_that_holds_a_secret_is_read_from_a_file_too(environ: dict[str, str]) -> None:
    known = {variable.variable for variable in verb.FOREIGN if variable.secret}
    for target in verb.OURS:
        known |= {name for name, field in verb.load(target).variables().items() if verb.is_secret(field)}
    assert set(secret.VARIABLES) == known | {"MLFLOW_TRACKING_URI"}
    secret.from_files(environ)
    assert environ == {name: f"{name}-{MARK}" for name in secret.VARIABLES}


def test_settings_read_files_and_so_do_the_libraries_that_read_the_environment(
    home: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> None:
    for name, path in environ.items():
        monkeypatch.setenv(name.removesuffix("_FILE"), "")  # which is then put back
        monkeypatch.setenv(name, path)
    found = ServingSettings().webhook_secret, Settings().api_key
    assert [each.get_secret_value().partition("-")[0] for each in found] == [
        "LORADOCK_SERVE_WEBHOOK_SECRET",
        "VLLM_API_KEY",
    ]
    assert Settings().tracking_uri == f"MLFLOW_TRACKING_URI-{MARK}"
    assert os.environ["HF_TOKEN"] == f"HF_TOKEN-{MARK}"
    assert MARK not in repr((Settings(), ServingSettings(), found))
    row = next(row for row in verb.ours(Settings, os.environ) if row.variable == "VLLM_API_KEY")
    assert row.value == "***"
    assert "VLLM_API_KEY_FILE" in row.meaning


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"one\ntwo", "more than one line"),
        (b"a\0b", "more than one line"),
        (b"\xff\xfe", "is no text"),
        (b"a" * 65537, "more than one line"),
    ],
)
def test_a_file_that_cannot_be_meant_is_told_without_a_word_of_it(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / MARK).write_bytes(content)
    environ = {"HF_TOKEN_FILE": str(tmp_path / MARK), "VLLM_API_KEY_FILE": str(ROOT / "LICENSE")}
    before = dict(environ)
    with pytest.raises(BadInput, match=rf"the file that HF_TOKEN_FILE names .*{said}") as raised:
        secret.from_files({"HF_TOKEN_FILE": str(tmp_path / MARK)})
    assert MARK not in raised.value.text, "it may be the secret, in the wrong variable"
    with pytest.raises(BadInput):
        secret.from_files(environ)
    assert environ == before, "all of them, or none"


def test_a_variable_and_its_file_are_not_both_set(environ: dict[str, str]) -> None:
    with pytest.raises(BadInput, match="HF_TOKEN and HF_TOKEN_FILE are both set"):
        secret.from_files(environ | {"HF_TOKEN": "x"})


def loradock(*words: str, **environment: str) -> str:
    done = warm.run([warm.LORADOCK, *words], kind="registry", env=os.environ | environment, timeout=120)
    return done.stdout + done.stderr


def test_a_command_takes_its_key_from_the_file(home: Path, tmp_path: Path) -> None:
    missing = loradock("status", "--replica", "http://127.0.0.1:9", VLLM_API_KEY_FILE=str(tmp_path / "none"))
    assert "the file that VLLM_API_KEY_FILE names cannot be read" in missing
    (tmp_path / "key").write_text(MARK)
    asked = loradock("--debug", "status", "--replica", "http://127.0.0.1:9", VLLM_API_KEY_FILE=str(tmp_path / "key"))
    assert "no replica answers" in asked
    assert MARK not in asked


def test_a_traceback_shows_no_value_of_a_setting(home: Path) -> None:
    shown = loradock("--debug", "list", LORADOCK_KEEP=MARK)
    assert "LORADOCK_KEEP" in shown
    assert "Traceback" in shown
    assert MARK not in shown


def test_no_secret_is_in_what_mlflow_keeps(
    home: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs, versions, cards and histories, in the database and in files."""
    for name in set(secret.VARIABLES) - {"MLFLOW_TRACKING_URI"}:
        monkeypatch.setenv(name, MARK)
    version = make_version(store, tmp_path / "adapter")
    promotion.promote(Store(Settings()), version.ref, "production", actor="tester")
    paths = [path for path in home.rglob("*") if path.is_file()]
    assert len(paths) > 3
    assert not [path for path in paths if MARK.encode() in path.read_bytes()]


NAMES: Final = re.compile(r"(?i)(^|_)(key|secret|password|token|credentials?|bearer)s?$")
TEXTS: Final = re.compile(r"\b(str|bytes|Any|object)\b")
OTHERS: Final = {
    ("registry/records.py", "Entry", "key"),  # a public one
    ("registry/store/client.py", "Metric", "key"),
    ("registry/store/client.py", "Page", "token"),  # where a listing goes on
    ("serving/keyfile.py", "KeyFile", "keys"),  # by name, with the hashes of their secrets
}
"""Fields that are called like a secret and hold none."""


def classes() -> Iterator[tuple[str, ast.ClassDef]]:
    """Every class, and its file."""
    for room in ("loradock", "registry", "trainer", "serving"):
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    yield path.relative_to(ROOT).as_posix(), node


def fields() -> Iterator[tuple[str, str, str, str]]:
    """Every annotated field of every class: file, class, name, annotation."""
    for file, node in classes():
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                yield file, node.name, item.target.id, ast.unparse(item.annotation)


def taken() -> Iterator[tuple[str, str, str, str]]:
    """Everything that a class is made of, where it is no dataclass and no model: file, class, name, annotation."""
    for file, node in classes():
        for item in node.body:
            if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                for each in (*item.args.args, *item.args.kwonlyargs):
                    yield file, node.name, each.arg, ast.unparse(each.annotation) if each.annotation else ""


def test_every_value_that_is_called_like_a_secret_is_covered() -> None:
    bare = {
        (file, kind, name)
        for file, kind, name, annotation in (*fields(), *taken())
        if NAMES.search(name) and TEXTS.search(annotation)
    }
    assert bare == OTHERS


COVERED: Final = sorted({(file, kind) for file, kind, _, annotation in fields() if "SecretStr" in annotation})


def built(kind: type[Any]) -> Any:
    """An instance whose secrets hold the mark, and whose other fields hold nothing."""
    names = kind.model_fields if issubclass(kind, BaseModel) else [field.name for field in dataclasses.fields(kind)]
    covered = {name for _, owner, name, annotation in fields() if owner == kind.__name__ and "SecretStr" in annotation}
    values = {name: SecretStr(MARK) if name in covered else None for name in names}
    if issubclass(kind, BaseModel):
        return kind.model_construct(**values)
    made = object.__new__(kind)
    for name, value in values.items():
        object.__setattr__(made, name, value)
    return made


@pytest.mark.parametrize(("file", "kind"), COVERED)
def test_what_holds_a_secret_shows_none(file: str, kind: str) -> None:
    made = built(getattr(importlib.import_module(f"loradock.{file.removesuffix('.py').replace('/', '.')}"), kind))
    for shown in (repr(made), str(made), f"{made}", repr(vars(made) if hasattr(made, "__dict__") else made)):
        assert MARK not in shown
        assert "**********" in shown


def test_addresses_that_may_hold_a_password_are_in_no_repr(home: Path) -> None:
    made = Settings(tracking_uri=f"postgresql://ann:{MARK}@db/mlflow", replicas=f"http://ann:{MARK}@replica:8000")
    assert MARK not in repr(made) + str(made)
