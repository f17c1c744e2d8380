"""`loradock publish`, with the Hub's own client over HTTP, against a Hub that does what a test asks for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from loradock.registry import artifact, promotion
from loradock.registry.artifact import CONFIG, MANIFEST, WEIGHTS
from loradock.registry.evidence import Evidence, Scores
from loradock.registry.hubcard import MERGED
from loradock.registry.records import Base, Version
from loradock.registry.store import Store
from loradock.registry.store.lineage import Publication
from loradock.registry.versions import register
from tests.support import shell
from tests.support.adapters import NAME, SMOL, log_adapter, ref, write_adapter
from tests.support.registry.fake_hub import TOKEN, FakeHub, hub

pytestmark = pytest.mark.slow

REPO = "org/calm"
FILES = {".gitattributes", "README.md", CONFIG, WEIGHTS, MANIFEST}
Publish = Callable[..., shell.Done]


@pytest.fixture
def there(tmp_path: Path) -> Iterator[FakeHub]:
    """A Hub that holds the card of a base, org/base."""
    with hub(tmp_path / "hub") as found:
        found.make("org/base", private=False)
        found.change("org/base", {"README.md": b"---\nlicense: apache-2.0\n---\n# Base\n"}, title="Card")
        yield found


@pytest.fixture
def on_hub(there: FakeHub) -> Base:
    return SMOL.model_copy(update={"id": "org/base", "revision": there.read("org/base")["commits"][-1]["id"]})


@pytest.fixture
def made(store: Store, on_hub: Base, tmp_path: Path) -> Version:
    return made_of(store, tmp_path / "adapter", on_hub)


def made_of(store: Store, directory: Path, base: Base, **kind: Any) -> Version:
    """A version whose configuration is in the form that every version's is."""
    write_adapter(directory, **kind)
    artifact.canonicalise(directory)
    return register(store, log_adapter(store, directory, base=base), NAME)


@pytest.fixture
def publish(there: FakeHub, tmp_path: Path) -> Publish:
    """The command, without its REF."""

    def run(number: int, *options: str, repo: str = REPO, **environment: str) -> shell.Done:
        given = there.environment(tmp_path / "hf") | environment
        return shell.loradock("publish", f"{NAME}/{number}", "--repo", repo, "--json", *options, **given)

    return run


def ours(there: FakeHub, repo: str = REPO) -> list[str]:
    """The ids of the commits that published something, oldest first."""
    return [one["id"] for one in there.read(repo)["commits"] if one["title"].startswith("Publish ")]


def is_refused(done: shell.Done, code: int, *words: str) -> None:
    """It ended with this code and said these words in one line with a hint."""
    said = [line for line in done.err.strip().splitlines() if not line.startswith("warning: ")]
    assert (done.exit_code, done.out) == (code, ""), done
    assert len(said) <= 3, done.err
    assert said[0].startswith("loradock: "), done.err
    for word in words:
        assert word in done.err, done.err


def evaluated(store: Store, version: Version) -> Evidence:
    run_id = store.begin_evaluation("it")
    found = Evidence(
        run_id=run_id,
        name=NAME,
        candidate=version.facts.digest,
        incumbent="",
        base=version.facts.base.weights_digest,
        data_digest="d" * 64,
        at=datetime(2026, 1, 2, tzinfo=UTC),
        metrics={"loss": Scores(better="lower", weighted=True, candidate=(1.0, 2.0), base=(3.0, 3.0))},
        weights=(3.0, 1.0),
    )
    store.record_evidence(found)
    store.client.set_terminated(run_id)
    return found


def test_a_version_goes_to_the_hub_in_one_commit_and_comes_back_with_the_same_digest(
    store: Store, there: FakeHub, made: Version, publish: Publish, base_dir: Path, tmp_path: Path
) -> None:
    evaluated(store, made)
    done = publish(1)
    assert done.exit_code == 0, done.err
    told = json.loads(done.out)
    repository = there.read(REPO)
    assert repository["private"]
    assert [commit["title"] for commit in repository["commits"]] == ["initial commit", f"Publish {NAME}/1"]
    assert told == {
        "version": f"{NAME}/1",
        "digest": made.facts.digest,
        "repo": REPO,
        "commit": repository["commits"][-1]["id"],
        "private": True,
        "new": True,
    }
    files = there.files(REPO)
    assert files.keys() == FILES
    for name in (CONFIG, WEIGHTS, MANIFEST):
        assert files[name] == (tmp_path / "adapter" / name).read_bytes()
    (publication,) = store.publications(ref(1))
    assert (publication.repo, publication.revision) == (REPO, told["commit"])
    assert f"published as  {REPO}@{told['commit']}" in shell.loradock("show", f"{NAME}/1").out

    words = ["import", REPO, "--name", "again", "--base", str(base_dir), "--json"]
    back = shell.loradock(*words, **there.environment(tmp_path / "other"))
    assert back.exit_code == 0, back.err
    assert json.loads(back.out)["digest"] == made.facts.digest


def test_the_card_says_what_the_hub_and_people_ask_for(
    store: Store, there: FakeHub, made: Version, publish: Publish, on_hub: Base
) -> None:
    evaluated(store, made)
    store.client.log_param(made.facts.run_id, "data.file", f"org/rows@{'a' * 40}, secret-customers.jsonl")
    assert publish(1).exit_code == 0
    head, _, body = there.files(REPO)["README.md"].decode().removeprefix("---\n").partition("\n---\n")
    results = {
        "task": {"type": "text-generation"},
        "dataset": {"type": "held-out", "name": "held-out rows dddddddddddd"},
        "metrics": [
            {"type": "loss", "value": 1.25, "name": "loss"},
            {"type": "perplexity", "value": 3.490343, "name": "perplexity"},
        ],
    }
    assert yaml.safe_load(head) == {
        "license": "apache-2.0",
        "base_model": "org/base",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["loradock", "lora"],
        "datasets": ["org/rows"],
        "metrics": ["loss", "perplexity"],
        "model-index": [{"name": "calm", "results": [results]}],
    }
    for word in (
        f'AutoModelForCausalLM.from_pretrained("org/base", revision="{on_hub.revision}")',
        f'PeftModel.from_pretrained(base, "{REPO}")',
        f"--enable-lora --max-lora-rank 16 --lora-modules {NAME}={REPO}",
        f'LoRARequest("{NAME}", 1, "{REPO}")',
        "| loss | 1.25 | 3 | 2 | `dddddddddddd` |",
        made.facts.digest,
        made.facts.data_digest,
        made.facts.run_id,
    ):
        assert word in body
    assert "secret-customers" not in body
    assert TOKEN not in body


def test_what_the_card_says_of_peft_loads_the_adapter(
    store: Store, there: FakeHub, publish: Publish, shallow_dir: Path, tmp_path: Path
) -> None:
    revision = there.upload("org/shallow", shallow_dir)
    base = SMOL.model_copy(update={"id": "org/shallow", "revision": revision})
    made_of(store, tmp_path / "adapter", base, config={"revision": revision})
    assert publish(1, "--license", "apache-2.0").exit_code == 0
    card = there.files(REPO)["README.md"].decode()
    code = card.partition("```python\n")[2].partition("\n```")[0]
    asks = """
import torch
tokens = tokenizer("Hello", return_tensors="pt")
with torch.no_grad(), model.disable_adapter():
    alone = model(**tokens).logits
with torch.no_grad():
    assert not torch.equal(model(**tokens).logits, alone)
"""
    told = subprocess.run(
        [sys.executable, "-c", code + asks],
        env={**os.environ, **there.environment(tmp_path / "reader")},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert told.returncode == 0, told.stderr


def test_publishing_again_commits_nothing(store: Store, there: FakeHub, made: Version, publish: Publish) -> None:
    first = json.loads(publish(1).out)
    there.asked.clear()
    done = publish(1, "--license", "not-looked-at")
    assert json.loads(done.out) == first | {"new": False}
    assert f"{REPO} holds {NAME}/1 already: nothing was committed" in done.err
    assert not [line for line in there.asked if not line.startswith("GET")]
    assert len(store.publications(ref(1))) == 1


def test_the_next_version_takes_its_place_and_the_one_before_can_come_back(
    store: Store, there: FakeHub, made: Version, on_hub: Base, publish: Publish, tmp_path: Path
) -> None:
    made_of(store, tmp_path / "second", on_hub, seed=2)
    commits = [json.loads(publish(number).out)["commit"] for number in (1, 2, 1)]
    assert ours(there) == commits
    assert there.files(REPO)[WEIGHTS] == (tmp_path / "adapter" / WEIGHTS).read_bytes()
    assert [one.revision for one in store.publications(ref(1))] == [commits[0], commits[2]]
    assert [one.revision for one in store.publications(ref(2))] == [commits[1]]


def test_files_of_the_version_before_that_the_next_has_not_are_taken_away(
    there: FakeHub, made: Version, publish: Publish, tmp_path: Path
) -> None:
    earlier = tmp_path / "earlier"
    write_adapter(earlier, seed=5)
    (earlier / "extra.json").write_text("{}")
    artifact.write_manifest(earlier)
    there.make(REPO, private=True)
    files: dict[str, Any] = {path.name: path.read_bytes() for path in earlier.iterdir()}
    there.change(REPO, files | {"notes.txt": b"mine"}, title="Publish x/1", message=f"loradock-digest: {'a' * 64}")
    assert publish(1).exit_code == 0
    assert there.files(REPO).keys() == FILES | {"notes.txt"}


@pytest.mark.parametrize("public", [False, True])
def test_who_sees_it_is_said(there: FakeHub, made: Version, publish: Publish, public: bool) -> None:
    done = publish(1, *(["--public"] if public else []))
    assert json.loads(done.out)["private"] is not public
    assert there.read(REPO)["private"] is not public


def test_a_public_repository_takes_it_only_when_that_was_asked_for(
    there: FakeHub, made: Version, publish: Publish
) -> None:
    there.make(REPO, private=False)
    is_refused(publish(1), 3, f"{REPO} is public", "--public")
    assert ours(there) == []
    assert publish(1, "--public").exit_code == 0


def test_a_private_repository_stays_private(there: FakeHub, made: Version, publish: Publish) -> None:
    there.make(REPO, private=True)
    done = publish(1, "--public")
    assert json.loads(done.out)["private"] is True
    assert f"warning: {REPO} stays private" in done.err


@pytest.mark.parametrize("before", [False, True])
def test_what_somebody_else_wrote_is_not_written_over(
    there: FakeHub, made: Version, on_hub: Base, store: Store, publish: Publish, tmp_path: Path, before: bool
) -> None:
    """Neither a repository of theirs, nor what they changed in one that loradock published to."""
    if before:
        there.make(REPO, private=True)
    else:
        assert publish(1).exit_code == 0
    made_of(store, tmp_path / "second", on_hub, seed=2)
    there.change(REPO, {"README.md": b"---\nlicense: mit\n---\nMine\n"}, title="Mine | own")
    is_refused(publish(2), 3, f"the newest commit of {REPO} is not loradock's", "'Mine | own'", "--force")
    assert there.files(REPO)["README.md"].endswith(b"Mine\n")
    assert publish(2, "--force", "--reason", "their card is stale").exit_code == 0
    assert [one.forced for one in store.publications(ref(2))] == ["their card is stale"]
    assert there.files(REPO)[WEIGHTS] == (tmp_path / "second" / WEIGHTS).read_bytes()


def test_a_change_to_the_card_does_not_make_a_published_version_another(
    store: Store, there: FakeHub, made: Version, publish: Publish
) -> None:
    first = json.loads(publish(1).out)
    there.change(REPO, {"README.md": b"---\nlicense: mit\n---\nMine\n"}, title="Mine")
    assert json.loads(publish(1).out) == first | {"new": False}
    assert len(store.publications(ref(1))) == 1


def test_of_two_who_write_at_once_one_is_told(there: FakeHub, made: Version, publish: Publish) -> None:
    """Another commit comes between the look at the repository and the commit."""
    there.make(REPO, private=True)
    there.fail(
        "POST .*/preupload/", when="never", times=1, act=lambda: there.change(REPO, {"a.txt": b"a"}, title="Theirs")
    )
    is_refused(publish(1), 4, f"{REPO} on the Hub is at another commit", "somebody wrote to it meanwhile")
    assert ours(there) == []
    assert "a.txt" in there.files(REPO)


def test_two_who_publish_the_same_at_once_both_succeed(
    store: Store, there: FakeHub, made: Version, publish: Publish
) -> None:
    others: list[shell.Done] = []
    there.make(REPO, private=True)
    there.fail("POST .*/commit/", when="never", times=1, act=lambda: others.append(publish(1)))
    told = [json.loads(done.out) for done in (publish(1), *others)]
    assert [one["new"] for one in told] == [False, True]
    assert {one["commit"] for one in told} == set(ours(there))
    assert {one.revision for one in store.publications(ref(1))} == set(ours(there))


def test_a_repository_that_another_makes_meanwhile_is_taken(there: FakeHub, made: Version, publish: Publish) -> None:
    there.fail("POST /api/repos/create", when="never", times=1, act=lambda: there.make(REPO, private=True))
    assert publish(1).exit_code == 0
    assert len(ours(there)) == 1


NO_ROOM = b'{"objects": [{"oid": "a", "size": 1, "error": {"code": 507, "message": "storage limit reached"}}]}'
INJECTED: Mapping[str, tuple[dict[str, Any], int, str]] = {
    "the look: 500": ({"pattern": "GET .*/revision/main", "status": 500}, 6, "answers with an error (500)"),
    "the look: 429": ({"pattern": "GET .*/revision/main", "status": 429}, 6, "asks to wait (429)"),
    "the look: broken": ({"pattern": "GET .*/revision/main"}, 6, "cannot be reached"),
    "the look: no Hub": (
        {"pattern": "GET .*/revision/main", "status": 200, "body": b"<html>"}, 6, "does not answer as the Hub does"),
    "the card's check: 502, HTML": (
        {"pattern": "POST /api/validate-yaml", "status": 502, "body": b"<html>"}, 6, "answers with an error (502)"),
    "making it: 403": ({"pattern": "POST /api/repos/create", "status": 403}, 6, "does not give this token the right"),
    "making it: 500": ({"pattern": "POST /api/repos/create", "status": 500}, 6, "answers with an error (500)"),
    "the sizes: 404": (
        {"pattern": "POST .*/preupload/", "status": 404, "headers": {"X-Error-Code": "RepoNotFound"}}, 5, "no model"),
    "the batch: 403": ({"pattern": "POST .*/objects/batch", "status": 403}, 6, "does not give this token the right"),
    "the batch: no room": (
        {"pattern": "POST .*/objects/batch", "status": 200, "body": NO_ROOM}, 1, "storage limit reached"),
    "the upload: 403": ({"pattern": "PUT /lfs/", "status": 403}, 6, "does not give this token the right"),
    "the upload's check: 404": ({"pattern": "POST .*/lfs-verify", "status": 404}, 5, "no model"),
    "the commit: 400": ({"pattern": "POST .*/commit/", "status": 400}, 2, "does not take what was sent"),
    "the commit: 401": ({"pattern": "POST .*/commit/", "status": 401}, 6, "does not know the token (401)"),
    "the commit: 409": ({"pattern": "POST .*/commit/", "status": 409}, 4, "is at another commit"),
    "the commit: 412": ({"pattern": "POST .*/commit/", "status": 412}, 4, "is at another commit"),
    "the commit: 429": ({"pattern": "POST .*/commit/", "status": 429}, 6, "asks to wait (429)"),
    "the commit: 503": ({"pattern": "POST .*/commit/", "status": 503}, 6, "answers with an error (503)"),
    "the commit: broken before": ({"pattern": "POST .*/commit/"}, 6, "cannot be reached"),
    "the commit: broken within": ({"pattern": "POST .*/commit/", "when": "body"}, 6, "cannot be reached"),
}  # fmt: skip


@pytest.mark.parametrize("fault", INJECTED)
def test_a_fault_is_told_in_a_line_and_the_next_call_goes_on(
    store: Store, there: FakeHub, made: Version, publish: Publish, fault: str
) -> None:
    injected, code, said = INJECTED[fault]
    there.fail(**injected)
    is_refused(publish(1), code, said)
    assert store.publications(ref(1)) == ()
    there.faults.clear()
    assert json.loads(publish(1).out)["new"] is True
    assert len(ours(there)) == len(store.publications(ref(1))) == 1


PASSING: Mapping[str, dict[str, Any]] = {
    "the sizes: 503": {"pattern": "POST .*/preupload/", "status": 503},
    "the sizes: 429": {"pattern": "POST .*/preupload/", "status": 429, "headers": {"Retry-After": "0"}},
    "the batch: 500": {"pattern": "POST .*/objects/batch", "status": 500},
    "the upload: broken within": {"pattern": "PUT /lfs/", "when": "body"},
    "the upload: 500 though done": {"pattern": "PUT /lfs/", "status": 500, "when": "after"},
    "the commit: broken though made": {"pattern": "POST .*/commit/", "when": "after"},
    "the commit: 500 though made": {"pattern": "POST .*/commit/", "status": 500, "when": "after"},
}


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_does_no_harm(
    store: Store, there: FakeHub, made: Version, publish: Publish, fault: str
) -> None:
    there.fail(**PASSING[fault], times=1)
    done = publish(1)
    assert done.exit_code == 0, done.err
    assert json.loads(done.out)["new"] is True
    assert "signature" not in done.err
    assert len(ours(there)) == len(store.publications(ref(1))) == 1


def test_a_commit_that_was_made_is_found_by_the_next_call(
    store: Store, there: FakeHub, made: Version, publish: Publish
) -> None:
    def cut() -> None:
        there.fail(".*")

    there.fail("POST .*/commit/", when="after", times=1, act=cut)
    is_refused(publish(1), 6, "cannot be reached", "run it again")
    assert store.publications(ref(1)) == ()
    there.faults.clear()
    assert json.loads(publish(1).out)["new"] is False
    (publication,) = store.publications(ref(1))
    assert [publication.revision] == ours(there)


def test_an_upload_through_xet_that_fails_is_told(there: FakeHub, made: Version, publish: Publish) -> None:
    """The client uploads through Xet where that is not switched off, and this Hub has none."""
    is_refused(publish(1, HF_HUB_DISABLE_XET="0"), 6, "the Hub cannot be reached: ConnectionError")
    assert any("xet-write-token" in line for line in there.asked)
    assert publish(1).exit_code == 0


@pytest.mark.parametrize(
    ("pattern", "when"),
    [
        ("POST /api/repos/create", "after"),
        ("POST .*/preupload/", "before"),
        ("PUT /lfs/", "body"),
        ("PUT /lfs/", "after"),
        ("POST .*/commit/", "before"),
        ("POST .*/commit/", "after"),
    ],
)
def test_killed_on_the_way_it_goes_on(
    store: Store, there: FakeHub, made: Version, publish: Publish, tmp_path: Path, pattern: str, when: str
) -> None:
    words = [str(Path(sys.executable).with_name("loradock")), "publish", f"{NAME}/1", "--repo", REPO]
    running = subprocess.Popen(words, env={**os.environ, **there.environment(tmp_path / "hf")})
    there.fail(pattern, when=when, times=1, act=running.kill)
    assert running.wait(60) == -9
    assert store.publications(ref(1)) == ()
    assert json.loads(publish(1).out)["commit"] == ours(there)[0]
    assert len(ours(there)) == len(store.publications(ref(1))) == 1
    assert there.files(REPO)[WEIGHTS] == (tmp_path / "adapter" / WEIGHTS).read_bytes()


def test_no_token_and_no_hub_are_said_before_anything_is_read(there: FakeHub, made: Version, publish: Publish) -> None:
    is_refused(publish(1, HF_TOKEN=""), 2, "requires a token", "HF_TOKEN")
    is_refused(publish(1, HF_HUB_OFFLINE="1"), 6, "HF_HUB_OFFLINE is set", "unset it")
    assert there.asked == []
    is_refused(publish(1, HF_ENDPOINT="http://127.0.0.1:9"), 6, "the Hub cannot be reached", "HF_ENDPOINT")


@pytest.mark.parametrize("debug", [False, True])
def test_a_token_is_shown_nowhere(
    store: Store, there: FakeHub, made: Version, publish: Publish, home: Path, tmp_path: Path, debug: bool
) -> None:
    wrong = "hf_AnotherSecretThatNobodyKnows"
    words = ["--debug"] if debug else []
    told = []
    for repo, token in ((REPO, wrong), ("other/calm", TOKEN), (REPO, TOKEN)):
        given = there.environment(tmp_path / "hf", token)
        told.append(shell.loradock(*words, "publish", f"{NAME}/1", "--repo", repo, **given))
    assert [done.exit_code for done in told] == [1 if debug else 6] * 2 + [0]
    if not debug:
        is_refused(told[0], 6, "the Hub does not know the token (401)")
        is_refused(told[1], 6, "the Hub does not give this token the right to other/calm (403)")
    written = [path for root in (home, there.root, tmp_path / "hf") for path in root.rglob("*") if path.is_file()]
    assert {"mlflow.db", "calm.json"} <= {path.name for path in written}
    for secret in (wrong, TOKEN):
        assert not any(secret in done.out + done.err for done in told)
        assert not any(secret.encode() in path.read_bytes() for path in written)


def test_damaged_bytes_are_not_published(
    store: Store, there: FakeHub, made: Version, publish: Publish, home: Path
) -> None:
    (stored,) = home.rglob(WEIGHTS)
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.write_bytes(content)
    is_refused(publish(1), 3, "does not hold the bytes that were registered", f"{WEIGHTS} changed")
    assert there.asked == []


def test_a_base_without_a_licence_asks_for_one(
    store: Store, there: FakeHub, made: Version, publish: Publish, tmp_path: Path
) -> None:
    there.change("org/base", {"README.md": None}, title="No card")
    bare = made.facts.base.model_copy(update={"revision": there.read("org/base")["commits"][-1]["id"]})
    made_of(store, tmp_path / "bare", bare, seed=2)
    made_of(store, tmp_path / "local", SMOL, seed=3)
    is_refused(publish(2), 2, "the card of org/base names none", "--license")
    is_refused(publish(3), 2, "the base is not on the Hub", "--license")
    is_refused(publish(3, "--license", "my-own"), 2, "does not take the model card", '"license" must be one of')
    assert not there.repository(REPO).exists()
    done = publish(3, "--license", "mit")
    assert done.exit_code == 0
    assert "the card has no base_model: --base-model names it" in done.err
    assert b"base_model" not in there.files(REPO)["README.md"]
    assert publish(3, "--base-model", "org/base", "--license", "mit", repo="org/other").exit_code == 0
    assert b"base_model: org/base\n" in there.files("org/other")["README.md"]


def test_a_path_of_this_machine_in_the_configuration_is_told(
    store: Store, there: FakeHub, on_hub: Base, publish: Publish, tmp_path: Path
) -> None:
    made_of(store, tmp_path / "adapter", on_hub, config={"base_model_name_or_path": "/home/ann/models/base"})
    done = publish(1)
    assert f"warning: {CONFIG} publishes a path of a local machine: /home/ann/models/base" in done.err
    assert there.files(REPO)[CONFIG] == (tmp_path / "adapter" / CONFIG).read_bytes()


def test_a_gitignore_that_leaves_files_out_is_noticed(
    store: Store, there: FakeHub, made: Version, publish: Publish
) -> None:
    there.make(REPO, private=True)
    there.change(REPO, {".gitignore": WEIGHTS.encode()}, title="Ignore")
    is_refused(publish(1, "--force", "--reason", "x"), 1, "does not hold what was published", ".gitignore")
    assert store.publications(ref(1)) == ()


@pytest.mark.parametrize("repo", ["calm", "org/calm@main", "/org/calm", "org/calm/deep", "org/..", "org/ca lm"])
def test_a_name_that_is_no_repositorys(there: FakeHub, made: Version, publish: Publish, repo: str) -> None:
    is_refused(publish(1, repo=repo), 2, "is no repository's name", "ORG/NAME")


def test_the_newest_merged_model_is_published_as_a_model(
    store: Store, there: FakeHub, made: Version, publish: Publish, tmp_path: Path
) -> None:
    is_refused(publish(1, "--merged"), 5, f"there is no merged model of {NAME}/1", f"loradock merge {NAME}/1")
    for number in (1, 2):
        directory = write_adapter(tmp_path / f"merged-{number}", seed=number + 5)
        (directory / "config.json").write_text('{"model_type": "llama", "_name_or_path": "base"}')
        (directory / CONFIG).unlink()
        kind = {"digest": artifact.write_manifest(directory).digest, "method": MERGED, "parents": (f"{NAME}/1",)}
        with store.run("merge", {}) as run_id:
            store.put_adapter(directory, name="m", facts=made.facts.model_copy(update={**kind, "run_id": run_id}))
        register(store, run_id, f"{NAME}-merged")
    done = publish(1, "--merged")
    assert done.exit_code == 0, done.err
    assert json.loads(done.out)["version"] == f"{NAME}-merged/2"
    card = there.files(REPO)["README.md"].decode()
    for word in ("library_name: transformers", "base_model_relation: finetune", f"vllm serve {REPO}", f"`{NAME}/1`"):
        assert word in card
    assert "PeftModel" not in card


def test_a_publication_can_be_written_twice_and_keeps_the_version(store: Store, made: Version) -> None:
    told = Publication(repo=REPO, revision="a" * 40, at=datetime(2026, 1, 2, tzinfo=UTC))
    for _ in range(2):
        store.add_publication(ref(1), told)
    assert store.publications(ref(1)) == (told,)
    assert promotion.resolve(store, ref(1)).facts == made.facts
