"""Machines that train together, each with a home of its own: what comes of it, and what becomes of it when one dies."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from click.testing import CliRunner

from loradock.cli.train import train
from loradock.registry.errors import BadInput
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.trainer import launch, tracking, undertaking, workdir
from loradock.trainer.processes import Machines
from loradock.trainer.recipe_file import RecipeFile
from tests.support import warm
from tests.support.ports import free_port
from tests.support.trainer.training import TRAINING, write_rows, written

STEPS = 8
ROWS = 30  # an epoch is three steps, so that the first checkpoint stands in the midst of the second
RECIPE: dict[str, Any] = {
    "method": {"lora_dropout": 0.1},  # so that the state of random numbers counts in every process
    "training": TRAINING | {"max_steps": STEPS, "eval_steps": 4, "save_steps": 4, "gradient_accumulation_steps": 2},
}
SECONDS = 600


class Node:
    """A machine: the command with a home of its own, in a process group of its own."""

    def __init__(self, recipe: Path, home: Path, *words: str, **environ: str) -> None:
        home.mkdir(exist_ok=True)
        self.home, self.settings = home, Settings(home=home)
        # As many threads as on one machine, since sums round by them.
        self.process = warm.Popen(
            [warm.LORADOCK, "train", recipe, "--json", "--processes", "2", *words],
            kind="trainer",
            env=os.environ | {"LORADOCK_HOME": str(home), "OMP_NUM_THREADS": "1"} | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.out = self.said = ""

    def end(self, code: int) -> None:
        self.out, self.said = self.process.communicate(timeout=SECONDS)
        assert self.process.returncode == code, self.said

    @property
    def outcome(self) -> Any:
        return json.loads(self.out)

    def kill(self) -> None:
        """The power goes: the command and its worker are gone at once."""
        with suppress(psutil.Error):
            for one in [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]:
                with suppress(psutil.Error):
                    one.kill()


@contextmanager
def pair(recipes: tuple[Path, Path], homes: tuple[Path, Path], *words: str) -> Iterator[tuple[Node, Node]]:
    """Two machines; nothing of them is left."""
    where = ["--num-machines", "2", "--main-process-ip", "127.0.0.1", "--main-process-port", str(free_port())]
    nodes = [
        Node(recipe, home, *where, "--machine-rank", str(rank), *words)
        for rank, (recipe, home) in enumerate(zip(recipes, homes, strict=True))
    ]
    try:
        yield nodes[0], nodes[1]
    finally:
        for node in nodes:
            node.kill()
            node.process.communicate(timeout=30)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, shallow_dir: Path) -> RecipeFile:
    return written(tmp_path_factory.mktemp("recipe"), shallow_dir, rows=ROWS, **RECIPE)[0]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, source: RecipeFile) -> Any:
    """What two processes of one machine come to."""
    node = Node(source.path, tmp_path_factory.mktemp("alone") / "home")
    node.end(0)
    return node.outcome


@pytest.mark.slow
def test_two_machines_train_what_one_does_and_only_the_first_writes(
    source: RecipeFile, alone: Any, tmp_path: Path
) -> None:
    homes = tmp_path / "first", tmp_path / "second"
    with pair((source.path, source.path), homes) as (first, second):
        first.end(0)
        second.end(0)
    assert first.outcome["digest"] == alone["digest"]
    assert first.outcome["eval_loss"] == alone["eval_loss"]
    assert second.out == ""
    assert second.said.startswith("machine 1 of 2: all come together at 127.0.0.1:")
    assert second.said.count("\n") == 1
    assert list(homes[1].rglob("*")) == []
    assert workdir.unfinished(first.settings) == []
    run = Store(first.settings).client.get_run(first.outcome["run_id"])
    assert (run.info.status, run.data.params["environment.processes"]) == ("FINISHED", "2")


@pytest.mark.chance
@pytest.mark.slow
def test_a_machine_that_dies_fails_the_run_which_goes_on_with_another(
    source: RecipeFile, alone: Any, tmp_path: Path
) -> None:
    home = tmp_path / "first"
    with pair((source.path, source.path), (home, tmp_path / "second")) as (first, second):
        deadline = time.monotonic() + SECONDS
        while not any(work.last() for work in workdir.unfinished(first.settings)):
            assert first.process.poll() is None, first.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        second.kill()
        first.end(1)
    told = [line for line in first.said.splitlines() if line.startswith("loradock: ")]
    assert len(told) == 1
    assert told[0].startswith("loradock: another process of this training is gone: ")
    assert "Traceback" not in first.said
    [work] = workdir.unfinished(first.settings)
    assert work.last().name != f"checkpoint-{STEPS}"
    assert tracking.status(Store(first.settings), work.run_id) == "FAILED"

    with pair((source.path, source.path), (home, tmp_path / "third"), "--resume") as (first, third):
        first.end(0)
        third.end(0)
    assert (first.outcome["run_id"], first.outcome["steps"]) == (work.run_id, STEPS)
    assert first.outcome["digest"] == alone["digest"]


@pytest.mark.slow
def test_machines_that_do_not_train_the_same_stop_with_a_line_that_says_what(
    source: RecipeFile, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "tiny.yaml").write_text(source.text)
    write_rows(other, ROWS + 1)
    with pair((source.path, other / "tiny.yaml"), (tmp_path / "first", tmp_path / "second")) as (first, second):
        first.end(2)
        second.end(2)
    for node in (first, second):
        assert node.said.count("process 1 has another data than the main process") == 1
        assert "Traceback" not in node.said
    assert Store(first.settings).client.search_runs(["0", "1"]) == []


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_machine_that_nobody_comes_to_says_so(rank: int, source: RecipeFile, tmp_path: Path) -> None:
    where = ["--num-machines", "2", "--main-process-ip", "127.0.0.1", "--main-process-port", str(free_port())]
    node = Node(source.path, tmp_path / "home", *where, "--machine-rank", str(rank), PET_RDZV_CONF="timeout=2")
    node.end(6)
    assert "loradock: the machines of this training do not find each other: " in node.said
    assert "Traceback" not in node.said


@pytest.mark.slow
def test_a_port_that_is_taken_is_told(source: RecipeFile, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = ["--num-machines", "2", "--main-process-ip", "127.0.0.1", "--machine-rank", "0"]
        node = Node(source.path, tmp_path / "home", *where, "--main-process-port", str(taken.getsockname()[1]))
        node.end(6)
    assert "do not find each other: The server socket has failed to listen" in node.said


def test_a_run_whose_main_process_is_gone_with_its_machine_is_closed_by_another(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(undertaking, "_MAIN_CLOSES_WITHIN", 0.0)
    run_id = tracking.create(store, "bot")
    undertaking._close_unless_main_does(store, run_id)
    assert tracking.status(store, run_id) == "KILLED"
    ended = tracking.create(store, "bot")
    store.client.set_terminated(ended, "FAILED")
    undertaking._close_unless_main_does(store, ended)
    assert tracking.status(store, ended) == "FAILED"


GIVEN = {"num_machines": 2, "machine_rank": 1, "main_process_ip": "10.0.0.1"}


def config(directory: Path, **values: Any) -> Path:
    path = directory / "accelerate.yaml"
    whole = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU", "mixed_precision": "no"}
    path.write_text(yaml.safe_dump(whole | {"num_processes": 4} | values))
    return path


def test_machines_are_those_given_before_those_of_a_file(tmp_path: Path) -> None:
    assert launch.machines({}, 4, None) == Machines()
    assert launch.machines(GIVEN, 4, None) == Machines(2, 1, "10.0.0.1", 29500)
    file = config(tmp_path, num_machines=2, machine_rank=0, main_process_ip="10.0.0.1", main_process_port=4000)
    assert launch.machines({}, 4, file) == Machines(2, 0, "10.0.0.1", 4000)
    assert launch.machines({"machine_rank": 1}, 4, file) == Machines(2, 1, "10.0.0.1", 4000)
    assert launch.machines({"num_machines": 1}, 4, file) == Machines()


@pytest.mark.parametrize(
    ("change", "processes", "said"),
    [
        ({"machine_rank": 2}, 4, ["--machine-rank is this machine's number, from 0 to 1"]),
        ({"machine_rank": None}, 4, ["--machine-rank is this machine's number, from 0 to 1"]),
        ({"main_process_ip": None}, 4, ["--main-process-ip is the address at which the others reach machine 0"]),
        ({}, 3, ["--processes 3 are those of all machines, and cannot be shared out over 2"]),
        ({"machine_rank": None, "main_process_ip": None}, 3, ["--machine-rank", "--main-process-ip", "--processes 3"]),
    ],
)
def test_machines_that_cannot_train_together(change: dict[str, Any], processes: int, said: list[str]) -> None:
    with pytest.raises(BadInput, match="these 2 machines cannot train together") as raised:
        launch.machines(GIVEN | change, processes, None)
    assert len(raised.value.problems) == len(said)
    assert all(problem.startswith(words) for problem, words in zip(raised.value.problems, said, strict=True))


def test_a_rank_without_machines_is_refused() -> None:
    with pytest.raises(BadInput, match="--machine-rank has no effect without --num-machines"):
        launch.machines({"machine_rank": 0}, 4, None)


def test_a_launcher_of_deepspeeds_that_starts_all_machines_from_one_is_refused(tmp_path: Path) -> None:
    deepspeed = {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 3}}
    with pytest.raises(BadInput) as raised:
        launch.machines(GIVEN, 4, config(tmp_path, **deepspeed))
    assert "deepspeed_multinode_launcher" in raised.value.problems[0]
    deepspeed["deepspeed_config"] = {"zero_stage": 3, "deepspeed_multinode_launcher": "standard"}
    assert launch.machines(GIVEN, 4, config(tmp_path, **deepspeed)).count == 2


@pytest.mark.parametrize("words", [("--num-machines", "2"), ("--machine-rank", "0"), ("--main-process-ip", "a")])
def test_machines_without_processes_are_refused(words: tuple[str, str], tmp_path: Path) -> None:
    written(tmp_path, Path("no/such"))
    done = CliRunner().invoke(train, [str(tmp_path / "tiny.yaml"), *words])
    assert (done.exit_code, f"{words[0]} needs --processes" in done.stderr) == (2, True)
