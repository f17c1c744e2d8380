"""Several processes train as one does, and what accelerate would not take is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from loradock.registry.errors import BadInput, NotFound
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.trainer import launch
from loradock.trainer.processes import Crew, Machines, join
from loradock.trainer.recipe import Training
from loradock.trainer.recipe_file import RecipeFile
from tests.support import warm
from tests.support.trainer.training import TRAINING, trained, written


def training(rows: int, batches: int) -> Training:
    return Training.model_validate({"per_device_train_batch_size": rows, "gradient_accumulation_steps": batches})


@pytest.mark.parametrize(
    ("size", "given", "shared"),
    [(1, (4, 3), (4, 3)), (2, (4, 2), (4, 1)), (2, (4, 3), (2, 3)), (4, (1, 8), (1, 2)), (8, (8, 1), (1, 1))],
)
def test_a_step_has_the_same_rows_over_all_processes(
    size: int, given: tuple[int, int], shared: tuple[int, int]
) -> None:
    assert Crew(0, size).batch(training(*given)) == shared
    assert given[0] * given[1] == shared[0] * shared[1] * size


def test_rows_that_cannot_be_shared_out_are_refused() -> None:
    with pytest.raises(BadInput, match="9 rows a step cannot be shared out over 2 processes"):
        Crew(0, 2).batch(training(3, 3))


def test_alone_there_is_nothing_to_share() -> None:
    assert join() == Crew(0, 1)
    assert join().share("anything") == "anything"


ON_TWO_GPUS = """
import sys, torch
torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 2
from loradock.trainer import launch
from loradock.trainer.processes import Machines
launch.run(sys.argv[1:], 2, Machines())
"""
"""Starts processes as a machine with GPUs does; they find none."""


def by_two(source: RecipeFile) -> subprocess.CompletedProcess[str]:
    """Two processes train."""
    return warm.run([warm.LORADOCK, "train", source.path, "--processes", "2", "--json"], kind="trainer")


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(home: Path, tmp_path: Path, shallow_dir: Path) -> None:
    recipe = {"method": {"lora_dropout": 0.0}, "training": TRAINING | {"max_steps": 6, "eval_steps": 3}}
    source, rows = written(tmp_path, shallow_dir, rows=40, **recipe)
    alone = trained(source, rows, Settings())
    done = by_two(source)
    assert done.returncode == 0, done.stderr
    together = json.loads(done.stdout)
    client = Store(Settings()).client
    for name in ("loss", "eval_loss"):
        curves = [
            [(point.step, point.value) for point in client.get_metric_history(run_id, name)]
            for run_id in (alone.run_id, together["run_id"])
        ]
        assert [step for step, _ in curves[1]] == [step for step, _ in curves[0]]
        values = [[value for _, value in curve] for curve in curves]
        assert values[1][0] == pytest.approx(values[0][0], rel=1e-5)  # the same rows
        assert values[1] == pytest.approx(values[0], rel=1e-5)
    params = client.get_run(together["run_id"]).data.params
    assert (params["environment.processes"], together["trainable"]) == ("2", alone.trainable)
    assert done.stderr.count("held-out loss") == 2  # the main process alone speaks


@pytest.mark.slow
def test_two_processes_train_a_method_with_weights_that_no_loss_depends_on(
    home: Path, tmp_path: Path, shallow_dir: Path
) -> None:
    done = by_two(written(tmp_path, shallow_dir, rows=40, method="shadow")[0])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == TRAINING["max_steps"]


@pytest.mark.slow
def test_accelerate_starts_them_where_there_are_gpus(
    home: Path, tmp_path: Path, shallow_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    source, _ = written(tmp_path, shallow_dir, rows=40)
    words = ["train", str(source.path), "--processes", "2", "--json"]
    done = subprocess.run([sys.executable, "-c", ON_TWO_GPUS, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == TRAINING["max_steps"]
    assert done.stderr.count("held-out loss") == 2  # the main process alone speaks


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(BadInput, match="4 processes want a GPU each, and this machine has 1") as refused:
        launch.run([], 8, Machines(2, 0, "host", 29500))
    assert refused.value.hint == "--processes 2"


@pytest.mark.slow
def test_a_fault_in_all_processes_is_told_once(home: Path, tmp_path: Path, shallow_dir: Path) -> None:
    source, _ = written(tmp_path, shallow_dir, method={"target_modules": ["q_prj"]})
    done = by_two(source)
    assert done.returncode == 2
    assert done.stderr.count("did you mean q_proj?") == 1
    assert "Traceback" not in done.stderr


FSDP: dict[str, Any] = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "FSDP",
    "mixed_precision": "bf16",
    "num_machines": 1,
    "num_processes": 2,
    "fsdp_config": {
        "fsdp_version": 2,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_transformer_layer_cls_to_wrap": "LlamaDecoderLayer",
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        "fsdp_cpu_ram_efficient_loading": False,
    },
}
ZERO: dict[str, Any] = {"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": "auto"}


def config(directory: Path, given: dict[str, Any]) -> Path:
    path = directory / "accelerate.yaml"
    path.write_text(yaml.safe_dump(given))
    return path


def test_sound_configurations_for_gpus_are_refused_only_for_want_of_gpus(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is sound, but it shards over GPUs, and this machine has none"):
        launch.check(config(tmp_path, FSDP), 2)
    (tmp_path / "zero.json").write_text(json.dumps(ZERO))
    deepspeed = FSDP | {"distributed_type": "DEEPSPEED", "fsdp_config": {}}
    deepspeed |= {"deepspeed_config": {"deepspeed_config_file": str(tmp_path / "zero.json"), "zero3_init_flag": False}}
    with pytest.raises(BadInput, match="is sound, but it shards over GPUs"):
        launch.check(config(tmp_path, deepspeed), 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_proceses": 2}, "unknown keys (['num_proceses'])"),
        ({"distributed_type": "FSPD"}, "FSPD"),
        ({"fsdp_config": {"fsdp_state_dict_type": "SOME"}}, "SOME"),
        ({"num_processes": 4}, "num_processes is 4, not 2"),
        (
            {"distributed_type": "DEEPSPEED", "fsdp_config": {}, "deepspeed_config": {"deepspeed_config_file": "no"}},
            "no",
        ),
    ],
)
def test_a_configuration_that_accelerate_would_not_take(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as raised:
        launch.check(config(tmp_path, FSDP | change), 2)
    [problem] = raised.value.problems
    assert problem.startswith("accelerate.yaml: ")
    assert said in problem


def test_no_configuration_and_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        launch.check(tmp_path / "none.yaml", 2)
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(BadInput):
        launch.check(tmp_path / "bad.yaml", 2)
