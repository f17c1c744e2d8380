"""The compose file's topology without containers: the loop through it, and each of its parts killed under load.

docs/faults.md has the figures. The tests use one stack, in this order.
"""

from __future__ import annotations

import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from loradock.registry.errors import Unreachable
from tests.support.mlflow_server import TeamServer
from tests.support.stack.load import Load
from tests.support.stack.topology import NAME, Database, Stack, stack

pytestmark = [pytest.mark.slow, pytest.mark.minutes, pytest.mark.chance]

GENTLY = 0.5
"""Seconds between a client's requests while something starts, which on two processors would take minutes else."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, shallow_dir: Path) -> Iterator[Stack]:
    """With two trained versions, the first of which is promoted and answers."""
    with stack(tmp_path_factory.mktemp("stack"), shallow_dir) as found:
        found.register(found.train())
        found.promote(1, "the first")
        for replica in found.replicas:
            replica.until_ready()
        found.until_answered()
        found.front.start()
        yield found


@pytest.fixture
def team(running: Stack) -> Iterator[Stack]:
    """It, whole; and whole it is afterwards."""
    yield running
    running.flip("it still works")
    running.assert_nothing_is_lost()


@contextmanager
def fault(team: Stack, what: str) -> Iterator[Load]:
    """Clients that ask while something is killed and comes back; `pytest -rP` shows what they saw."""
    with team.load() as clients:
        began = time.monotonic()
        yield clients
        whole = time.monotonic() - began
    failed = clients.failed
    last = max((seen.ended - began for seen in failed), default=0.0)
    sys.stdout.write(
        f"{what}: {len(clients.seen)} asked, {len(failed)} failed, the last after {last:.1f} s; "
        f"longest gap {clients.gap:.1f} s, slowest answer {clients.slowest:.1f} s, whole after {whole:.0f} s\n"
    )
    sys.stdout.writelines(f"  {count} x {error}\n" for error, count in Counter(seen.error for seen in failed).items())
    assert clients.models().keys() <= {f"{NAME}/1", f"{NAME}/2"}


def comes_back(team: Stack, clients: Load) -> None:
    """The first replica, which is gone, started again once others have answered without it."""
    clients.more()
    clients.pause = GENTLY
    team.start_again(0)
    team.until_asked(0)


def test_the_loop_from_a_recipe_to_an_answer_and_back(running: Stack) -> None:
    with running.load() as clients:
        for move, number in ((running.flip, 2), (running.roll_back, 1)):
            move("under load")
            moved = time.monotonic()
            clients.more()
            assert clients.models(moved).keys() == {f"{NAME}/{number}"}
    assert clients.failed == []
    for number in range(len(running.replicas)):
        running.until_asked(number)
    running.assert_nothing_is_lost()


@pytest.mark.parametrize("part", ["database", "mlflow"])
def test_the_registry_is_killed_in_the_midst_of_a_promotion_and_comes_back(part: str, team: Stack) -> None:
    killed: Database | TeamServer = getattr(team, part)
    with fault(team, part) as clients, ThreadPoolExecutor() as pool:
        promotion = pool.submit(team.attempt, "in the midst")
        time.sleep(random.uniform(0, 1.5))  # noqa: S311 - no secret; anywhere from before its first call to its end
        killed.kill()
        clients.pause = GENTLY
        assert promotion.result().exit_code in (0, Unreachable.exit_code)
        assert team.attempt("while it is gone").exit_code == Unreachable.exit_code
        for replica in team.replicas:
            replica.until(lambda status: not status["registry"]["reachable"])
        clients.more()
        killed.start()
        team.settle("in the midst")
        team.flip("it is back")
    assert clients.failed == []


def test_haproxy_reads_its_configuration_again(team: Stack) -> None:
    with fault(team, "HAProxy, reloaded") as clients:
        team.front.reload()
        clients.more()
    assert clients.failed == []


def test_haproxy_is_killed_and_comes_back(team: Stack) -> None:
    with fault(team, "HAProxy, killed") as clients:
        team.front.kill()
        team.front.start()
        back = time.monotonic()
        clients.more()
    assert [seen for seen in clients.failed if seen.began > back] == []


def test_a_replica_is_killed_and_comes_back(team: Stack) -> None:
    with fault(team, "a replica, killed") as clients:
        team.replicas[0].kill()
        gone = time.monotonic()
        comes_back(team, clients)
    assert [seen for seen in clients.failed if seen.began > gone] == []
    assert len(clients.failed) <= clients.clients


def test_a_replica_is_stopped_and_comes_back_while_the_registry_is_gone(team: Stack) -> None:
    with fault(team, "a replica, stopped, and the registry, killed") as clients:
        team.replicas[1].process.send_signal(signal.SIGTERM)
        assert team.replicas[1].ended() == 0
        clients.more()
        clients.pause = GENTLY
        team.mlflow.kill()
        team.start_again(1)
        team.until_asked(1)
        assert not team.replicas[1].status()["registry"]["reachable"]
        team.mlflow.start()
        team.flip("it is back")
    assert clients.failed == []


def test_the_engine_of_a_replica_is_killed(team: Stack) -> None:
    with fault(team, "an engine, killed") as clients:
        team.replicas[0].engine.send_signal(signal.SIGKILL)
        assert team.replicas[0].ended() == 1
        gone = time.monotonic()
        comes_back(team, clients)
    assert [seen for seen in clients.failed if seen.began > gone] == []
