"""Which versions go and which stay, and that a clean-up beside promoters, or killed, loses none that is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import pytest
from click.testing import CliRunner

from loradock.cli.gc import gc as command
from loradock.registry import artifact, entries, gc, history, promotion, versions
from loradock.registry.errors import BadInput, LoradockError, NotFound, Unreachable
from loradock.registry.gc import Go, Known, Rules, Stay
from loradock.registry.records import Version
from loradock.registry.refs import AliasRef, VersionRef
from loradock.registry.settings import Settings
from loradock.registry.store import Store, candidates
from loradock.registry.store.lineage import Publication, publication_tag
from tests.support import warm
from tests.support.adapters import NAME, aliases, log_adapter, make_version, put, ref, write_adapter
from tests.support.mlflow_server import MLflowServer
from tests.support.registry.forgetful import Forgetful
from tests.support.registry.killed import Killed, KilledAtCall
from tests.support.serving.status import STATUS, answering
from tests.support.waiting import until
from tests.support.web import running

DAY = timedelta(days=1)
NONE = Rules(keep=0, window=timedelta(0), min_age=timedelta(0))
"""What needs nothing now goes."""


@pytest.fixture
def whole(settings: Settings) -> Store:
    return Store(settings)


@pytest.fixture
def six(whole: Store, tmp_path: Path) -> Store:
    """A family of six versions, of which production stood at the first three, one after the other."""
    for seed in range(6):
        make_version(whole, tmp_path / str(seed), seed=seed)
    for number in (1, 2, 3):
        promotion.promote(whole, ref(number), "production", actor="ann")
    return whole


def decided(store: Store, rules: Rules, *, later: timedelta = timedelta(0), **known: Any) -> dict[int, tuple[str, ...]]:
    """Why each version stays; without an entry, it goes."""
    found = gc.look(store, NAME, {})
    known = {"made_from": found.made_from, "reported": {}} | known
    plan = gc.plan(Known(found.past, found.held, **known), rules, now=datetime.now(UTC) + later)
    return {one.ref.number: one.why for one in plan if isinstance(one, Stay)}


def collect(store: Store, rules: Rules = NONE, name: str = NAME) -> list[int]:
    return sorted(gone.ref.number for gone in gc.collect(store, name, rules, {}, actor="gc", reason="old"))


def numbers(store: Store, name: str = NAME) -> list[int]:
    return [version.ref.number for version in store.versions(name)]


def directory_of(store: Store, version: Version) -> Path:
    location = store.client.get_logged_model(version.source.removeprefix("models:/")).artifact_location
    return Path(location.removeprefix("file://"))


def intact(store: Store, version: Version) -> bool:
    with versions.fetched(store, version) as directory:
        return bool(artifact.verify(directory, version.facts.digest, what=str(version.ref)))


def test_what_is_needed_now_stays_and_says_by_what(six: Store) -> None:
    assert decided(six, NONE) == {3: ("production stands at it",)}
    assert decided(six, NONE, made_from={5: ("merged-bot/1",)})[5] == ("merged-bot/1 was made from it",)
    assert decided(six, NONE, reported={ref(4): "http://a"})[4] == ("the replica at http://a holds it",)
    told = Publication(repo="acme/bot", revision="9" * 40, at=datetime.now(UTC))
    six.client.set_model_version_tag(NAME, "1", publication_tag(1), told.canonical())
    assert decided(six, NONE)[1] == ("it was published as acme/bot@" + "9" * 12,)


def test_an_alias_that_mlflow_or_the_history_alone_knows_keeps_its_version(six: Store) -> None:
    six.client.set_registered_model_alias(NAME, "mine", "5")
    six.client.set_registered_model_alias(NAME, "production", "6")
    assert decided(six, NONE) == {
        3: ("production stands at it",),
        5: ("mine stands at it",),
        6: ("production stands at it",),
    }


def test_newest_and_what_could_be_rolled_back_to_stay(six: Store) -> None:
    one = decided(six, NONE.model_copy(update={"keep": 1}))
    assert one == {
        2: ("production could be rolled back to it",),
        3: ("production stands at it",),
        6: ("it is among the newest 1",),
    }
    assert decided(six, NONE.model_copy(update={"keep": 2})).keys() == {1, 2, 3, 5, 6}


def test_what_an_alias_stood_at_a_while_ago_stays(six: Store) -> None:
    window = NONE.model_copy(update={"window": 7 * DAY})
    assert decided(six, window, later=6 * DAY).keys() == {1, 2, 3}
    assert decided(six, window, later=8 * DAY).keys() == {3}
    assert decided(six, window)[1] == ("production stood at it within 7 days",)


def test_what_an_older_run_of_the_ledger_tells_counts_too(six: Store) -> None:
    six.entries_per_run = 2
    for number in (4, 5):
        promotion.promote(six, ref(number), "production", actor="ann")
    assert decided(six, NONE.model_copy(update={"window": DAY})).keys() == {1, 2, 3, 4, 5}


def test_what_is_young_stays_and_what_an_alias_has_just_left(six: Store) -> None:
    young = NONE.model_copy(update={"min_age": DAY})
    assert decided(six, young, later=timedelta(hours=23)).keys() == {1, 2, 3, 4, 5, 6}
    assert decided(six, young, later=timedelta(hours=25)).keys() == {3}
    assert "production stood at it within 1 day" in decided(six, young)[2]


def test_what_is_removed_in_history_and_still_there_is_finished_unless_something_needs_it(six: Store) -> None:
    entries.remove(six, NAME, (4, 5, 6), actor="gc", reason="", decided_on=history.read(six, NAME))
    six.client.set_registered_model_alias(NAME, "mine", "5")
    known = gc.look(six, NAME, {})
    plan = gc.plan(known, Rules(keep=2), now=datetime.now(UTC))
    assert [one for one in plan if isinstance(one, Go)] == [
        Go(ref=ref(6), why="its deletion was begun and not finished"),
        Go(ref=ref(4), why="its deletion was begun and not finished"),
    ]
    assert next(one for one in plan if one.ref.number == 5).why == ("mine stands at it",)


def test_versions_and_bytes_go_and_history_says_so(six: Store) -> None:
    before = {version.ref.number: version for version in six.versions(NAME)}
    paths = {number: directory_of(six, version) for number, version in before.items()}
    gone = list(gc.collect(six, NAME, NONE, {}, actor="gc", reason="old"))
    assert {one.ref.number for one in gone} == {1, 2, 4, 5, 6}
    assert all(one.freed > 2000 for one in gone)
    assert numbers(six) == [3]
    assert {number for number, path in paths.items() if path.exists()} == {3}
    assert intact(six, before[3])
    removal = history.read(six, NAME).entries[-1]
    assert (removal.op, removal.versions, removal.actor, removal.reason) == ("delete", (6, 5, 4, 2, 1), "gc", "old")
    assert collect(six) == []
    assert history.read(six, NAME).entries[-1] == removal
    with pytest.raises(NotFound):
        promotion.promote(six, ref(4), "production", actor="ann")
    with pytest.raises(NotFound):
        promotion.rollback(six, NAME, "production", actor="ann")
    with pytest.raises(NotFound):
        six.adapter_of(before[4].facts.run_id)


def test_bytes_that_another_version_has_stay(whole: Store, tmp_path: Path) -> None:
    run_id = log_adapter(whole, write_adapter(tmp_path / "a"))
    one, other = (versions.register(whole, run_id, name) for name in (NAME, "other-bot"))
    (gone,) = gc.collect(whole, NAME, NONE, {}, actor="gc", reason="")
    assert (gone.ref, gone.freed) == (one.ref, 0)
    assert intact(whole, other)
    assert not whole.condemned(other.source)
    (gone,) = gc.collect(whole, "other-bot", NONE, {}, actor="gc", reason="")
    assert gone.freed > 2000
    assert whole.condemned(other.source)


def test_what_was_made_or_copied_from_a_version_keeps_it(whole: Store, tmp_path: Path) -> None:
    made = [make_version(whole, tmp_path / str(seed), seed=seed) for seed in range(4)]
    whole.create_family("merged-bot")
    facts = made[0].facts.model_copy(update={"parents": (f"{NAME}/1", f"{NAME}/2"), "digest": "1" * 64})
    put(whole, "merged-bot", made[0].source, facts)
    whole.client.create_registered_model("copies")
    whole.client.copy_model_version(f"models:/{NAME}/4", "copies")
    assert gc.look(whole, NAME, {}).made_from == {1: ("merged-bot/1",), 2: ("merged-bot/1",), 4: ("copies/1",)}
    offered = facts.model_copy(update={"parents": (f"{NAME}/3",), "digest": "2" * 64})
    candidates.offer(whole, whole.family("merged-bot"), made[0].source, offered, ())  # a merge that is being registered
    assert collect(whole) == []
    whole.delete_version(candidates.same(whole, "merged-bot", "2" * 64)[0].ref)
    assert collect(whole) == [3]
    assert collect(whole, name="merged-bot") == [1]
    assert collect(whole) == [1, 2]
    assert intact(whole, made[3])


def test_an_alias_that_moves_after_the_decision_keeps_its_version(six: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    remove = entries.remove

    def late(*given: Any, **how: Any) -> Any:
        if not history.read(six, NAME).head("staging"):
            promotion.promote(six, ref(5), "staging", actor="bob")
        return remove(*given, **how)

    monkeypatch.setattr(entries, "remove", late)
    assert collect(six) == [1, 2, 4, 6]
    assert aliases(six) == {"production": 3, "staging": 5}
    assert intact(six, six.version(ref(5)))


def test_a_version_goes_only_where_it_says_itself_that_no_alias_is_there(six: Store) -> None:
    six.client.set_registered_model_alias(NAME, "by-hand", "5")
    assert collect(Forgetful(six.settings)) == [1, 2, 4, 6]
    assert aliases(six) == {"production": 3, "by-hand": 5}


def test_an_alias_that_mlflow_moves_after_the_entry_keeps_its_version(
    six: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = entries.remove

    def early(*given: Any, **how: Any) -> Any:
        written = remove(*given, **how)
        six.client.set_registered_model_alias(NAME, "mine", "5")
        return written

    monkeypatch.setattr(entries, "remove", early)
    assert collect(six) == [1, 2, 4, 6]
    assert intact(six, six.version(ref(5)))


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_step_it_is_finished_by_the_next(settings: Settings, tmp_path: Path, after: bool) -> None:
    store, died = Store(settings), 0
    kept = make_version(store, tmp_path / "kept")
    promotion.promote(store, kept.ref, "production", actor="ann")
    while True:
        old = make_version(store, tmp_path / str(died), seed=died + 1)
        path, client = directory_of(store, old), store.client
        store.client = KilledAtCall(client, died, after=after)
        try:
            finished = collect(store)
        except Killed:
            finished = None
        store.client = client
        left = collect(store)
        assert numbers(store) == [1]
        assert not path.exists()
        assert store.condemned(old.source)
        assert intact(store, kept)
        assert old.ref.number in history.read(store, NAME).removed
        if finished is not None:
            assert (finished, left) == ([old.ref.number], [])
            break
        died += 1
    assert died > 8


def test_who_registers_bytes_that_are_about_to_go_is_seen_or_sees_it(whole: Store, tmp_path: Path) -> None:
    run_id = log_adapter(whole, write_adapter(tmp_path / "a"))
    version = versions.register(whole, run_id, NAME)
    assert not whole.condemned(version.source)
    assert whole.condemn(version.source)
    assert whole.condemned(version.source)
    with pytest.raises(LoradockError, match="a clean-up deletes them"):
        versions.register(whole, run_id, "other-bot")
    assert whole.users(version.source) == (version.ref,)
    whole.spare(version.source)
    assert not whole.condemned(version.source)
    other = versions.register(whole, run_id, "other-bot")
    assert set(whole.users(version.source)) == {version.ref, other.ref}


def test_a_directory_that_is_not_the_adapters_own_is_never_deleted(
    whole: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = make_version(whole, tmp_path / "a")
    model = whole.client.get_logged_model(version.source.removeprefix("models:/"))
    model.artifact_location = tmp_path.as_uri()
    monkeypatch.setattr(type(whole.client), "get_logged_model", lambda *_: model)
    with pytest.raises(LoradockError, match="not a directory of its own"):
        whole.free(version.source)
    assert tmp_path.exists()


class FakeReplicaHandler(BaseHTTPRequestHandler):
    server: Any

    def do_GET(self) -> None:
        known = self.headers.get("Authorization") == "Bearer key" and self.path == "/loradock/status"
        self.send_response(200 if known else 401)
        self.end_headers()
        self.wfile.write(json.dumps(self.server.status).encode())

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def replica() -> Iterator[Any]:
    """A server that tells what a replica tells; `status` is what it tells."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), FakeReplicaHandler)
    server.status, server.url = STATUS, f"http://127.0.0.1:{server.server_port}"
    with running(server):
        yield server


def run(*words: str) -> Any:
    return CliRunner().invoke(
        command, [*words, "--keep", "0", "--since", "0", "--min-age", "0"], catch_exceptions=False
    )


def test_the_verb_says_what_would_go_and_why_and_deletes_at_a_yes(six: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    dry = run("--json")
    rows = {row["version"]: row for row in json.loads(dry.stdout)}
    assert rows["support-bot/3"] == {"version": "support-bot/3", "verdict": "stays", "why": ["production stands at it"]}
    assert rows["support-bot/6"]["verdict"] == "goes"
    assert "--yes 5 of 6 versions" in dry.stderr
    assert len(numbers(six)) == 6
    monkeypatch.setenv("LORADOCK_KEEP", "100")
    all_stay = CliRunner().invoke(command, ["--since", "0", "--min-age", "0", "--json"])
    assert {row["verdict"] for row in json.loads(all_stay.stdout)} == {"stays"}
    wet = run(NAME, "--yes", "--reason", "room", "--json")
    rows = {row["version"]: row for row in json.loads(wet.stdout)}
    assert (rows["support-bot/6"]["verdict"], rows["support-bot/3"]["verdict"]) == ("deleted", "stays")
    assert rows["support-bot/6"]["freed"] > 2000
    assert "5 versions deleted" in wet.stderr
    assert numbers(six) == [3]


def test_what_a_replica_holds_stays(six: Store, replica: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    row = answering(f"{NAME}/1", promoted=f"{NAME}/2")
    replica.status = STATUS | {"adapters": {NAME: row}, "resident": {f"{NAME}/4": 0}, "loading": [f"{NAME}/5"]}
    monkeypatch.setenv("VLLM_API_KEY", "key")
    monkeypatch.setenv("LORADOCK_REPLICAS", f" {replica.url}, ")
    run("--yes")
    assert numbers(six) == [1, 2, 3, 4, 5]


def test_a_replica_that_does_not_answer_or_is_none_stops_it_before_anything_goes(six: Store, replica: Any) -> None:
    with pytest.raises(Unreachable):
        run("--yes", "--replica", replica.url, "--replica", "http://127.0.0.1:9", "--api-key", "key")
    with pytest.raises(BadInput, match="asks for a key"):
        run("--yes", "--replica", replica.url)
    replica.status = STATUS | {"format": 2}
    with pytest.raises(NotFound, match="of another version of loradock"):
        run("--yes", "--replica", replica.url, "--api-key", "key")
    assert len(numbers(six)) == 6


PROMOTER = """
import json, sys
from loradock.registry import promotion
from loradock.registry.errors import LoradockError
from loradock.registry.refs import VersionRef
from loradock.registry.settings import Settings
from loradock.registry.store import Store
store = Store(Settings())
store.families()
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    told = []
    for number, alias in json.loads(line):
        try:
            move = promotion.promote(store, VersionRef("support-bot", number), alias, actor=sys.argv[1])
            told.append([number, "moved" if move else "there", ""])
        except LoradockError as error:
            told.append([number, type(error).__name__, str(error)])
    print(json.dumps(told), flush=True)
"""


class Promoters:
    """Four processes that promote what they are told to, all at once."""

    def __init__(self) -> None:
        self.processes = [
            warm.Popen(
                [sys.executable, "-c", PROMOTER, f"p{number}"],
                kind="registry",
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(4)
        ]
        assert self.told() == ["ready"] * 4

    def go(self, moves: list[list[tuple[int, str]]]) -> None:
        for process, mine in zip(self.processes, moves, strict=True):
            assert process.stdin
            process.stdin.write(json.dumps(mine) + "\n")
            process.stdin.flush()

    def told(self) -> list[Any]:
        return [json.loads(process.stdout.readline()) for process in self.processes if process.stdout]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.communicate(timeout=60)


def until_moved(store: Store, end: int) -> None:
    until(lambda: history.read(store, NAME).end > end, 60)


@pytest.mark.chance
@pytest.mark.slow
@pytest.mark.parametrize(("fixture", "window"), [("store", DAY), ("store", timedelta(0)), ("remote", timedelta(0))])
def test_of_four_promoters_and_a_clean_up_at_once_nobody_is_left_without_a_version(
    request: pytest.FixtureRequest, tmp_path: Path, fixture: str, window: timedelta
) -> None:
    request.getfixturevalue(fixture)
    store = Store(Settings())
    rules = NONE.model_copy(update={"window": window})
    first = make_version(store, tmp_path / "a")
    promotion.promote(store, first.ref, "production", actor="ann")
    gone: set[int] = set()
    moved: set[int] = {1}
    with Promoters() as promoters:
        for turn in range(3):
            new = []
            for index in range(9):  # the same bytes under digests of their own: quickly made
                facts = first.facts.model_copy(update={"digest": f"{turn:032}{index:032}"})
                new.append(put(store, NAME, first.source, facts).ref.number)
            new.pop()  # nobody promotes this one
            before = history.read(store, NAME).end
            promoters.go([[(number, f"a{k % 2}") for number in new[k::4] + new[(k + 1) % 4 :: 4]] for k in range(4)])
            if not turn:  # one moves at least, however late they come to it
                until_moved(store, before)
            gone |= set(collect(store, rules))
            told = [one for answers in promoters.told() for one in answers]
            assert {outcome for _, outcome, _ in told} <= {"moved", "there", "Conflict", "NotFound"}, told
            moved |= {number for number, outcome, _ in told if outcome == "moved"}
            past = history.read(store, NAME)
            there = set(numbers(store))
            assert set(past.family.aliases.values()) <= there
            assert past.family.aliases == {alias: past.head(alias) for alias in past.heads}
            assert not gone & there
            if window:
                assert moved <= there
    assert len(gone) >= 3
    assert len(moved) > 1
    assert store.version_at(AliasRef(NAME, "production")).ref == VersionRef(NAME, 1)
    assert intact(store, first)


@pytest.mark.slow
def test_bytes_go_through_a_servers_artifact_proxy(remote: Any, server: MLflowServer, tmp_path: Path) -> None:
    store = Store(Settings())
    old, kept = (make_version(store, tmp_path / str(seed), seed=seed) for seed in range(2))
    promotion.promote(store, kept.ref, "production", actor="ann")

    def files(version: Version) -> list[Path]:
        below = (server.directory / "artifacts").rglob(version.source.removeprefix("models:/"))
        return [file for directory in below for file in directory.rglob("*") if file.is_file()]

    assert len(files(old)) == len(files(kept)) == 3
    (gone,) = gc.collect(store, NAME, NONE, {}, actor="gc", reason="")
    assert (gone.ref, gone.freed > 2000) == (old.ref, True)
    assert files(old) == []
    assert intact(store, kept)
