from __future__ import annotations

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from loradock.registry.settings import Settings
from loradock.registry.store import names
from tests.support.web import running


class Asked(BaseHTTPRequestHandler):
    workspaces: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        self.workspaces.append(self.headers["X-MLFLOW-WORKSPACE"])
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_is_asked_in_the_workspace_that_mlflow_is_set_to() -> None:
    with running(ThreadingHTTPServer(("127.0.0.1", 0), Asked)) as server:
        for workspace in ("team-a", ""):
            settings = Settings(tracking_uri=f"http://127.0.0.1:{server.server_port}", workspace=workspace)
            with pytest.raises(OSError, match="404"):
                names.matching(settings, "")
    assert Asked.workspaces == ["team-a", None]
