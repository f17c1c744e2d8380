"""A training in several processes of this machine, started by torch's elastic launcher and run under accelerate."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed.run as torchrun
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin, patch_environment
from accelerate.utils.launch import prepare_multi_gpu_env
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from registry.errors import BadInput, LoradockError, NotFound, first_line

_LAST_LINES: Final = 20


class ProcessFailed(LoradockError):
    """A process of the crew ended with an error, which it told itself where it could."""

    def __init__(self, rank: int, code: int, said: str) -> None:
        super().__init__(f"process {rank} of the training ended with {code}" + (f":\n{said}" if said else ""))
        self.exit_code = code if code > 0 else 1


def run(arguments: Sequence[str], processes: int, config: Path | None = None) -> None:
    """Run `loradock ARGUMENTS` in so many processes that train together, and wait for them.

    On CPUs they talk through gloo, on GPUs through NCCL. `config` is a file of `accelerate config`, with FSDP or
    DeepSpeed for GPUs. Raises BadInput for a configuration that cannot be used, and ProcessFailed.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    threads = max(1, (os.cpu_count() or 1) // processes)
    with tempfile.TemporaryDirectory(prefix="loradock-logs-") as logs:
        # Only the main process speaks; what the others say is kept for the case that one of them fails.
        quiet = ["--log-dir", logs, "--redirects", ",".join(f"{rank}:3" for rank in range(1, processes))]
        worker = ["-m", "registry.cli", *arguments]
        try:
            with patch_environment(omp_num_threads=threads):
                if torch.cuda.is_available():
                    options = ["--config_file", str(config)] if config else ["--multi_gpu", "--mixed_precision", "no"]
                    launch_command(_accelerate([*options, "--num_processes", str(processes), *quiet, *worker]))
                else:
                    with patch_environment(accelerate_use_cpu="true"):
                        options = ["--standalone", "--nproc-per-node", str(processes), "--max-restarts", "0"]
                        torchrun.run(torchrun.parse_args([*options, *quiet, *worker]))
        except ChildFailedError as error:
            rank, failure = (0, error.failures[0]) if 0 in error.failures else error.get_first_failure()
            raise ProcessFailed(rank, failure.exitcode, _said(Path(logs), rank) if rank else "") from error
        except SignalException as error:
            raise SystemExit(128 + error.sigval) from error


def check(config: Path, processes: int) -> None:
    """Hold a file of `accelerate config` against accelerate itself; raises NotFound, or BadInput with its fault.

    What can be told without a GPU is told: keys, values, the number of processes, and DeepSpeed's own file.
    """
    if not config.is_file():
        raise NotFound(f"there is no accelerate configuration {config}", hint="`accelerate config` writes one")
    what = f"{config} cannot be used"
    try:
        found = load_config_from_file(str(config))
        arguments, _, _ = _validate_launch_command(_accelerate(["--config_file", str(config), "worker"]))
        if arguments.use_fsdp:
            with patch_environment(**prepare_multi_gpu_env(arguments)):
                FullyShardedDataParallelPlugin()
        elif arguments.use_deepspeed:
            DeepSpeedPlugin(hf_ds_config=arguments.deepspeed_config_file)
    except Exception as error:  # accelerate's checks raise what they like
        raise BadInput(what, problems=[f"{config.name}: {first_line(error)}"]) from error
    if found.num_processes not in (-1, None, processes):
        raise BadInput(what, problems=[f"{config.name}: num_processes is {found.num_processes}, not {processes}"])
    if (arguments.use_fsdp or arguments.use_deepspeed) and not torch.cuda.is_available():
        raise BadInput(
            f"{config.name} is sound, but it shards over GPUs, and this machine has none",
            hint="leave --accelerate-config out to train on CPUs through gloo",
        )


def _accelerate(arguments: Sequence[str]) -> Any:
    return launch_command_parser().parse_args(list(arguments))


def _said(logs: Path, rank: int) -> str:
    """The last lines that a process wrote to stderr."""
    found = sorted(logs.glob(f"**/{rank}/stderr.log"))
    return "\n".join(found[-1].read_text(errors="replace").splitlines()[-_LAST_LINES:]) if found else ""
