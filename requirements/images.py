"""Write the digest of each image beside its tag, in Dockerfile and docker-compose.yml: `make digests`.

A tag can be moved by whoever owns it, or the registry; a digest is the image's own hash, of all its platforms. It is
asked of the registry that the image's name says, and counted from what that hands out. A registry that cannot be
reached leaves its images as they are, and ends this with an error.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = (ROOT / "Dockerfile", ROOT / "docker-compose.yml")
HOSTS = {"docker.io": "registry-1.docker.io"}
IMAGE = re.compile(
    r"\b(?P<tagged>(?P<host>docker\.io)/(?P<name>[a-z0-9/._-]+):(?P<tag>[\w.-]+))(@sha256:[0-9a-f]{64})?"
)
KINDS = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json"


def digest(registry: str, name: str, tag: str) -> str:
    """The digest of an image's index, by OCI's distribution protocol; raises OSError."""
    url = f"{registry}/v2/{name}/manifests/{tag}"
    try:
        manifest = _get(url, accept=KINDS)
    except urllib.error.HTTPError as error:
        with error:
            challenge = dict(re.findall(r'(\w+)="([^"]*)"', error.headers.get("WWW-Authenticate", "")))
        if error.code != 401 or "realm" not in challenge:
            raise
        asked = urllib.parse.urlencode({key: challenge[key] for key in ("service", "scope") if key in challenge})
        token = json.loads(_get(f"{challenge['realm']}?{asked}", accept="application/json"))["token"]
        manifest = _get(url, accept=KINDS, authorization=f"Bearer {token}")
    return f"sha256:{hashlib.sha256(manifest).hexdigest()}"


def _get(url: str, **headers: str) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:  # noqa: S310
        return bytes(answer.read())


def pinned(text: str, ask: Callable[[re.Match[str]], str]) -> str:
    """A file's text with each image by the digest that it has now."""
    return IMAGE.sub(lambda found: f"{found['tagged']}@{ask(found)}", text)


def main() -> None:
    """Ask all, then write."""
    known: dict[str, str] = {}

    def ask(found: re.Match[str]) -> str:
        tagged = found["tagged"]
        if tagged not in known:
            try:
                known[tagged] = digest(f"https://{HOSTS[found['host']]}", found["name"], found["tag"])
            except OSError as error:
                sys.exit(f"nothing was written, since {tagged} was not found: {getattr(error, 'reason', error)}")
            print(f"{tagged}@{known[tagged]}")
        return known[tagged]

    texts = {path: pinned(path.read_text(encoding="utf-8"), ask) for path in FILES}
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
