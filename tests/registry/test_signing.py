"""Entries that are signed: whose signature a policy asks for, and what a history is worth that lacks one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from loradock.registry import entries, history, promotion, signing, traffic
from loradock.registry.entries import set_policy
from loradock.registry.errors import BadInput, Unsigned
from loradock.registry.policy import parse
from loradock.registry.records import Move, parse_entry
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.serving.continuity import Continuity
from tests.support.adapters import NAME, aliases, make_version, ref
from tests.support.shell import loradock


class Person:
    """Somebody with a key of his own, as `ssh-keygen -t ed25519` makes one."""

    def __init__(self, store: Store, directory: Path, name: str) -> None:
        self.file = directory / f"id_{name}"
        key = Ed25519PrivateKey.generate()
        self.file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        self.public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        self.store = Store(store.settings.model_copy(update={"signing_key_file": self.file}))
        self.name = name

    def asks(self, *signers: Person) -> str:
        """Set a policy by which these sign for production; returns it."""
        text = json.dumps({"production": {"signed_by": {one.name: f"{one.public} {one.name}@org" for one in signers}}})
        set_policy(self.store, NAME, text, actor=self.name)
        return text


@pytest.fixture
def ann(store: Store, tmp_path: Path) -> Person:
    for seed in range(3):
        make_version(store, tmp_path / str(seed), seed=seed)
    return Person(store, tmp_path, "ann")


@pytest.fixture
def bob(store: Store, tmp_path: Path) -> Person:
    return Person(store, tmp_path, "bob")


def written(store: Store) -> list[str]:
    return [type(entry).__name__ for entry in history.read(store, NAME).entries]


def test_who_has_a_key_signs_and_history_tells_it(store: Store, ann: Person) -> None:
    ann.asks(ann)
    promotion.promote(ann.store, ref(1), "production", actor="ann")
    promotion.promote(store, ref(1), "staging", actor="carl")
    told = json.loads(loradock("history", NAME, "--json").out)
    assert [(entry["op"], entry.get("key", "")) for entry in told] == [
        ("policy", ann.public),
        ("promote", ann.public),
        ("promote", ""),
    ]
    table = loradock("history", NAME).out.splitlines()
    assert ["signed by ann" in line for line in table if "promote" in line] == [True, False]


def writings(person: Person, other: Store) -> Iterator[tuple[str, Callable[[], object]]]:
    yield "promote", lambda: promotion.promote(other, ref(2), "production", actor="x")
    yield "force", lambda: promotion.promote(other, ref(2), "production", actor="x", reason="y", force=True)
    yield "rollback", lambda: promotion.rollback(other, NAME, "production", actor="x")
    yield "policy", lambda: set_policy(other, NAME, "production: {effect: false}", actor="x")
    past = history.read(person.store, NAME)
    yield "delete", lambda: entries.remove(other, NAME, (3,), actor="x", reason="", decided_on=past)


def test_nobody_else_moves_the_alias_changes_the_policy_or_deletes(store: Store, ann: Person, bob: Person) -> None:
    ann.asks(ann)
    for number in (1, 3):
        promotion.promote(ann.store, ref(number), "production", actor="ann")
    before = written(store)
    for other in (store, bob.store):
        for _, write in writings(ann, other):
            with pytest.raises(Unsigned, match=r"needs the signature of ann"):
                write()
    assert written(store) == before
    assert aliases(store) == {"production": 3}
    for what, write in writings(ann, ann.store):
        if what != "policy":
            write()
    assert aliases(store) == {"production": 3}  # promoted to 2, forced there, and rolled back


def test_aliases_that_the_policy_does_not_name_are_free(store: Store, ann: Person) -> None:
    ann.asks(ann)
    promotion.promote(store, ref(2), "canary", actor="carl")
    traffic.set_share(store, ref(2), "canary", 0.1, actor="carl")
    assert aliases(store) == {"canary": 2}


def test_the_first_policy_needs_one_of_its_own_signers_and_the_next_one_of_those_before(
    store: Store, ann: Person, bob: Person
) -> None:
    for person in (bob, Person(store, ann.file.parent, "carl")):
        with pytest.raises(Unsigned, match="needs the signature of ann"):
            person.asks(ann)
    ann.asks(ann)
    with pytest.raises(Unsigned, match="needs the signature of ann"):
        bob.asks(ann, bob)
    ann.asks(ann, bob)
    bob.asks(bob)
    with pytest.raises(Unsigned, match="needs the signature of bob"):
        ann.asks(ann)


def unsigned(move: Move, **otherwise: object) -> Move:
    return move.model_copy(update={"key": "", "signature": "", **otherwise})


@pytest.mark.parametrize(
    ("forge", "told"),
    [
        (unsigned, "needs the signature of ann"),
        (lambda move: unsigned(move, key=move.key), "has a signature that is not of this entry"),
        (lambda move: move.model_copy(update={"to_version": 1}), "has a signature that is not of this entry"),
        (lambda move: move.model_copy(update={"signature": "x"}), "has a signature that is not of this entry"),
    ],
)
def test_an_entry_that_was_written_past_loradock_is_found_by_all_who_read(
    store: Store, ann: Person, forge: Callable[[Move], Move], told: str
) -> None:
    ann.asks(ann)
    before = promotion.promote(ann.store, ref(1), "production", actor="ann")
    assert before
    past = history.read(store, NAME)
    meant = before.model_copy(update={"seq": past.end, "prev": history.link(past.last), "to_version": 2})
    forged = forge(signing.sign(meant, NAME, signing.load(ann.file)))
    assert store.append(past.family, past.ledger, past.end, forged.canonical(), carry={})
    with pytest.raises(Unsigned, match=f"entry 2 {told}"):
        history.read(store, NAME)
    with pytest.raises(Unsigned, match=f"entry 2 {told}"):
        promotion.promote(ann.store, ref(3), "production", actor="ann")
    done = loradock("verify", "--all")
    assert (done.exit_code, f"entry 2 {told}" in done.out + done.err) == (3, True)
    replica = Continuity(store.settings, lambda: store)
    replica.saw([store.family(NAME)])
    assert told in replica.audit()[NAME]


def test_a_signature_holds_at_its_place_of_its_history_only(store: Store, ann: Person) -> None:
    ann.asks(ann)
    text = history.read(store, NAME).last
    entry = parse_entry(text)
    signing.require(NAME, None, entry, text)
    with pytest.raises(Unsigned, match="not of this entry"):
        signing.require("another-bot", None, entry, text)
    moved = entry.model_copy(update={"prev": "0" * 64})
    with pytest.raises(Unsigned, match="not of this entry"):
        signing.require(NAME, None, moved, moved.canonical())


def test_the_end_of_a_long_history_is_held_to_the_policy_too(ann: Person) -> None:
    ann.store.entries_per_run = 3
    ann.asks(ann)
    for number in (1, 2, 3, 1, 2, 3, 1):
        promotion.promote(ann.store, ref(number), "production", actor="ann")
    elsewhere = Store(ann.store.settings.model_copy(update={"signing_key_file": None}))
    with pytest.raises(Unsigned, match="entry 8 needs the signature of ann"):
        promotion.promote(elsewhere, ref(2), "production", actor="x")
    assert history.read(elsewhere, NAME, whole=False).heads["production"].to_version == 1


def test_an_entry_without_a_signature_is_written_as_before_there_were_any(store: Store, ann: Person) -> None:
    promotion.promote(store, ref(1), "production", actor="ann")
    assert {"key", "signature"}.isdisjoint(json.loads(history.read(store, NAME).last))


def test_a_key_that_cannot_sign_is_one_line_and_nothing_is_written(store: Store, ann: Person, tmp_path: Path) -> None:
    files = {
        "cannot be read: No such file": None,
        "no private key that can be read": b"nothing\n",
        "or one with a passphrase": Ed25519PrivateKey.generate().private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
        ),
        "of another kind than Ed25519": generate_private_key(65537, 2048).private_bytes(
            Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()
        ),
        "holds no private key": ann.public.encode(),
    }
    for told, content in files.items():
        file = tmp_path / "key"
        file.unlink(missing_ok=True)
        if content:
            file.write_bytes(content)
        settings = store.settings.model_copy(update={"signing_key_file": file})
        with pytest.raises(BadInput, match=told) as caught:
            promotion.promote(Store(settings), ref(1), "production", actor="ann")
        assert "ssh-keygen -t ed25519" in caught.value.text
    assert written(store) == []


def test_a_key_as_openssl_writes_it_signs_too(store: Store, ann: Person, tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    promotion.promote(
        Store(store.settings.model_copy(update={"signing_key_file": file})), ref(1), "production", actor="ann"
    )
    assert history.read(store, NAME).entries[0].signature


@pytest.mark.parametrize("key", ["", "ann", "ssh-rsa AAAA", "ssh-ed25519 AAAA", "ssh-ed25519 !"])
def test_a_policy_names_public_keys_or_is_refused(key: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse(json.dumps({"production": {"signed_by": {"ann": key}}}))
    assert "production.signed_by.ann" in caught.value.text
    assert "ssh-ed25519" in caught.value.text


def test_a_name_has_one_key_in_a_policy(ann: Person, bob: Person) -> None:
    rules = {alias: {"signed_by": {"ann": one.public}} for alias, one in (("production", ann), ("canary", bob))}
    with pytest.raises(BadInput) as caught:
        parse(json.dumps(rules))
    assert "ann has two keys" in caught.value.text


def test_the_setting_names_a_file(monkeypatch: pytest.MonkeyPatch, ann: Person) -> None:
    monkeypatch.setenv("LORADOCK_SIGNING_KEY_FILE", str(ann.file))
    assert Settings().signing_key_file == ann.file
