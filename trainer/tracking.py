"""A training as an MLflow run; the only file of this package that imports mlflow."""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

from loradock.registry.errors import LoradockError, NotFound, Unreachable
from loradock.registry.records import Facts
from loradock.registry.store import Store, default_store, experiment_id, translated, upsert

_REASON: Final = "loradock.reason"
_LONGEST: Final = 6000  # characters of a param's value that MLflow keeps
_BATCH: Final = 100  # MLflow takes 100 params, and 1,000 metrics, in one call


class Run:
    """One MLflow run that is under way."""

    def __init__(self, store: Store, run_id: str, logged: int = -1) -> None:
        self._store = store
        self._client = store.client
        self._uri = store.uri
        self._waiting: list[Metric] = []
        self._logged = logged  # the last step whose metrics the run has, from before it was interrupted
        self.id = run_id

    def parameters(self, values: Mapping[str, str]) -> None:
        """Log what was decided before the first step, cut to what MLflow keeps; the same again changes nothing."""
        params = [Param(key, value[:_LONGEST]) for key, value in values.items()]
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
        read = DatasetInput(source, [InputTag("mlflow.data.context", "training")])
        with translated(self._uri):
            upsert(lambda: self._client.log_inputs(self.id, [read]))

    def figure(self, figure: Any, file: str) -> None:
        """Keep a picture with the run."""
        with translated(self._uri):
            self._client.log_figure(self.id, figure, file)

    def table(self, columns: Mapping[str, list[str]], file: str) -> None:
        """Keep a table with the run, which MLflow's UI shows as one."""
        with translated(self._uri), default_store(self._uri):
            self._client.log_table(self.id, dict(columns), file)

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        """Log metrics of one step; while MLflow is out of reach they wait, and the training goes on.

        A step that the run had before it was interrupted is not logged twice.
        """
        if step <= self._logged:
            return
        now = int(time.time() * 1000)
        self._waiting += (Metric(name, value, now, step) for name, value in values.items())
        with suppress(Unreachable):
            self.flush()

    def ended(self, step: int, values: Mapping[str, float]) -> None:
        """Log what the training came to."""
        now = int(time.time() * 1000)
        self._waiting += (Metric(name, value, now, step) for name, value in values.items())

    def finish(self, facts: Facts, directory: Path, *, name: str) -> str:
        """Log what is left and hand the adapter over, last; returns the adapter's source URI."""
        self.flush()
        return self._store.put_adapter(directory, name=name, facts=facts)

    def end(self, status: str, reason: str = "") -> None:
        """Close the run as FINISHED, FAILED or KILLED."""
        with translated(self._uri):
            if reason:
                self._client.set_tag(self.id, _REASON, reason[:500])
            self._client.set_terminated(self.id, status)

    def history(self, *, until: int) -> dict[str, list[tuple[int, float]]]:
        """Every metric of the training that the run has, as (step, value), up to a step."""
        with translated(self._uri):
            names = [name for name in self._client.get_run(self.id).data.metrics if not name.startswith("system/")]
            found = {name: self._client.get_metric_history(self.id, name) for name in names}
        return {
            name: sorted({metric.step: metric.value for metric in metrics if metric.step <= until}.items())
            for name, metrics in found.items()
        }

    def flush(self) -> None:
        """Log what waits."""
        with translated(self._uri):
            while self._waiting:
                self._client.log_batch(self.id, metrics=self._waiting[:_BATCH], synchronous=True)
                del self._waiting[:_BATCH]


class Silent:
    """The run in a process beside the main one: it has an id, and keeps nothing."""

    def __init__(self, run_id: str) -> None:
        self.id = run_id

    def __getattr__(self, name: str) -> Callable[..., None]:
        return _nothing

    def history(self, *, until: int) -> dict[str, list[tuple[int, float]]]:
        """Nothing: the main process has it."""
        return {}


def _nothing(*_: Any, **__: Any) -> None:
    pass


def create(store: Store, name: str) -> str:
    """A new run's id."""
    experiment = experiment_id(store.client, store.settings, store.settings.experiment)
    with translated(store.uri):
        run_id: str = store.client.create_run(experiment, run_name=name).info.run_id
    return run_id


def status(store: Store, run_id: str) -> str:
    """MLflow's word for how a run stands; empty when the store has no such run."""
    try:
        with translated(store.uri, f"run {run_id!r}"):
            found: str = store.client.get_run(run_id).info.status
    except NotFound:
        return ""
    return found


def bury(store: Store, run_id: str) -> None:
    """Close a run whose process is gone without a word, as one that was killed with SIGKILL is."""
    _close(Run(store, run_id), "KILLED", "its process ended without a word")


@contextmanager
def opened(store: Store, run_id: str, *, again: bool = False) -> Iterator[Run]:
    """A run, which ends as FINISHED, as FAILED with the error, or as KILLED when it is interrupted.

    SIGTERM interrupts like Ctrl-C while the run is open. `again` takes up a run that was interrupted.
    """
    run = Run(store, run_id, _take_up(store, run_id) if again else -1)
    try:
        with _terminable(), _system_metrics(store, run_id, again=again):
            yield run
            run.flush()
            run.end("FINISHED")
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        _close(run, "KILLED", "interrupted")
        raise
    except BaseException as error:
        problems = "; ".join(getattr(error, "problems", ()))
        said = str(error) if isinstance(error, LoradockError) else f"{type(error).__name__}: {error}"
        _close(run, "FAILED", f"{said}: {problems}" if problems else said)
        raise


def _take_up(store: Store, run_id: str) -> int:
    """Mark a run as running again, and return the last step whose loss it has; -1 for none."""
    with translated(store.uri, f"run {run_id!r}"):
        store.client.update_run(run_id, status="RUNNING")
        store.client.set_tag(run_id, _REASON, "")
        metrics = store.client.get_run(run_id).data._metric_objs  # noqa: SLF001  # the last of each, with its step
    return max((metric.step for metric in metrics if metric.key in ("loss", "eval_loss")), default=-1)


@contextmanager
def _system_metrics(store: Store, run_id: str, *, again: bool) -> Iterator[None]:
    """MLflow's own record of processor, memory, disk, network and GPU, every ten seconds, under `system/`."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
    monitor = SystemMetricsMonitor(run_id, resume_logging=again, tracking_uri=store.uri)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()


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
