"""`make digests`, at a registry that hands out images as OCI's distribution protocol says."""

from __future__ import annotations

import hashlib
import json
import urllib.error
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.support.scripts import script
from tests.support.web import running

ROOT = Path(__file__).resolve().parent.parent
INDEX = b'{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}'
DIGEST = f"sha256:{hashlib.sha256(INDEX).hexdigest()}"
images: Any = script("requirements/images.py")


class FakeRegistryHandler(BaseHTTPRequestHandler):
    """One image, for who shows the token that is given for it."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        host = self.headers["Host"]
        if url.path == "/token":
            asked = parse_qs(url.query)
            self.answer(200, json.dumps({"token": f"for {asked['service'][0]} {asked['scope'][0]}"}).encode())
        elif url.path != "/v2/library/thing/manifests/1.2-slim":
            self.answer(404, b"{}")
        elif self.headers["Authorization"] != "Bearer for registry repository:library/thing:pull":
            challenge = 'service="registry",scope="repository:library/thing:pull"'
            self.answer(401, b"{}", ("WWW-Authenticate", f'Bearer realm="http://{host}/token",{challenge}'))
        elif "application/vnd.oci.image.index.v1+json" in self.headers["Accept"]:
            self.answer(200, INDEX)
        else:
            self.answer(200, b"of one platform")

    def answer(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (*headers, ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def registry() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeRegistryHandler)
    with running(server):
        yield f"http://127.0.0.1:{server.server_port}"


def test_a_digest_is_that_of_the_index_that_the_registry_hands_out(registry: str) -> None:
    assert images.digest(registry, "library/thing", "1.2-slim") == DIGEST


def test_an_image_that_is_not_there_is_an_error(registry: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404") as missing:
        images.digest(registry, "library/thing", "1.3")
    missing.value.close()


@pytest.mark.parametrize("before", ["", f"@sha256:{'0' * 64}"])
def test_a_digest_stands_beside_its_tag_and_the_rest_stays(before: str) -> None:
    text = f"ARG X=docker.io/library/thing:1.2-slim{before}\nimage: localhost/loradock/mlflow:0.1.0\n"
    pinned = images.pinned(text, lambda found: f"sha256:of-{found['name']}-{found['tag']}")
    assert pinned == text.replace(f"slim{before}", "slim@sha256:of-library/thing-1.2-slim")


def test_every_image_of_others_is_found() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in images.FILES)
    found = [found["tagged"] for found in images.IMAGE.finditer(text)]
    assert "docker.io/library/python:3.11.16-slim-bookworm" in found
    assert len(found) == text.count("docker.io/")


def test_without_a_registry_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in images.FILES}
    monkeypatch.setitem(images.HOSTS, "docker.io", "127.0.0.1:9")
    with pytest.raises(SystemExit, match=r"nothing was written, since docker\.io/library/python"):
        images.main()
    assert {path: path.read_bytes() for path in images.FILES} == before
