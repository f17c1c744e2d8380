"""Ed25519 public keys as SSH writes them: `ssh-ed25519 AAAA... COMMENT`, the content of an id_ed25519.pub."""

from __future__ import annotations

import base64
import binascii
from typing import Final

_KIND: Final = "ssh-ed25519"
_BEFORE: Final = b"\x00\x00\x00\x0b" + _KIND.encode() + b"\x00\x00\x00\x20"  # RFC 8709: both parts with their lengths


def parse(text: str) -> bytes:
    """The 32 bytes of a key; raises ValueError."""
    kind, _, rest = text.strip().partition(" ")
    try:
        found = base64.b64decode(rest.split(" ")[0], validate=True)
    except binascii.Error:
        found = b""
    if kind != _KIND or not found.startswith(_BEFORE) or len(found) != len(_BEFORE) + 32:
        raise ValueError(f"is no public key of SSH's kind {_KIND}, which `cat ~/.ssh/id_ed25519.pub` prints")
    return found[len(_BEFORE) :]
