"""Commands run in processes forked from one that has imported their libraries already.

`Popen` and `run` stand for those of `subprocess`, for `loradock`, `python -P -m loradock` and `python -c`: the same
code in a process of its own, a child of this one, with its own arguments, environment, directory and files. It does not
import torch, PEFT, MLflow or vLLM again, which takes longer than most of what tests ask of it. vLLM's engine and
workers below it are forked too, and so are the workers of torch's launcher. LORADOCKTEST_COLD=1 starts all of them as
users do; so does `subprocess` itself, in the tests whose point is the start.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
import types
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import util
from pathlib import Path
from typing import Any, Final, Literal

import setproctitle

ROOT: Final = Path(__file__).resolve().parents[2]
LORADOCK: Final = Path(sys.executable).with_name("loradock")
Kind = Literal["registry", "trainer", "serving"]
_MLFLOW: Final = ("mlflow.store.tracking.sqlalchemy_store", "mlflow.tracking.client", "loradock.registry.promotion")
_VLLM: Final = (
    *("vllm.entrypoints.launchers.cli_args", "vllm.entrypoints.launchers.api_server.entry"),
    *("vllm.v1.engine.async_llm", "vllm.v1.engine.core", "vllm.v1.executor.multiproc_executor"),
    *("vllm.v1.worker.cpu_worker", "vllm.model_executor.models.llama"),
)
IMPORTS: Final[Mapping[Kind, Sequence[str]]] = {
    "registry": _MLFLOW,
    "trainer": (*_MLFLOW, "peft", "trl", "loradock.trainer.run"),
    "serving": (*_MLFLOW, *_VLLM, "loradock.serving.plugin"),
}
_SET_CHILD_SUBREAPER: Final = 36  # of prctl(2)
_fresh: Final = util.spawnv_passfds


class Popen(subprocess.Popen[Any]):
    """A process as `subprocess` starts it, forked from a warm one of this kind."""

    def __init__(self, args: Sequence[str | Path], *, kind: Kind, **how: Any) -> None:
        self._kind = kind
        super().__init__([str(word) for word in args], **how)

    def _execute_child(self, *given: Any) -> None:
        cold = super()._execute_child  # type: ignore[misc]
        if os.environ.get("LORADOCKTEST_COLD"):
            cold(*given)
            return
        how = inspect.signature(cold).bind(*given).arguments
        assert not how["pass_fds"]
        assert not how["preexec_fn"]
        order = {
            "command": how["args"],
            "environ": dict(os.environ if how["env"] is None else how["env"]),
            "cwd": str(how["cwd"] or Path.cwd()),
            "session": how["start_new_session"],
        }
        ends = [how[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        self.pid = _parent(self._kind).fork(order, [own if end == -1 else end for own, end in enumerate(ends)])
        self._child_created = True
        pipes = [how[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")]
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


def run(
    command: Sequence[str | Path], *, kind: Kind, given: str = "", timeout: float | None = None, **how: Any
) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` with this text on standard input, and what it prints captured as text."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with Popen(command, kind=kind, text=True, **pipes, **how) as process:
        try:
            out, err = process.communicate(given, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


class _Parent:
    """This process's end of a warm one, which forks at each order until this end is closed."""

    def __init__(self, line: socket.socket, pid: int) -> None:
        self._lock = threading.Lock()
        self._socket, self._pid = line, pid
        atexit.register(self.close)

    def close(self) -> None:
        """Let it end."""
        self._socket.close()
        os.waitpid(self._pid, 0)

    def fork(self, order: Mapping[str, Any], files: Sequence[int]) -> int:
        """The process id of a new child of this process."""
        data = json.dumps(order).encode()
        with self._lock, _adopting():
            socket.send_fds(self._socket, [len(data).to_bytes(4, "big")], files)
            self._socket.sendall(data)
            answer = self._socket.recv(8)
        assert answer, "the warm process has ended; what it printed says why"
        return int.from_bytes(answer, "big")


_parents: dict[Kind, _Parent] = {}
_starting = threading.Lock()


def _parent(kind: Kind) -> _Parent:
    with _starting:
        if kind not in _parents:
            ours, theirs = socket.socketpair()
            with theirs:
                code = f"from tests.support.warm import serve_orders; serve_orders({theirs.fileno()}, {kind!r})"
                process = subprocess.Popen(
                    [sys.executable, "-c", code],
                    cwd=ROOT,
                    env=os.environ | {"PYTHONPATH": str(ROOT), "VLLM_TARGET_DEVICE": "cpu"},
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            process.returncode = 0  # it is waited for by its number
            _parents[kind] = _Parent(ours, process.pid)
        return _parents[kind]


@contextlib.contextmanager
def _adopting() -> Iterator[None]:
    """Processes below this one whose own parent ends become its children meanwhile."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    try:
        yield
    finally:
        libc.prctl(_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def serve_orders(fd: int, kind: Kind) -> None:
    """Be the warm process: import, fork a child at each order, and leave when nobody is there to give one."""
    for module in IMPORTS[kind]:
        importlib.import_module(module)
    setproctitle.getproctitle()  # it finds its place by the environment's, which each child replaces
    gc.freeze()
    _serve(socket.socket(fileno=fd), kind)


def _serve(line: socket.socket, kind: Kind) -> None:
    with line:
        while True:
            head, files, _, _ = socket.recv_fds(line, 4, 3)
            if not head:
                os._exit(0)
            data = line.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)
            read, write = os.pipe()
            middle = os.fork()
            parent = os.getpid()
            if not middle and (child := os.fork()):
                os.write(write, child.to_bytes(8, "big"))
                os._exit(0)  # so that whoever gave the order becomes the child's parent
            if not middle:
                while os.getppid() == parent:  # until it has exited
                    os.sched_yield()
                break
            os.close(write)
            os.waitpid(middle, 0)
            line.sendall(os.read(read, 8))
            for each in (read, *files):
                os.close(each)
    _obey(json.loads(data), files, kind)


def _obey(order: Mapping[str, Any], files: Sequence[int], kind: Kind) -> None:
    """In the child: take on what was ordered, and run it to its end, which is the interpreter's."""
    if order["session"]:
        os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
    _close_all_but(())
    os.chdir(order["cwd"])
    threads = order["environ"].get("OMP_NUM_THREADS")
    if threads and threads != os.environ.get("OMP_NUM_THREADS") and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(threads))
    os.environ.clear()
    os.environ.update(order["environ"])
    setproctitle.setproctitle(" ".join(order["command"]))
    util.spawnv_passfds = _forked_for_multiprocessing
    sys.path[0] = order["cwd"]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    _, *words = order["command"]
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), vars(main))  # noqa: S102 - it is what `python -c` does
        return
    if "-m" in words[:2]:
        del words[: words.index("loradock") + 1]
    if "--processes" in words and "LOCAL_RANK" not in os.environ:
        _warm_the_launcher(kind)
    sys.argv = [str(LORADOCK), *words]
    from loradock.cli import main as loradock

    loradock()


def _warm_the_launcher(kind: Kind) -> None:
    """Let torch's launcher have its workers from a process that is forked from this one before it has threads."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    ours, theirs = socket.socketpair()
    if pid := os.fork():
        theirs.close()
        _parents[kind] = _Parent(ours, pid)
        subprocess_handler.Popen = functools.partial(Popen, kind=kind)
        return
    ours.close()
    os.setsid()
    _serve(theirs, kind)
    raise SystemExit  # a worker has done its work, as its interpreter would


def _forked_for_multiprocessing(path: bytes, words: Sequence[str], kept: Sequence[int]) -> int:
    """Start what `multiprocessing` spawns: it has the files of a fresh interpreter, and this one's memory."""
    *_, code, option = words
    if option != "--multiprocessing-fork":
        return _fresh(path, words, kept)
    if child := os.fork():
        return child
    status = 1
    try:
        asyncio._set_running_loop(None)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _close_all_but(kept)
        sys.argv = ["-c", option]
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102 - multiprocessing's own line
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - it is told as an interpreter tells it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _close_all_but(kept: Sequence[int]) -> None:
    """Close every file but the standard three and these."""
    for file in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        if file > 2 and file not in kept:
            with contextlib.suppress(OSError):  # the listing's own
                os.close(file)
