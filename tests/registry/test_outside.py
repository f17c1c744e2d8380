from __future__ import annotations

import ast
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loradock.registry import artifact, check, foreign, pickled
from loradock.registry.base import identify
from loradock.registry.check import read_shapes
from loradock.registry.errors import BadInput, LoradockError
from loradock.registry.outside import INDEX, QUOTED, inside, quoted, weight_map
from loradock.serving import refusals
from loradock.trainer.weights.shards import Shards
from tests.support.adapters import write_adapter

ROOT = Path(__file__).parents[2]
ROOMS = ("registry", "trainer", "serving", "stack")


@given(st.one_of(st.text(), st.text("./\\~a\0").map(str), st.none(), st.integers()))
@example("/")
@example("..")
@example("a/../../x")
@example("a//b")
@example("./a")
@example("a/")
@example("\ud800")
@example("a" * 256)
def test_a_name_from_outside_is_below_its_directory_or_refused(name: object) -> None:
    with suppress(BadInput):
        assert os.path.normpath(inside(Path("/some/where"), name, what="it")) == f"/some/where/{name}"


def test_a_name_without_depth_has_one_part() -> None:
    assert inside(Path("/here"), "a/b.json", what="it") == Path("/here/a/b.json")
    with pytest.raises(BadInput, match="outside"):
        inside(Path("/here"), "a/b.json", what="it", deep=False)


def indexed(directory: Path, content: str) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / INDEX).write_text(content)
    return directory


def loftq(directory: Path) -> object:
    from loradock.trainer.loftq import _Weights

    return _Weights(directory)


def downloaded(directory: Path) -> object:
    from loradock.registry.hub import _has_weights

    return _has_weights(directory)


def rewritten(directory: Path) -> object:
    (directory / "out").mkdir()
    return Shards(directory).rewrite(directory / "out", lambda name: None, "float32", {})


READERS: Final = (weight_map, read_shapes, loftq, downloaded, rewritten)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    "content",
    [
        *(
            json.dumps({"weight_map": {"a": name}})
            for name in ("../x.safetensors", "/x.safetensors", "b/x.safetensors")
        ),
        *(json.dumps({"weight_map": {"a": name}}) for name in ("config.json", 7, None, ["x"], {})),
        *("[]", "7", "{", '{"weight_map": 7}', "[" * 100_000),
    ],
)
def test_an_index_names_files_beside_it_for_all_who_read_it(
    tmp_path: Path, read: Callable[[Path], object], content: str
) -> None:
    write_adapter(tmp_path / "adapter")
    (tmp_path / "adapter" / artifact.WEIGHTS).rename(tmp_path / "x.safetensors")
    directory = indexed(tmp_path / "base", content)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    with pytest.raises(BadInput, match="index"):
        read(directory)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")} == before


def test_a_listing_of_mlflows_names_files_below_the_adapter(tmp_path: Path) -> None:
    from mlflow.entities import FileInfo

    from loradock.registry.store.adapters import _refuse_outside

    class Files:
        """An artifact repository with such a listing."""

        def __init__(self, **listings: list[FileInfo]) -> None:
            self.listings = listings

        def list_artifacts(self, path: str) -> list[FileInfo]:
            return self.listings[path or "root"]

    whole = Files(root=[FileInfo("a", True, None), FileInfo("b.json", False, 1)], a=[FileInfo("a/c", False, 1)])
    _refuse_outside(whole, tmp_path, what="support-bot/1")
    for name in ("../c", "a/../../c", "/c"):
        odd = Files(root=[FileInfo("a", True, None)], a=[FileInfo(name, False, 1)])
        with pytest.raises(BadInput, match=r"listing of support-bot/1 names a file outside"):
            _refuse_outside(odd, tmp_path, what="support-bot/1")


OURS: Final = {
    # The user's own word, who may mean any place.
    "registry/base.py": {
        "(relative_to or Path.cwd()) / Path(text).expanduser()",
        "relative_to / Path(text).expanduser()",
    },
    "trainer/dialects/axolotl_data.py": {"Path(path) / name"},
    "trainer/dialects/llamafactory_data.py": {"Path(str(directory)) / str(entry.get('file_name', name))"},
    "trainer/dialects/places.py": {"directory / given"},
    "trainer/methods.py": {"(directory or Path()) / path"},
    "trainer/recipe_file.py": {"directory / Path(path).expanduser()"},
    "trainer/sources.py": {"directory / Path(text).expanduser()"},
    "registry/store/connection.py": {"settings.artifacts / name"},
    # What the kernel says of this process, whose files are read as numbers.
    "registry/machine.py": {
        "group / current",
        "quota / period",
        "root / 'sys/fs/cgroup' / controller",
        "top / path.lstrip('/')",
    },
    # One that an expression that holds no / matched: a digest, a package and its version.
    "trainer/declared.py": {"Settings().cache.expanduser() / f'peft-{version}-{reader}.json'"},
    "trainer/remembered.py": {"cache.expanduser() / 'figures' / f'{known.hexdigest()[:32]}.json'"},
    "registry/gguf.py": {
        "cache / f'{package}-{version}'",
        "scratch / 'converted' / _QUANTISATION.sub('', source.stem)",
    },
    "serving/cache.py": {
        *("self._root / digest", "self._root / _USED / digest", "self._root / _USED / path.name", "locks / digest[:2]"),
        *("scratch.with_name(f'{scratch.name}-damaged')", "path.with_name(f'{_FETCHING}{path.name}-dropped')"),
    },
    "serving/references.py": {"self._root / f'{digest}-{self._base.weights_digest[:12]}.json'"},
    # A name that stands in our code, or that this machine's own directory lists.
    "registry/heads.py": {"settings.root / f'heads-{settings.which}.json'"},
    "registry/layouts.py": {"directory / name"},
    "registry/outside.py": {"directory / name"},
    "registry/publish.py": {"directory / name"},
    "registry/text.py": {"directory / name"},
    "serving/batch/journal.py": {
        "self._output.with_name(f'.{self._output.name}.sorted')",
        "output.with_name(f'{output.name}.partial')",
    },
    "serving/batch/manifest.py": {
        "output.with_name(f'{output.name}.manifest.json')",
        "path.with_name(f'.{path.name}')",
    },
    "serving/desired.py": {"settings.root / f'promoted-{settings.which}.json'"},
    "serving/keyfile.py": {"target.with_name(f'.{target.name}.lock')"},
    "serving/metrics.py": {"Path(folder, name)"},
    "serving/up.py": {"logs / f'mlflow-{port}.log'", "logs / f'serve-{wish.port}.log'"},
    "stack/roles.py": {"directory / name", "directory / user"},
    "trainer/scattered.py": {
        *("work.checkpoints / checkpoint.name", "Path(directory) / work.run_id"),
        *("mine / name", "checkpoint / mine", "checkpoint / name"),
    },
    "trainer/weights/convert.py": {"parent.directory / file", "out / file"},
    "trainer/weights/shards.py": {"self.directory / self.places[name]", "out / path.name"},
    "trainer/weights/sweep.py": {"directory / str(number)"},
    "trainer/workdir.py": {"self.path / name", "checkpoint.parent / Path(best).name"},
}
"""Where a path is joined with what no literal is, and `inside` need not look: whose name it is."""
NUMBERS: Final = frozenset({
    *("b / np.maximum(halves, np.finfo(float).tiny)", "b / np.maximum(halves, np.finfo(float).tiny) / scale"),
    *("rows / rank", "scale / common", "theirs / ours", "_dot(meant, measured) / power"),
    *("self.inner / norms[0] / norms[1]", "self.inner / norms[0]", "self.trainable / self.total", "given / every"),
    *("given / total", "total / weight", "value / item.weight", "after / before", "sizes[:rank] / scale"),
    *("sums[0] / sums[1]", "config.orth_reg_weight * _orthogonality(self.model) / share", "apart / whole"),
    *("layer.get_delta_weight(_MIXED).double() / layer.scaling[_MIXED]", "change @ vectors / safe", "left / whole"),
    *("self.right[:kept] / scale[:, None]", "largest / spread", "kl / positions", "self.bad / self.number"),
})  # fmt: skip
"""Divisions that do not look like such."""


COUNTS: Final = ("sum", "len", "float", "max", "fsum", "sqrt", "timedelta", "std", "norm", "from_bytes")


def joins(tree: ast.AST) -> Iterator[ast.expr]:
    """Every join of a path with something that is no literal, and no constant's name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            name = getattr(node.right, "id", getattr(node.right, "attr", "")).lstrip("_")
            if not isinstance(node.right, ast.Constant) and not name.isupper() and not is_number(node):
                yield node
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            several = len(node.args) > 1 or any(isinstance(each, ast.Starred) for each in node.args)
            own = called in ("Path", "PurePosixPath", "os.path.join") and several
            other = called.endswith((".joinpath", ".with_name")) and not isinstance(node.args[0], ast.Constant)
            if own or other:
                yield node


def is_number(node: ast.expr) -> bool:
    """Whether this is a number by its looks, and so no path or name."""
    match node:
        case ast.Constant():
            return isinstance(node.value, int | float)
        case ast.BinOp(op=ast.Sub() | ast.Pow()):
            return True
        case ast.BinOp():
            return is_number(node.left) or is_number(node.right)
        case ast.IfExp():
            return is_number(node.body)
        case ast.Call():
            return ast.unparse(node.func).rpartition(".")[2] in COUNTS
    return False


def test_every_join_with_a_name_from_outside_goes_through_one_function() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), ast.unparse(node))
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        for node in joins(ast.parse(path.read_text(encoding="utf-8")))
    }
    known = {(file, text) for file, texts in OURS.items() for text in texts}
    assert {(file, text) for file, text in found if text not in NUMBERS} == known


READ_FILES: Final = (
    *("registry/check", "registry/artifact.py", "registry/foreign.py", "registry/gguf.py", "registry/outside.py"),
    *("registry/pickled.py", "registry/text.py", "registry/unread.py", "trainer/weights/shards.py", "trainer/loftq.py"),
)
"""What reads adapters' and bases' files."""


def test_what_reads_the_files_of_others_quotes_them_by_one_helper() -> None:
    paths = [path for name in READ_FILES for path in [ROOT / name, *(ROOT / name).rglob("*.py")] if path.is_file()]
    assert len(paths) > 10
    bare = [
        (path.relative_to(ROOT).as_posix(), ast.unparse(node))
        for path in paths
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FormattedValue) and node.conversion == ord("r")
    ]
    assert bare == []


def with_config(directory: Path, **changes: Any) -> Path:
    path = write_adapter(directory) / artifact.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return directory


LONG: Final = "Q" * 5000


def pickle_of(directory: Path) -> object:
    import torch

    torch.save({LONG: 1}, directory / "weights.bin")
    return pickled.convert(directory / "weights.bin", directory / "out.safetensors")


def named_header(directory: Path) -> object:
    import struct

    text = json.dumps({LONG: {"dtype": LONG, "shape": [1] * 60, "data_offsets": [0, 8]}}).encode()
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    return artifact.read_header(directory / "model.safetensors")


def cleaned(directory: Path) -> object:
    return foreign.cleaned({"peft_type": "LORA", **{f"{LONG}{at}": LONG for at in range(9)}})


def manifest(directory: Path) -> object:
    return artifact.parse_manifest(
        json.dumps({"files": [{"path": f"../{LONG}", "size": 1, "sha256": "0" * 64}]}), what="it"
    )


def index(directory: Path) -> object:
    return weight_map(indexed(directory / "base", json.dumps({"weight_map": {"a": f"../{LONG}"}})))


@pytest.mark.parametrize("read", [pickle_of, named_header, cleaned, manifest, index])
def test_an_error_quotes_no_more_than_a_little_of_a_file(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(LoradockError) as raised:
        read(tmp_path)
    assert "Q" * (QUOTED + 1) not in raised.value.text
    assert len(raised.value.text) < 4 * QUOTED


@pytest.mark.parametrize(
    "key",
    [
        *("task_type", "peft_type", "r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "bias"),
        *("modules_to_save", "init_lora_weights", "unheard_of"),
    ],
)
@pytest.mark.parametrize("value", [LONG, [LONG] * 50, {LONG: LONG}], ids=["text", "list", "mapping"])
def test_a_finding_quotes_no_more_than_a_little_of_a_file(tmp_path: Path, key: str, value: object) -> None:
    for finding in check.judged(with_config(tmp_path / "adapter", **{key: value})).findings:
        assert "Q" * (QUOTED + 1) not in finding.text


def test_an_answer_quotes_no_more_than_a_little_of_the_model_s_name() -> None:
    for refused in (refusals.no_such_model(LONG), refusals.may_not_call(LONG, caller="a")):
        assert f"{'Q' * QUOTED}...`" in str(refused)


def test_what_is_quoted_is_cut_whatever_it_is() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (LONG, "\0" * 5000, [LONG] * 5000, {LONG: LONG}, deep, 10**4000, b"Q" * 5000):
        assert len(quoted(value)) <= QUOTED + 3
        assert quoted(value).isprintable()
    assert quoted("a'b") == repr("a'b")


def test_a_base_whose_header_is_nested_deep_is_refused_and_not_more(tmp_path: Path) -> None:
    import struct

    text = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(BadInput, match="damaged safetensors header"):
        identify(tmp_path, base_id="a")
