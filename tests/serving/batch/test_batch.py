"""A file of prompts, answered: real files, a real registry and base, real kills; the engine alone is a stand-in."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from loradock.cli.generate import generate
from loradock.registry import promotion
from loradock.registry.base import LocalBase
from loradock.registry.errors import BadInput, DigestMismatch, LoradockError, NotServable, Unreachable
from loradock.registry.records import Version
from loradock.registry.reference import Probe, Reference
from loradock.registry.refs import VersionRef
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.serving.batch import Done, Job, Sampling, manifest, offline, rows, run
from loradock.serving.batch.answering import Outcome, Unanswerable
from loradock.serving.batch.journal import Answer, Usage, partial_for
from loradock.serving.batch.rows import Row
from tests.support.adapters import SMOL, make_version
from tests.support.chance import SEED
from tests.support.shell import processes

ROOT = Path(__file__).parents[3]
ADAPTERS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("bot", {}),
    ("bot", {"scale": 2.0}),
    ("cat", {"rank": 8}),
    ("dog", {}),
    ("eel", {}),
    ("foreign", {"base": SMOL}),
    ("dora", {"config": {"use_dora": True}}),
)


class FakeEngine:
    """Says who was asked what, in an order of its own; holds its caller to what vLLM needs."""

    def __init__(
        self,
        slots: int,
        *,
        pause: float = 0,
        mark: str = "",
        refused: str = "",
        dies_after: int = -1,
        hangs_after: int = -1,
    ) -> None:
        self.slots, self.window, self.answers = slots, 8, 0
        self.pause, self.mark, self.refused = pause, mark, refused
        self.dies_after, self.hangs_after = dies_after, hangs_after
        self.loaded: dict[VersionRef, Reference | None] = {}
        self.inside: dict[str, tuple[Row, VersionRef | None, Mapping[str, Any]]] = {}
        self.started: list[int] = []
        self.random = random.Random(0)  # noqa: S311

    def load(self, version: Version, directory: Path, reference: Reference | None) -> None:
        if version.ref.name == self.refused:
            raise NotServable(str(version.ref), ["no effect"])
        assert (directory / "adapter_config.json").is_file()
        self.loaded[version.ref] = reference

    def start(self, row: Row, ref: VersionRef | None, sampling: Mapping[str, Any]) -> str:
        if row.prompt == "too long":
            raise Unanswerable("the prompt is too long")
        assert ref is None or ref in self.loaded
        self.inside[str(row.index)] = row, ref, sampling
        self.started.append(row.index)
        assert len(self.inside) <= self.window
        assert len({ref for _, ref, _ in self.inside.values() if ref}) <= self.slots
        return str(row.index)

    def step(self) -> Iterable[tuple[str, Outcome | Unanswerable]]:
        time.sleep(self.pause)
        if self.answers == self.dies_after:
            raise LoradockError("vLLM failed: out of memory")
        if self.answers == self.hangs_after:
            signal.pause()
        number = self.random.choice(list(self.inside))
        self.answers += 1
        row, ref, sampling = self.inside.pop(number)
        asked = row.prompt if row.messages is None else row.messages[-1]["content"]
        said = f"{self.mark}{ref or 'base'} was asked {asked!r} with {sampling['max_tokens']}"
        return [(number, Outcome(said, "stop", Usage(prompt_tokens=3, completion_tokens=2)))]


class FakeBoot:
    """Makes the engine, and keeps it and what it was made with."""

    def __init__(self, **kind: Any) -> None:
        self.kind = kind
        self.engine: FakeEngine | None = None
        self.ranks: list[int] = []

    def __call__(
        self, local: LocalBase, ranks: Sequence[int], *, max_loras: int | None, extra: Sequence[str]
    ) -> FakeEngine:
        self.ranks = list(ranks)
        self.engine = FakeEngine(max_loras or 16, **self.kind)
        return self.engine


class FakeReader(FakeEngine):
    """Lets go of an adapter before a row of it, whose files somebody changes, and reads it again."""

    def load(self, version: Version, directory: Path, reference: Reference | None) -> None:
        super().load(version, directory, reference)
        self.directory = directory

    def start(self, row: Row, ref: VersionRef | None, sampling: Mapping[str, Any]) -> str:
        if row.prompt == "changed":
            path = self.directory / "adapter_config.json"
            path.chmod(0o644)
            path.write_bytes(path.read_bytes())
        return super().start(row, ref, sampling)


def never(local: LocalBase, ranks: Sequence[int], *, max_loras: int | None, extra: Sequence[str]) -> FakeEngine:
    raise AssertionError("there is nothing to answer")


@pytest.fixture(scope="module")
def filled(base: LocalBase, empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the adapters that the tests ask for, made once."""
    scratch = tmp_path_factory.mktemp("filled")
    home = scratch / "home"
    home.mkdir()
    shutil.copy(empty_store, home / "mlflow.db")
    store = Store(Settings(home=home))
    for name, kind in ADAPTERS:
        version = make_version(store, scratch / name, name, **{"base": base.base, "seed": len(name)} | dict(kind))
        if version.ref.number == 1:
            promotion.promote(store, version.ref, "production", actor="tester", force=True, reason="for a test")
        shutil.rmtree(scratch / name)
    return home


@pytest.fixture
def settings(home: Path, filled: Path) -> Settings:
    """That store, for one test to do with as it likes."""
    shutil.copytree(filled, home, dirs_exist_ok=True)
    return Settings()


def move_on(settings: Settings) -> None:
    """Let `bot` be another version."""
    promotion.promote(Store(settings), VersionRef("bot", 2), "production", actor="tester")


@pytest.fixture
def job(base: LocalBase, tmp_path: Path) -> Callable[..., Job]:
    def job(rows: Sequence[Any], **options: Any) -> Job:
        source = tmp_path / "in.jsonl"
        source.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
        return Job(str(base.path), source, tmp_path / "out.jsonl", **{"proof": "effect"} | options)

    return job


def output(job: Job) -> list[dict[str, Any]]:
    return [json.loads(line) for line in job.output.read_text().splitlines()]


def left(job: Job) -> set[str]:
    """What stands beside the input."""
    return {path.name for path in job.output.parent.iterdir() if "out.jsonl" in path.name}


def test_no_answer_comes_of_files_that_changed_after_they_were_hashed(
    job: Callable[..., Job], settings: Settings, base: LocalBase
) -> None:
    def boot(local: LocalBase, ranks: Sequence[int], *, max_loras: int | None, extra: Sequence[str]) -> FakeReader:
        return FakeReader(1)

    wish = job([{"model": "bot", "prompt": prompt} for prompt in ("A", "changed")])
    with pytest.raises(DigestMismatch, match=r"bot/1 .* changed while the engine read them"):
        run(wish, settings, boot=boot)
    assert not wish.output.exists()
    run(wish, settings, boot=FakeBoot())
    assert [row["error"] for row in output(wish)] == [None, None]


def test_every_row_gets_its_line_in_the_inputs_order(
    job: Callable[..., Job], settings: Settings, base: LocalBase
) -> None:
    one, two = (Store(settings).version(VersionRef(name, 1)) for name in ("bot", "cat"))
    openai = {
        "custom_id": "o-1",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "cat", "messages": [{"role": "user", "content": "Hi"}], "max_completion_tokens": 7},
    }
    asked = [
        {"model": "bot", "prompt": "A", "id": "first"},
        {"prompt": "B", "id": 2},
        "",
        {"model": base.name, "prompt": "C", "max_tokens": 5},
        openai,
        {"model": "cat/1", "prompt": "too long"},
        {"model": "bot@production", "messages": [{"role": "user", "content": "D"}]},
    ]
    wish, boot = job(asked, sampling=Sampling(max_tokens=9)), FakeBoot()
    done = run(wish, settings, boot=boot)
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    said = [
        ("first", "bot/1", one.facts.digest, "bot/1 was asked 'A' with 9"),
        (2, base.name, base.base.weights_digest, "base was asked 'B' with 9"),
        (None, base.name, base.base.weights_digest, "base was asked 'C' with 5"),
        ("o-1", "cat/1", two.facts.digest, "cat/1 was asked 'Hi' with 7"),
        (None, "cat/1", two.facts.digest, None),
        (None, "bot/1", one.facts.digest, "bot/1 was asked 'D' with 9"),
    ]
    assert output(wish) == [
        {
            "id": row_id,
            "index": index,
            "model": model,
            "digest": digest,
            "text": text,
            "finish_reason": text and "stop",
            "usage": text and usage,
            "error": None if text else "the prompt is too long",
        }
        for index, (row_id, model, digest, text) in enumerate(said)
    ]
    assert (done.rows, done.failed, done.answered, done.kept, done.prompt_tokens) == (6, 1, 5, 0, 15)
    assert done.models == {"bot@production": "bot/1", "cat@production": "cat/1", "cat/1": "cat/1"}
    assert left(wish) == {"out.jsonl", "out.jsonl.manifest.json"}
    assert sorted(boot.ranks) == [4, 8]
    assert run(wish, settings, boot=never).kept == 6


def test_more_adapters_than_slots_come_one_by_one(job: Callable[..., Job], settings: Settings) -> None:
    names = ["bot", "cat", "dog", "eel"]
    wish, boot = (
        job([{"model": names[index % 4], "prompt": str(index)} for index in range(24)], max_loras=2),
        FakeBoot(),
    )
    run(wish, settings, boot=boot)
    assert boot.engine
    assert boot.engine.started == sorted(range(24), key=lambda index: (index % 4, index))
    assert [row["model"] for row in output(wish)] == [f"{names[index % 4]}/1" for index in range(24)]


def test_every_fault_of_an_input_is_told_with_its_line(job: Callable[..., Job], settings: Settings) -> None:
    wish = job(
        [
            {"prompt": "fine", "id": "x"},
            "{",
            "[]",
            {"prompt": "a", "messages": [{"role": "user", "content": "b"}]},
            {"prompt": "a", "temperature": 3, "top_p": "high"},
            {"prompt": "a", "tools": []},
            {"prompt": "a", "id": "x"},
            {"custom_id": "y", "method": "POST", "url": "/v1/completions", "body": {"messages": []}},
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
            '{"prompt": "\\ud800"}',
        ]
    )
    with pytest.raises(BadInput) as caught:
        run(wish, settings, boot=never)
    told = "\n".join(caught.value.problems)
    for line, words in {
        2: "it is no JSON: EOF while parsing an object at column 1",
        3: "no JSON object",
        4: "either prompt or messages",
        5: "temperature: Input should be less than or equal to 2",
        6: "tools: Extra inputs",
        7: "its id 'x' is that of line 1",
        8: "body.messages",
        9: "messages.0.content: give text, or",
        10: "hex escape",
    }.items():
        assert any(fault.startswith(f"line {line}: ") and words in fault for fault in caught.value.problems), told
    assert "line 5: top_p" in told
    assert left(wish) == set()


def test_of_many_faults_some_are_told_and_the_others_counted(job: Callable[..., Job], settings: Settings) -> None:
    with pytest.raises(BadInput) as caught:
        run(job(["{"] * 50), settings, boot=never)
    assert len(caught.value.problems) == 21
    assert caught.value.problems[-1] == "and 30 more"
    with pytest.raises(BadInput, match="holds no rows"):
        run(job(["", " "]), settings, boot=never)


def test_refs_that_cannot_answer_are_refused_together(job: Callable[..., Job], settings: Settings) -> None:
    rows = [{"model": name, "prompt": "x"} for name in ("nobody", "foreign", "foreign", "foreign/7")]
    with pytest.raises(BadInput) as caught:
        run(job(rows), settings, boot=never)
    told = caught.value.problems
    assert told[0].startswith("line 1: ")
    assert "nobody" in told[0]
    assert told[1].startswith("line 2 and 1 more: foreign/1: it was trained on")
    assert "foreign/7" in told[2]
    with pytest.raises(BadInput, match="cannot be answered") as caught:
        run(job([{"model": "Not A Name", "prompt": "x"}]), settings, boot=never)
    assert "line 1: 'Not A Name' is not an adapter name" in caught.value.problems[0]


@pytest.mark.parametrize("model", ["bot", "bot@production", "bot/2"])
def test_an_adapter_that_is_named_as_the_bases_directory_is_refused_and_never_answered_by_the_base(
    job: Callable[..., Job], settings: Settings, base: LocalBase, tmp_path: Path, model: str
) -> None:
    shutil.copytree(base.path, tmp_path / "bot", copy_function=os.symlink)
    asked = replace(job([{"model": model, "prompt": "x"}]), base=str(tmp_path / "bot"))
    with pytest.raises(BadInput, match="cannot be answered") as caught:
        run(asked, settings, boot=never)
    assert f"line 1: bot{model[3:] if '/' in model else ''}" in caught.value.problems[0]
    assert "the base model itself answers under this name" in caught.value.problems[0]
    done = run(replace(job([{"prompt": "x"}]), base=asked.base), settings, boot=FakeBoot())
    assert done.answered == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # vLLM's, at import
def test_what_a_gpu_cannot_compute_adapters_in_is_refused_as_serve_refuses_it() -> None:
    words = ["--model", "x", "--dtype", "float32"]
    with pytest.raises(BadInput, match="do not fit") as caught:
        offline.parsed([*words, "--enable-lora"], cpu=False)
    assert "16 bits only" in caught.value.problems[0]
    with pytest.raises(BadInput) as caught:
        offline.parsed(["--model", "x", "--enable-lora", "--lora-target-modules", "o_proj"], cpu=True)
    assert caught.value.problems[0].startswith("--lora-target-modules: vLLM leaves out, without a word")
    assert offline.parsed(words, cpu=False).dtype == offline.parsed([*words, "--enable-lora"], cpu=True).dtype


def test_a_version_that_cannot_serve_stops_the_run_before_any_row(job: Callable[..., Job], settings: Settings) -> None:
    wish = job([{"model": "bot", "prompt": "x"}, {"model": "cat", "prompt": "x"}])
    with pytest.raises(NotServable, match="cat/1 cannot be served: no effect"):
        run(wish, settings, boot=FakeBoot(refused="cat"))
    assert left(wish) == set()
    with pytest.raises(NotServable, match="dora/1"):
        run(job([{"model": "dora", "prompt": "x"}]), settings, boot=never)


def test_a_version_is_held_against_its_reference(job: Callable[..., Job], settings: Settings, base: LocalBase) -> None:
    store = Store(settings)
    wish = job([{"model": "bot", "prompt": "x"}, {"model": "cat", "prompt": "x"}], proof="parity")
    with pytest.raises(NotServable, match="bot/1 cannot be served: no reference to hold it against") as caught:
        run(wish, settings, boot=never)
    assert [problem[:5] for problem in caught.value.problems] == ["cat/1"]
    probe = Probe(prompt=(1, 2), answer=(3,), adapted=(-1.0, -2.0), bare=(-3.0, -4.0), margins=(0.5,))
    references = {}
    for name in ("bot", "cat"):
        ref = VersionRef(name, 1)
        references[ref] = Reference(
            adapter=store.version(ref).facts.digest,
            base=base.base.weights_digest,
            config=base.base.config_digest,
            software={},
            at=datetime.now(UTC),
            probes=(probe,),
        )
        store.record_reference(references[ref])
    boot = FakeBoot()
    run(wish, settings, boot=boot)
    assert boot.engine
    assert boot.engine.loaded == references


def test_a_run_that_broke_off_goes_on_with_the_versions_that_it_began_with(
    job: Callable[..., Job], settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    wish = job([{"model": "bot", "prompt": str(index)} for index in range(20)])
    with pytest.raises(LoradockError, match="out of memory"):
        run(wish, settings, boot=FakeBoot(dies_after=7, mark="first: "))
    assert left(wish) == {"out.jsonl.partial", "out.jsonl.manifest.json"}
    move_on(settings)
    boot = FakeBoot(mark="second: ")
    done = run(wish, settings, boot=boot)
    assert "bot@production now points at bot/2; this run continues with bot/1" in caplog.text
    assert done.kept == 7
    assert done.models == {"bot@production": "bot/1"}
    answers = output(wish)
    assert [row["index"] for row in answers] == list(range(20))
    assert {row["model"] for row in answers} == {"bot/1"}
    assert boot.engine
    assert {row["index"] for row in answers if row["text"].startswith("second: ")} == set(boot.engine.started)
    assert len(boot.engine.started) == 13


def test_a_run_goes_on_without_the_registry(
    job: Callable[..., Job], settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    wish = job([{"model": "bot", "prompt": str(index)} for index in range(9)])
    with pytest.raises(LoradockError, match="out of memory"):
        run(wish, settings, boot=FakeBoot(dies_after=3))
    gone = Settings(home=settings.home, tracking_uri="http://127.0.0.1:1")
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    try:
        assert run(wish, gone, boot=FakeBoot()).answered == 9
        assert "whether aliases have moved is unknown" in caplog.text
        with pytest.raises(Unreachable):
            run(job([{"model": "bot", "prompt": "other"}], restart=True), gone, boot=never)
    finally:
        del os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]


def test_only_what_was_written_to_its_end_counts(job: Callable[..., Job], settings: Settings) -> None:
    wish = job([{"model": "bot", "prompt": str(index)} for index in range(4)])
    with pytest.raises(LoradockError, match="out of memory"):
        run(wish, settings, boot=FakeBoot(dies_after=3, mark="first: "))
    journal = partial_for(wish.output)
    whole = journal.read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == ord("\n")]
    middles = [(one + other) // 2 for one, other in pairwise(ends)]
    for size in sorted({*middles, *ends, *(end - 1 for end in ends[1:]), *(end + 1 for end in ends[:-1])}):
        wish.output.unlink(missing_ok=True)
        journal.write_bytes(whole[:size])
        kept = whole[:size].count(b"\n")
        assert run(wish, settings, boot=FakeBoot(mark="second: ")).kept == kept
        answers = output(wish)
        assert [row["index"] for row in answers] == [0, 1, 2, 3]
        assert sum(row["text"].startswith("first: ") for row in answers) == kept


def rewrite(wish: Job, **changes: object) -> None:
    """The manifest of a run, with another record of its base's tokenizer and template, or none."""
    path = manifest.path_for(wish.output)
    found = json.loads(path.read_text())
    del found["text"]
    path.write_text(json.dumps(found | changes))


def test_another_input_or_setting_is_refused_and_restart_begins_anew(
    job: Callable[..., Job], settings: Settings, tmp_path: Path
) -> None:
    rows = [{"model": "bot", "prompt": str(index)} for index in range(3)]
    wish = job(rows)
    run(wish, settings, boot=FakeBoot(mark="first: "))
    before = wish.output.read_bytes()
    for options, word in (
        ({"sampling": Sampling(max_tokens=256, temperature=0.5)}, "--temperature"),
        ({"model": "bot"}, "--model"),
        ({"vllm": ("--dtype", "float32")}, "vLLM's options"),
    ):
        with pytest.raises(BadInput, match=f"changed: {word}$"):
            run(job(rows, **options), settings, boot=never)
    with pytest.raises(BadInput, match=r"changed: the input$"):
        run(job([*rows, {"prompt": "more"}]), settings, boot=never)
    for text, word in (({"template": "1" * 64}, "chat template"), ({"generation": "1" * 64}, "generation_config.json")):
        rewrite(wish, text=text)
        with pytest.raises(BadInput, match=f"changed: the base's {word}$"):
            run(job(rows), settings, boot=never)
    rewrite(wish)  # as an older loradock wrote it
    assert run(job(rows, vllm=("--max-num-seqs", "4", "--gpu-memory-utilization=0.5")), settings, boot=never).kept == 3
    assert wish.output.read_bytes() == before
    move_on(settings)
    again = job(rows, restart=True)
    assert run(again, settings, boot=FakeBoot(mark="second: ")).models == {"bot@production": "bot/2"}
    assert all(row["text"].startswith("second: bot/2") for row in output(again))


def test_a_failed_restart_leaves_what_was_there(job: Callable[..., Job], settings: Settings) -> None:
    wish = job([{"model": "bot", "prompt": "x"}])
    run(wish, settings, boot=FakeBoot())
    before = wish.output.read_bytes()
    with pytest.raises(NotServable):
        run(job([{"model": "bot", "prompt": "y"}], restart=True), settings, boot=FakeBoot(refused="bot"))
    assert wish.output.read_bytes() == before
    assert left(wish) == {"out.jsonl", "out.jsonl.manifest.json"}


def test_somebody_elses_file_is_not_written_over(job: Callable[..., Job], settings: Settings) -> None:
    wish = job([{"prompt": "x"}])
    wish.output.write_text("notes of mine\n")
    with pytest.raises(BadInput, match="no run of `loradock generate` left it"):
        run(wish, settings, boot=never)
    assert wish.output.read_text() == "notes of mine\n"
    manifest.path_for(wish.output).write_text("{}")
    with pytest.raises(BadInput, match="cannot be read as the manifest"):
        run(wish, settings, boot=never)
    run(job([{"prompt": "x"}], restart=True), settings, boot=FakeBoot())
    with wish.output.open("a") as file:
        file.write("notes of mine\n")
    with pytest.raises(BadInput, match="was changed since it was written"):
        run(wish, settings, boot=never)


def test_failed_rows_are_answered_again_only_when_asked(job: Callable[..., Job], settings: Settings) -> None:
    rows = [{"prompt": "a"}, {"prompt": "too long"}, {"prompt": "c"}]
    assert run(job(rows), settings, boot=FakeBoot(mark="first: ")).failed == 1
    assert run(job(rows), settings, boot=never).failed == 1
    boot = FakeBoot(mark="second: ")
    wish = job(rows, retry_failed=True)
    done = run(wish, settings, boot=boot)
    assert (done.failed, done.kept) == (1, 2)
    assert [row["text"] and row["text"][:5] for row in output(wish)] == ["first", None, "first"]
    assert left(wish) == {"out.jsonl", "out.jsonl.manifest.json"}


def test_two_processes_do_not_answer_the_same_rows(job: Callable[..., Job], settings: Settings) -> None:
    wish = job([{"prompt": "x"}])

    class BootThatRunsAnother(FakeBoot):
        def __call__(self, *args: Any, **options: Any) -> FakeEngine:
            with pytest.raises(LoradockError, match="another process writes"):
                run(wish, settings, boot=never)
            return super().__call__(*args, **options)

    assert run(wish, settings, boot=BootThatRunsAnother()).answered == 1


def _killed(wish: Job, mark: str, home: str) -> None:
    os.environ["LORADOCK_HOME"] = home  # the process it was forked from may be another test's
    run(wish, Settings(), boot=FakeBoot(pause=0.002, mark=mark, hangs_after=50))


@pytest.mark.chance
@pytest.mark.slow
def test_a_run_killed_at_any_moment_loses_nothing_and_answers_nothing_twice(
    job: Callable[..., Job], settings: Settings
) -> None:
    count = 300
    wish = job([{"model": ("bot", "cat", "")[index % 3], "prompt": str(index)} for index in range(count)])
    journal = partial_for(wish.output)
    kept: dict[int, bytes] = {}
    chance = random.Random(SEED + 7)  # noqa: S311
    for start in range(5):
        process = processes().Process(target=_killed, args=(wish, f"start {start}: ", str(settings.home)))
        process.start()
        enough = len(kept) + chance.randrange(5, 45)
        deadline = time.monotonic() + 60
        while not journal.exists() or journal.read_bytes().count(b"\n") < enough:
            assert time.monotonic() < deadline
            assert process.exitcode is None
        assert process.pid
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert not wish.output.exists()
        lines = journal.read_bytes().rpartition(b"\n")[0].splitlines()
        now = {json.loads(line)["index"]: line for line in lines}
        assert len(now) == len(lines) >= enough
        assert kept.items() <= now.items()
        kept = now
    done: Done = run(wish, settings, boot=FakeBoot(mark="last: "))
    assert done.kept == len(kept)
    lines = wish.output.read_bytes().splitlines()
    assert [json.loads(line)["index"] for line in lines] == list(range(count))
    assert kept.items() <= dict(enumerate(lines)).items()
    assert sum(b"last: " in line for line in lines) == count - len(kept)


def test_what_the_command_is_told_is_what_is_run(
    job: Callable[..., Job], settings: Settings, base: LocalBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    wish = job([{"prompt": "x"}, {"prompt": "too long"}])
    boot = FakeBoot()
    monkeypatch.setattr("loradock.serving.batch.run", partial(run, boot=boot))
    words = ["--base", str(base.path), "--input", str(wish.input), "--output", str(wish.output)]
    words += ["--max-tokens", "5", "--temperature", "0", "--stop", "a", "--stop", "b", "--json", "--", "--seed=3"]
    done = CliRunner().invoke(generate, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert json.loads(done.stdout)["rows"] == 2
    assert "1 rows have an error for an answer; --retry-failed" in done.stderr
    assert output(wish)[0]["text"].endswith("with 5")
    begun = json.loads(manifest.path_for(wish.output).read_text())
    assert begun["settings"] == {"max_tokens": 5, "temperature": 0.0, "stop": ["a", "b"]}
    assert begun["vllm"] == ["--seed=3"]
    refused = CliRunner().invoke(generate, [*words, "--max-loras", "2"])
    assert isinstance(refused.exception, BadInput)
    assert "--max-loras before the `--`" in refused.exception.problems[0]


@pytest.mark.parametrize(
    ("ranks", "max_loras", "expected"),
    [
        ([], None, ""),
        ([4, 16], None, "--enable-lora --max-lora-rank 16 --max-loras 2 --max-cpu-loras 2"),
        ([17] * 40, None, "--enable-lora --max-lora-rank 32 --max-loras 16 --max-cpu-loras 40"),
        ([8] * 100, 80, "--enable-lora --max-lora-rank 16 --max-loras 80 --max-cpu-loras 80"),
    ],
)
def test_vllm_gets_room_for_the_adapters_that_are_asked_for(
    ranks: list[int], max_loras: int | None, expected: str, base: LocalBase
) -> None:
    assert offline.arguments(base, ranks, max_loras, cpu=False) == ["--model", str(base.path), *expected.split()]


def test_the_example_and_the_page_about_it_are_what_is_understood() -> None:
    assert len(rows.read(ROOT / "examples" / "prompts.jsonl").rows) == 6
    page = (ROOT / "docs" / "generate.md").read_text()
    assert not [name for name in Sampling.model_fields if f"`{name}`" not in page]
    assert not [name for name in Answer.model_fields if f'"{name}": ' not in page]


def test_the_command_is_light_to_import() -> None:
    heavy = "import loradock.cli.generate, sys; print({'torch', 'vllm', 'mlflow'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True).stdout == "set()\n"
