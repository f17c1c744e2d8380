"""`loradock import ORG/NAME`, with the Hub's own client, against a server that answers as the Hub does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from registry import versions
from registry.artifact import CONFIG, WEIGHTS
from registry.refs import VersionRef
from registry.store import Store
from tests.adapters import write_adapter

pytestmark = pytest.mark.slow

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(SimpleHTTPRequestHandler):
    """As much of the Hub's API as fetching a repository of one commit takes; its files lie in a directory."""

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        if "/tree/" in self.path:
            found = sorted(path for path in Path(self.directory).iterdir() if path.is_file())
            self.answer([{"type": "file", "path": p.name, "size": p.stat().st_size, "oid": p.name} for p in found])
        elif "/api/" in self.path:
            self.answer({"id": "org/calm", "sha": COMMIT, "siblings": []})
        else:
            self.server.asked.append(name)  # type: ignore[attr-defined]
            self.path = f"/{name}"
            (super().do_HEAD if self.command == "HEAD" else super().do_GET)()

    def do_HEAD(self) -> None:
        self.do_GET()

    def end_headers(self) -> None:
        self.send_header("ETag", f'"{self.path}"')
        self.send_header("X-Repo-Commit", COMMIT)
        super().end_headers()

    def answer(self, found: Any) -> None:
        content = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        super().end_headers()
        self.wfile.write(content)

    def log_message(self, *given: object) -> None:
        """Be quiet."""


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    directory = write_adapter(tmp_path / "calm")
    for name in ("README.md", "tokenizer.json", "training_args.bin"):
        (directory / name).write_text("{}")
    return directory


@pytest.fixture
def from_hub(store: Store, base_dir: Path, repository: Path, tmp_path: Path) -> Iterator[tuple[Command, list[str]]]:
    """`loradock import` against a Hub, and the names of the files that it was asked for."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, directory=str(repository))) as server:
        server.asked = []  # type: ignore[attr-defined]
        Thread(target=server.serve_forever, daemon=True).start()
        environment = {
            **os.environ,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }

        def command(source: str, *options: str) -> subprocess.CompletedProcess[str]:
            program = Path(sys.executable).with_name("loradock")
            words = ["import", source, "--name", "support-bot", "--base", str(base_dir), "--json", *options]
            return subprocess.run(
                [program, *words], env=environment, capture_output=True, text=True, check=False, timeout=120
            )

        yield command, server.asked  # type: ignore[attr-defined]
        server.shutdown()


def test_an_adapter_from_the_hub_is_imported_with_its_commit(
    store: Store, from_hub: tuple[Command, list[str]], repository: Path
) -> None:
    command, asked = from_hub
    done = command("org/calm@main")
    assert done.returncode == 0, done.stderr
    version = store.version(VersionRef("support-bot", 1))
    assert json.loads(done.stdout)["digest"] == version.facts.digest
    assert set(asked) == {CONFIG, WEIGHTS}
    run = store.client.get_run(version.facts.run_id)
    assert (run.info.run_name, run.data.tags["loradock.imported_from"]) == (
        f"import org/calm@{COMMIT}",
        f"org/calm@{COMMIT}",
    )
    with versions.fetched(store, version) as found:
        assert (found / WEIGHTS).read_bytes() == (repository / WEIGHTS).read_bytes()


def test_a_pickle_on_the_hub_is_fetched_only_when_it_is_to_be_converted(
    store: Store, from_hub: tuple[Command, list[str]], repository: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    command, asked = from_hub
    torch.save(load_file(repository / WEIGHTS), repository / "adapter_model.bin")
    (repository / WEIGHTS).unlink()
    done = command("org/calm")
    assert done.returncode == 2
    assert "--convert-pickle" in done.stderr
    assert set(asked) == {CONFIG}
    done = command("org/calm", "--convert-pickle")
    assert done.returncode == 0, done.stderr
    assert set(asked) == {CONFIG, "adapter_model.bin"}
    versions.verify(store, store.version(VersionRef("support-bot", 1)))


def test_a_repository_on_the_hub_without_adapter(
    store: Store, from_hub: tuple[Command, list[str]], repository: Path
) -> None:
    (repository / CONFIG).unlink()
    done = from_hub[0]("org/calm")
    assert done.returncode == 2
    assert f"org/calm on the Hub holds no {CONFIG} at its root" in done.stderr
