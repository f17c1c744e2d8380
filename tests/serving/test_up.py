"""`loradock up`: real processes, a real MLflow server, a real replica, and nothing left of them."""

from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from loradock.registry import promotion
from loradock.registry.base import LocalBase
from loradock.registry.errors import BadInput, LoradockError, NotFound
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.serving import up
from loradock.serving.up import Part, Wish
from tests.support.adapters import SMOL, make_version
from tests.support.ports import free_port
from tests.support.serving.up import family, running
from tests.support.waiting import until

OTHER = SMOL.model_copy(update={"id": "acme/other"})
HTTP = "import sys; from http.server import *; ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), {}).serve_forever()"
SERVES = HTTP.format("SimpleHTTPRequestHandler")
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SERVES}"
LEAVES_A_CHILD = (
    "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); " + SERVES
)


def part(directory: Path, name: str, code: str, *, grace: float = 20) -> Part:
    port = free_port()
    command = (sys.executable, "-u", "-c", code, str(port))
    return Part(name, command, f"http://127.0.0.1:{port}", "/", directory / f"{name}.log", grace=grace)


def listens(one: Part) -> bool:
    try:
        httpx.get(one.url, timeout=5)
    except httpx.HTTPError:
        return False
    return True


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.chance
@pytest.mark.parametrize("code", [SERVES, STUBBORN, LEAVES_A_CHILD])
def test_when_one_part_ends_by_itself_the_other_goes_with_all_it_started(tmp_path: Path, code: str) -> None:
    trigger = tmp_path / "end"
    waits = f"while not os.path.exists({str(trigger)!r}): time.sleep(0.05)"
    dies = f"import os, time\nprint('the last words')\n{waits}\nexit(7)"
    other, ends = part(tmp_path, "other", code, grace=1), part(tmp_path, "ends", dies)
    seen: list[psutil.Process] = []
    before = psutil.Process().children(recursive=True)

    def told(one: Part) -> None:
        assert one == other
        seen.extend(child for child in psutil.Process().children(recursive=True) if child not in before)
        trigger.touch()

    with pytest.raises(LoradockError, match="ends ended with exit code 7") as error:
        up.run([other, ends], told)
    assert error.value.problems == ("the last words",)
    assert str(ends.log) in error.value.hint
    assert len(seen) >= 2 + (code == LEAVES_A_CHILD)
    assert all(is_gone(process) for process in seen)
    assert not listens(other)


def test_a_part_that_is_killed_is_told_by_its_signal(tmp_path: Path) -> None:
    with pytest.raises(LoradockError, match="short ended by SIGKILL"):
        up.run([part(tmp_path, "short", "import os; os.kill(os.getpid(), 9)")], lambda _: None)


def test_a_port_that_is_taken_is_refused_before_anything_starts(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for wish, option in ((Wish(None, free_port(), port), "--ui-port"), (Wish(None, port, free_port()), "--port")):
            with pytest.raises(BadInput, match=f"cannot listen on 127.0.0.1:{port}") as error:
                up.plan(wish, settings)
            assert error.value.hint.endswith(f"another {option}")
        assert up.plan(Wish(None, port, free_port(), serve=False), settings)[0].name == up.UI
    with pytest.raises(BadInput, match="both"):
        up.plan(Wish(None, 9, 9), settings)
    assert not (settings.root / "logs").exists()


def test_another_store_than_the_embedded_one_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(BadInput, match="MLFLOW_TRACKING_URI"):
        up.plan(Wish(None, free_port(), free_port()), Settings())


def test_the_base_is_that_of_what_is_promoted(store: Store, base: LocalBase, tmp_path: Path) -> None:
    wish = Wish(None, free_port(), free_port())
    assert [one.name for one in up.plan(wish, store.settings)] == [up.UI]
    for name, trained_on in (("bot", base.base), ("cat", OTHER)):
        version = make_version(store, tmp_path / name, name, base=trained_on)
        if name == "cat":
            command = up.plan(wish, store.settings)[1].command
            assert command[command.index("--base") + 1] == base.base.id
        promotion.promote(store, version.ref, "production", actor="tester")
    with pytest.raises(BadInput, match="several bases") as error:
        up.plan(wish, store.settings)
    assert set(error.value.problems) == {base.base.id, OTHER.id}
    with pytest.raises(NotFound, match="no-such-base"):
        up.plan(Wish("no-such-base", free_port(), free_port()), store.settings)


@pytest.mark.slow
def test_the_interface_alone_and_what_is_said_when_it_is_killed(home: Path, tmp_path: Path) -> None:
    log, url = tmp_path / "up.log", f"http://127.0.0.1:{(port := free_port())}"
    with running(home, log, "--no-serve", "--ui-port", str(port)) as process:
        until(lambda: f"is at {url}" in log.read_text(), 120, log)
        assert httpx.get(url, timeout=30).status_code == 200
        everyone = family(process)
        everyone[1].kill()
        assert process.wait(timeout=60) == 1
        assert "MLflow's UI ended by SIGKILL, and the rest was stopped" in log.read_text()
        assert str(home / "logs" / f"mlflow-{port}.log") in log.read_text()
        assert all(is_gone(one) for one in everyone)


@pytest.mark.slow
def test_both_come_up_with_nothing_promoted_and_go_on_a_signal(home: Path, base: LocalBase, tmp_path: Path) -> None:
    log, port, ui_port = tmp_path / "up.log", free_port(), free_port()
    words = ("--base", base.base.id, "--port", str(port), "--ui-port", str(ui_port), "--", "--max-model-len", "512")
    with running(home, log, *words) as process:
        until(lambda: "answers at" in log.read_text() or not process.is_running(), 600, log)
        until(lambda: f"is at http://127.0.0.1:{ui_port}" in log.read_text(), 60, log)
        assert httpx.get(f"http://127.0.0.1:{ui_port}", timeout=60).status_code == 200
        assert httpx.get(f"http://127.0.0.1:{port}/loradock/ready", timeout=60).json()["ready"] is True
        assert f"loradock status --replica http://127.0.0.1:{port}" in log.read_text()
        everyone = family(process)
        assert len(everyone) > 3
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0, log.read_text()
        assert log.read_text().endswith("stopped\n")
        assert all(is_gone(one) for one in everyone)
