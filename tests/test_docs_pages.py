"""What pages mark as run, run in a shell, with the few things that stand for a reader's own.

Where an answer is asked for, the small base's lowest two layers give it.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from loradock.registry import artifact, functions, promotion, versions
from loradock.registry.base import resolve
from loradock.registry.records import Base, Version
from loradock.registry.refs import VersionRef
from loradock.registry.store import Store
from tests.support.adapters import NAME, SMOL, aliases, log_adapter, make_version, ref, write_adapter
from tests.support.docs.pages import DOCS, PAGES, ROOT, marked, run
from tests.support.ports import free_port
from tests.support.registry.fake_hub import hub
from tests.support.serving.fake_replica import replica
from tests.support.serving.up import running
from tests.support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.minutes]

ELSEWHERE = {
    "how-to/backup.md": "tests/registry/test_backup.py",
    "how-to/upgrade.md": "tests/registry/test_upgrade.py",
}
"""Pages that another test runs."""
SERVED = {"LORADOCK_SERVE_PROOF": "effect", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
Words = Mapping[str, str]


@dataclass
class Reader:
    """Whoever follows a page: a directory of their own, and a registry."""

    directory: Path
    store: Store
    shallow: Path
    stack: ExitStack
    """What is ended when the page has been read."""

    def make(self, name: str = NAME, *, seed: int = 0, base: Base = SMOL, **kind: Any) -> Version:
        return make_version(self.store, self.directory / "made" / f"{name}-{seed}", name, seed=seed, base=base, **kind)

    def promote(self, number: int) -> None:
        promotion.promote(self.store, ref(number), "production", actor="tester")

    @property
    def base(self) -> Base:
        """The base of two layers."""
        return resolve(str(self.shallow), self.store.settings).base


def axolotl(reader: Reader) -> Words:
    out = write_adapter(reader.directory / "outputs" / "lora-out")
    (out / "manifest.json").unlink()
    (out / "README.md").write_text("written by Axolotl")
    return {}


def recipe(reader: Reader) -> Words:
    """A recipe that takes seconds, as the reader's own."""
    rows = (ROOT / "examples" / "data" / "support-pirate.jsonl").read_text(encoding="utf-8").splitlines()
    (reader.directory / "rows.jsonl").write_text("\n".join(rows[:20]))
    short = {"max_steps": 1, "max_length": 256, "per_device_train_batch_size": 1}
    said = {"base": str(reader.shallow), "data": "rows.jsonl", "method": "lora", "samples": 0, "training": short}
    (reader.directory / "recipe.yaml").write_text(json.dumps(said))
    return {"examples/support-pirate.yaml": "recipe.yaml"}


def gate(reader: Reader) -> Words:
    reader.make(seed=0)
    reader.promote(1)
    reader.make(seed=1)
    return {}


def import_(reader: Reader) -> Words:
    reader.make()
    for step, loss in ((5, 0.9), (10, 0.5)):
        found = write_adapter(reader.directory / "out" / f"checkpoint-{step}", seed=step)
        log = [{"step": 5, "eval_loss": 0.9}, {"step": 10, "eval_loss": 0.5}]
        said = {"global_step": step, "best_metric": min(loss, 0.9), "log_history": log[: step // 5]}
        said["best_model_checkpoint"] = f"out/checkpoint-{step}"
        (found / "trainer_state.json").write_text(json.dumps(said))
    return {"ORG/NAME": SMOL.id}


def keys(reader: Reader) -> Words:
    return {"/etc/loradock/keys.json": "keys.json"}


def publish(reader: Reader) -> Words:
    there = reader.stack.enter_context(hub(reader.directory / "hub"))
    there.make("org/base", private=False)
    there.change("org/base", {"README.md": b"---\nlicense: apache-2.0\n---\n# Base\n"}, title="Card")
    base = SMOL.model_copy(update={"id": "org/base", "revision": there.read("org/base")["commits"][-1]["id"]})
    for seed in range(3):
        made = write_adapter(reader.directory / "made" / str(seed), seed=seed)
        artifact.canonicalise(made)
        versions.register(reader.store, log_adapter(reader.store, made, base=base), NAME)
    reader.promote(3)
    for name, value in there.environment(reader.directory / "hf").items():
        reader.stack.enter_context(pytest.MonkeyPatch.context()).setenv(name, value)
    return {"acme/": "org/", "export HF_TOKEN=...": ":", "ORG/NAME": SMOL.id}


def canary(reader: Reader) -> Words:
    for seed in range(3):
        reader.make(seed=seed)
    reader.promote(2)
    usual = {"error": 0.01, "unstopped": 0.02, "long": 0.01}
    asked = reader.stack.enter_context(replica(reader.store.settings, {2: usual, 3: usual}, requests=1000))
    two = "--replica http://replica-1:8000 --replica http://replica-2:8000"
    return {two: f"--replica {asked.url} --every 0.01s --for 0s"}


def generate(reader: Reader) -> Words:
    for seed in range(2):
        reader.make(seed=seed, base=reader.base, scale=8.0)
    reader.promote(2)
    # what make_version makes has no reference, and a job of Python's does not read the environment
    return {SMOL.id: f"{reader.shallow}", "temperature=0.0),": 'temperature=0.0), proof="effect",'}


def weights(reader: Reader) -> Words:
    """Versions to merge and to convert, of which the fifth is of another method."""
    from tests.support.trainer.adapters import AdapterMaker

    local = resolve(str(reader.shallow), reader.store.settings)
    (reader.directory / local.base.id).symlink_to(local.path)
    rows = (ROOT / "examples" / "data" / "support-pirate.jsonl").read_text(encoding="utf-8").splitlines()
    (reader.directory / "heldout.jsonl").write_text("\n".join(rows[:4]))
    maker = AdapterMaker(reader.store.settings, reader.store, local, reader.directory / "made")
    for number in range(1, 5):
        reader.make(seed=number, base=local.base)
    maker.make(NAME, "loha", r=2)
    for number in range(2):
        reader.make("tone", seed=10 + number, base=local.base)
    return {}


def tutorial(reader: Reader) -> Words:
    for seed in range(2):
        reader.make(seed=seed, base=reader.base, scale=8.0)
    reader.promote(1)
    port = reader.stack.enter_context(up(reader))
    url = f"http://127.0.0.1:{port}"
    return {"http://127.0.0.1:8000": url, "loradock status": f"loradock status --replica {url}"}


@contextmanager
def up(reader: Reader) -> Iterator[int]:
    """The stack that the tutorial brings up, from when it answers to the signal that ends it; by the replica's port."""
    port, ui_port, log = free_port(), free_port(), reader.directory / "up.log"
    words = ("--base", str(reader.shallow), "--port", str(port), "--ui-port", str(ui_port))
    vllm = ("--max-model-len", "256", "--dtype", "float32")
    with running(reader.store.settings.root, log, *words, "--", *vllm) as process:
        until(lambda: "answers at" in log.read_text() or not process.is_running(), 600, log)
        assert httpx.get(f"http://127.0.0.1:{ui_port}", timeout=60).status_code == 200
        until(lambda: httpx.get(f"http://127.0.0.1:{port}/loradock/ready", timeout=60).is_success, 120, log)
        yield port
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0, log.read_text()


THERE: Mapping[str, Callable[[Reader], Words]] = {
    "convert.md": weights,
    "data.md": recipe,
    "generate.md": generate,
    "how-to/axolotl.md": axolotl,
    "how-to/canary.md": canary,
    "how-to/gate.md": gate,
    "how-to/publish.md": publish,
    "how-to/python.md": recipe,
    "import.md": import_,
    "keys.md": keys,
    "merge.md": weights,
    "publish.md": publish,
    "tutorial.md": tutorial,
}
"""What a page takes to be there, and what stands for a reader's own in it."""


def gated(reader: Reader, out: str) -> None:
    assert "refused with 3" in out
    assert aliases(reader.store) == {"production": 1}


def rolled_out(reader: Reader, out: str) -> None:
    assert "support-bot/3" in out
    assert aliases(reader.store)["production"] == 3
    polite = functions.load(reader.directory / "judge.py", "polite", hint="")
    assert (polite("Hello", "I am sorry."), polite("Hello", "No.")) == (True, False)


def digested(reader: Reader, out: str) -> None:
    assert re.fullmatch(r"[0-9a-f]{64}", out.strip())


def trained(reader: Reader, out: str) -> None:
    run_id, loss = out.split()[-2:]
    assert reader.store.client.get_run(run_id).info.status == "FINISHED"
    assert 0 < float(loss) < 30  # the two layers alone give 20


def answered(reader: Reader, out: str) -> None:
    asked = (ROOT / "examples" / "prompts.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in (reader.directory / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == len(asked)
    assert {row["error"] for row in rows} == {None}
    assert {row["model"] for row in rows} >= {"support-bot/1", "support-bot/2"}
    assert out.splitlines()[-1].startswith(f"{len(asked)} 0 ")


def keyed(reader: Reader, out: str) -> None:
    assert out.count("ldk-") == 3
    assert list(json.loads((reader.directory / "keys.json").read_text())["keys"]) == ["support-site", "operator"]


def published(reader: Reader, out: str) -> None:
    assert len(reader.store.publications(ref(3))) == 1


def moved(reader: Reader, out: str) -> None:
    assert '"model":"support-bot/1"' in out.replace(" ", "")
    assert [move[1] for move in history(reader)] == [1, 2, 1]


def converted(reader: Reader, out: str) -> None:
    assert reader.store.version(VersionRef("support-bot-lora", 1)).facts.method == "lora"
    assert reader.store.version(ref(6)).facts.method == "lora"


def merged(reader: Reader, out: str) -> None:
    assert (reader.directory / "merged" / "config.json").is_file()
    assert reader.store.version(VersionRef("polite-support", 1)).facts.rank == 8


def history(reader: Reader) -> list[tuple[str, int | None]]:
    from loradock.registry.history import read

    return [(str(move.op), move.to_version) for move in read(reader.store, NAME).moves]


LEFT: Mapping[str, Callable[[Reader, str], None]] = {
    "convert.md": converted,
    "data.md": digested,
    "generate.md": answered,
    "how-to/canary.md": rolled_out,
    "how-to/gate.md": gated,
    "how-to/publish.md": published,
    "how-to/python.md": trained,
    "keys.md": keyed,
    "merge.md": merged,
    "publish.md": published,
    "tutorial.md": moved,
}
"""What is looked at when a page has run, beside its exit code."""


@pytest.mark.parametrize(
    "page",
    [name for path in PAGES if marked(name := str(path.relative_to(DOCS))) and name not in ELSEWHERE],
)
def test_what_a_page_marks_as_run_runs(
    page: str, store: Store, shallow_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SERVED.items():
        monkeypatch.setenv(name, value)
    directory = tmp_path / "work"
    directory.mkdir()
    (directory / "examples").symlink_to(ROOT / "examples")
    with ExitStack() as stack:
        reader = Reader(directory, store, shallow_dir, stack)
        stands_for = THERE.get(page, lambda _: {})(reader)
        done = run(marked(page), directory, {}, stands_for)
        LEFT.get(page, lambda *_: None)(reader, done.stdout)


def test_the_pages_that_others_run_are_named_there() -> None:
    for page, test in ELSEWHERE.items():
        assert page in (ROOT / test).read_text(encoding="utf-8")
