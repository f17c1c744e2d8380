"""Signed entries: the Ed25519 keys that people have for SSH, and whose signature a policy demands of an entry.

A signature covers the family's name and all of the entry, with the digest of the entry before it: it holds at one place
of one history only.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from loradock.registry.errors import BadInput, Unsigned
from loradock.registry.policy import Policy
from loradock.registry.policy import parse as parse_policy
from loradock.registry.public_key import parse
from loradock.registry.records import Entry, Move, PolicyChange, Traffic, canonical_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

E = TypeVar("E", bound=Entry)

_LONGEST: Final = 65536  # bytes
VARIABLE: Final = "LORADOCK_SIGNING_KEY_FILE"


def load(path: Path) -> Ed25519PrivateKey:
    """The private key in a file, as ssh-keygen or openssl writes it; raises BadInput, which quotes nothing of it."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    hint = f"{VARIABLE} names a private key without a passphrase: ssh-keygen -t ed25519 -N '' -f FILE"
    try:
        with path.expanduser().open("rb") as file:
            text = file.read(_LONGEST)
    except (OSError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or "no such home"
        raise BadInput(f"the signing key {path} cannot be read: {why}", hint=hint) from None
    ssh = b"OPENSSH PRIVATE KEY" in text
    try:
        key = (serialization.load_ssh_private_key if ssh else serialization.load_pem_private_key)(text, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise BadInput(f"{path} holds no private key that can be read, or one with a passphrase", hint=hint) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise BadInput(f"the signing key {path} is of another kind than Ed25519", hint=hint)
    return key


def sign(entry: E, name: str, key: Ed25519PrivateKey) -> E:
    """An entry of the family `name` with its signature."""
    from cryptography.hazmat.primitives import serialization

    raw = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    unsigned = entry.model_copy(update={"key": raw.decode(), "signature": ""})
    signature = base64.b64encode(key.sign(_covered(name, unsigned.canonical()))).decode()
    return unsigned.model_copy(update={"signature": signature})


def rules(change: PolicyChange | None) -> Policy | None:
    """A policy that asks for signatures; None for any other."""
    return parse_policy(change.policy) if change and "signed_by" in change.policy else None


def demand(policy: Policy | None, entry: Entry) -> Mapping[str, str]:
    """Whose signature an entry needs, as public keys by name, under the policy before it; none where it needs none.

    What concerns one alias needs one of that alias's signers. All else needs a signer of any alias: a policy, a
    deletion or an acceptance could take away what is asked for of an alias. The first policy that asks for signatures
    needs one of its own signers, so that nobody locks everybody out.
    """
    if isinstance(entry, (Move, Traffic)):
        asked = policy.of(entry.alias) if policy else None
        return asked.signed_by if asked else {}
    new = rules(entry) if isinstance(entry, PolicyChange) else None
    return (policy.signers if policy else {}) or (new.signers if new else {})


def signers(entries: Iterable[Entry]) -> Mapping[str, str]:
    """The public keys that any policy of a history names, by name."""
    found = [policy.signers for entry in entries if isinstance(entry, PolicyChange) and (policy := rules(entry))]
    return {name: key for one in found for name, key in one.items()}


def signer(entry: Entry, known: Mapping[str, str]) -> str:
    """The name of the key that an entry names as its signer's; empty where `known` does not have it."""
    given = parse(entry.key) if entry.key else b""
    return next((name for name, key in known.items() if parse(key) == given), "")


def require(name: str, policy: Policy | None, entry: Entry, text: str) -> None:
    """Raise Unsigned where an entry lacks a signature that the policy before it asks for, or has a false one."""
    if entry.key and not _is_right(name, entry, text):
        raise Unsigned(name, entry.seq, "has a signature that is not of this entry")
    needed = demand(policy, entry)
    if needed and not signer(entry, needed):
        raise Unsigned(name, entry.seq, f"needs the signature of {' or '.join(needed)}")


def check(name: str, entries: Iterable[tuple[Entry, str]]) -> None:
    """Raise Unsigned for the first entry of a history, or of its end, whose signature is missing or not right."""
    policy: Policy | None = None
    for entry, text in entries:
        require(name, policy, entry, text)
        if isinstance(entry, PolicyChange):
            policy = rules(entry)


def _is_right(name: str, entry: Entry, text: str) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(parse(entry.key)).verify(
            base64.b64decode(entry.signature, validate=True), _covered(name, text)
        )
    except (InvalidSignature, ValueError, binascii.Error):
        return False
    return True


def _covered(name: str, text: str) -> bytes:
    """What is signed, from an entry as it is written: a field that a later loradock adds changes nothing of it."""
    fields = {key: value for key, value in json.loads(text).items() if key != "signature"}
    return f"loradock history entry\n{name}\n{canonical_json(fields)}".encode()
