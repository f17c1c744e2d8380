"""A training that was killed goes on from its last checkpoint, in its own run, to the same bytes."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from loradock.registry.base import LocalBase, identify
from loradock.registry.errors import LoradockError
from loradock.registry.records import Base, TextSettings
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.trainer import scattered, tracking, workdir
from loradock.trainer.data import Rows
from loradock.trainer.processes import Crew
from loradock.trainer.recipe_file import RecipeFile
from loradock.trainer.undertaking import opened
from tests.support import dying, warm
from tests.support.trainer.training import TRAINING, trained, written

STEPS = 8
LONGER = TRAINING | {"max_steps": STEPS, "eval_steps": 2, "save_steps": 2, "per_device_train_batch_size": 2}


def killed_after_a_checkpoint(source: RecipeFile, settings: Settings) -> str:
    """Train until a checkpoint stands and a step was made beyond it, and end by SIGKILL; returns the run."""
    code, steps = "from loradock.cli import main; main()", "transformers.trainer_callback:CallbackHandler"
    command = [*dying.command(code, steps, "on_step_end", 5), "train", source.path, "--json"]
    done = warm.run(command, kind="trainer")
    assert done.returncode == -signal.SIGKILL, done.stderr
    [work] = workdir.unfinished(settings)
    assert work.last() == work.checkpoints / "checkpoint-4"
    return work.run_id


@pytest.mark.slow
@pytest.mark.parametrize("method", [{}, {"type": "adalora"}])
def test_what_was_killed_goes_on_to_the_same_bytes(
    method: dict[str, Any], home: Path, tmp_path: Path, shallow_dir: Path
) -> None:
    settings, store = Settings(), Store(Settings())
    source, rows = written(tmp_path, shallow_dir, method=method, training=LONGER)
    unbroken = trained(source, rows, settings)
    run_id = killed_after_a_checkpoint(source, settings)
    assert tracking.status(store, run_id) == "RUNNING"

    resumed = trained(source, rows, settings, resume=True)
    assert (resumed.run_id, resumed.steps) == (run_id, STEPS)
    assert tracking.status(store, run_id) == "FINISHED"
    assert resumed.digest == unbroken.digest
    assert (resumed.loss, resumed.eval_loss) == pytest.approx((unbroken.loss, unbroken.eval_loss))
    for name in ("loss", "eval_loss"):
        curves = [
            {point.step: point.value for point in points}
            for points in (store.client.get_metric_history(each, name) for each in (run_id, unbroken.run_id))
        ]
        assert curves[0] == pytest.approx(curves[1])
        steps = [point.step for point in store.client.get_metric_history(run_id, name)]
        assert sorted(steps) == sorted(set(steps))
    assert workdir.unfinished(settings) == []


@pytest.mark.slow
def test_the_dead_are_buried_and_nothing_to_resume_is_a_new_run(home: Path, tmp_path: Path, shallow_dir: Path) -> None:
    settings, store = Settings(), Store(Settings())
    source, _ = written(tmp_path, shallow_dir, training=LONGER)
    run_id = killed_after_a_checkpoint(source, settings)
    other, rows = written(tmp_path, shallow_dir, seed=7)
    outcome = trained(other, rows, settings, resume=True)
    assert outcome.run_id != run_id
    found = store.client.get_run(run_id)
    assert (found.info.status, found.data.tags["loradock.reason"]) == ("KILLED", "its process ended without a word")
    assert [work.run_id for work in workdir.unfinished(settings)] == [run_id]


@pytest.mark.slow
def test_a_checkpoint_is_whole_only_with_the_random_states_of_all_processes(
    home: Path, tmp_path: Path, shallow_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: Crew, into: Path) -> None:
        if workdir.step_of(into) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(scattered, "gather", interrupted)
    source, rows = written(tmp_path, shallow_dir, training=LONGER)
    with pytest.raises(KeyboardInterrupt):
        trained(source, rows, Settings())
    [work] = workdir.unfinished(Settings())
    assert (work.checkpoints / "checkpoint-4" / "optimizer.pt").is_file()
    assert work.last() == work.checkpoints / "checkpoint-2"


def undertaken(source: RecipeFile, rows: Rows, base_dir: Path, *, resume: bool = True) -> Any:
    base: Base = LocalBase(base_dir, identify(base_dir, base_id="base")).base
    return opened(source, rows.digest, base, TextSettings(), Settings(), Crew(0, 1), resume=resume)


def checkpoint(directory: Path, step: int, *, whole: bool = True) -> None:
    path = directory / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "trainer_state.json").write_text("{}" if whole else '{"global_st')


def test_only_the_same_training_is_taken_up_from_its_last_whole_checkpoint(
    home: Path, tmp_path: Path, base_dir: Path
) -> None:
    source, rows = written(tmp_path, base_dir)
    context = undertaken(source, rows, base_dir)
    task = context.__enter__()
    checkpoint(task.work.checkpoints, 2)
    checkpoint(task.work.checkpoints, 10)
    checkpoint(task.work.checkpoints, 12, whole=False)
    context.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    other, _ = written(tmp_path, base_dir, seed=3)
    with undertaken(other, rows, base_dir) as another:
        assert another.checkpoint is None
    source, _ = written(tmp_path, base_dir, name="renamed")
    with undertaken(source, rows, base_dir) as again:
        assert (again.run.id, again.checkpoint.name) == (task.run.id, "checkpoint-10")
        assert again.since == ", going on after step 10"
    assert workdir.unfinished(Settings()) == []


def test_a_training_without_a_checkpoint_leaves_nothing(home: Path, tmp_path: Path, base_dir: Path) -> None:
    source, rows = written(tmp_path, base_dir)
    with pytest.raises(KeyboardInterrupt), undertaken(source, rows, base_dir):
        raise KeyboardInterrupt
    assert workdir.unfinished(Settings()) == []


def test_two_processes_do_not_take_up_one_training(home: Path, tmp_path: Path, base_dir: Path) -> None:
    source, rows = written(tmp_path, base_dir)
    with undertaken(source, rows, base_dir) as task:
        checkpoint(task.work.checkpoints, 2)
        with pytest.raises(LoradockError, match="is under way in another process"), undertaken(source, rows, base_dir):
            pytest.fail("it was taken up twice")


def test_checkpoints_that_cannot_be_written_are_told(home: Path, tmp_path: Path, base_dir: Path) -> None:
    source, rows = written(tmp_path, base_dir)
    Settings().trainings.write_text("in the way")
    with pytest.raises(LoradockError, match="checkpoints cannot be written to") as raised:
        undertaken(source, rows, base_dir).__enter__()
    assert "LORADOCK_HOME" in raised.value.hint
