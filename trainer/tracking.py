"""A training as an MLflow run; the only file of this package that imports mlflow."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

from registry.errors import LoradockError, Unreachable
from registry.records import Facts
from registry.settings import Settings
from registry.store import Store, experiment_id, translated
from trainer.curves import Curves

_REASON: Final = "loradock.reason"
_BATCH: Final = 100  # MLflow takes 100 params, and 1,000 metrics, in one call


class Run:
    """One MLflow run that is under way."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._client = store.client
        self._uri = store.uri
        self._waiting: list[Metric] = []
        self.name = name
        experiment = experiment_id(store.client, store.settings, store.settings.experiment)
        with translated(self._uri):
            self.id: str = self._client.create_run(experiment, run_name=name).info.run_id

    def parameters(self, values: Mapping[str, str]) -> None:
        """Log what was decided before the first step."""
        params = [Param(key, value) for key, value in values.items()]
        with translated(self._uri):
            for start in range(0, len(params), _BATCH):
                self._client.log_batch(self.id, params=params[start : start + _BATCH], synchronous=True)

    def tags(self, values: Mapping[str, str]) -> None:
        """Tag the run."""
        with translated(self._uri):
            self._client.log_batch(self.id, tags=[RunTag(*item) for item in values.items()], synchronous=True)

    def text(self, text: str, file: str) -> None:
        """Keep a text with the run, verbatim."""
        with translated(self._uri):
            self._client.log_text(self.id, text, file)

    def data(self, name: str, digest: str, rows: int) -> None:
        """Name the data as an input of the run; MLflow keeps 36 digits of the digest."""
        source = Dataset(name, digest[:36], "local", json.dumps({"uri": name}), profile=json.dumps({"num_rows": rows}))
        with translated(self._uri):
            self._client.log_inputs(self.id, [DatasetInput(source, [InputTag("mlflow.data.context", "training")])])

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        """Log metrics of one step; while MLflow is out of reach they wait, and the training goes on."""
        now = int(time.time() * 1000)
        self._waiting += (Metric(name, value, now, step) for name, value in values.items())
        with suppress(Unreachable):
            self._send()

    def finish(self, curves: Curves, facts: Facts, directory: Path) -> str:
        """Log what is left and hand the adapter over, last; returns the adapter's source URI."""
        self._send()
        with translated(self._uri):
            self._client.log_figure(self.id, curves.plot(self.name), "loss.png")
        return self._store.put_adapter(directory, name=self.name, facts=facts)

    def end(self, status: str, reason: str = "") -> None:
        """Close the run as FINISHED, FAILED or KILLED."""
        with translated(self._uri):
            if reason:
                self._client.set_tag(self.id, _REASON, reason[:500])
            self._client.set_terminated(self.id, status)

    def _send(self) -> None:
        with translated(self._uri):
            while self._waiting:
                self._client.log_batch(self.id, metrics=self._waiting[:_BATCH], synchronous=True)
                del self._waiting[:_BATCH]


@contextmanager
def started(settings: Settings, name: str) -> Iterator[Run]:
    """A new run, which ends as FINISHED, as FAILED with the error, or as KILLED when it is interrupted.

    SIGTERM interrupts like Ctrl-C while the run is open.
    """
    run = Run(Store(settings), name)
    try:
        with _terminable():
            yield run
            run.end("FINISHED")
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        _close(run, "KILLED", "interrupted")
        raise
    except BaseException as error:
        problems = "; ".join(getattr(error, "problems", ()))
        said = str(error) if isinstance(error, LoradockError) else f"{type(error).__name__}: {error}"
        _close(run, "FAILED", f"{said}: {problems}" if problems else said)
        raise


def _close(run: Run, status: str, reason: str) -> None:
    with suppress(LoradockError):  # the error that ended the run is the one to tell
        run.end(status, reason)


@contextmanager
def _terminable() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
