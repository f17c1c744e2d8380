"""This machine's processes of a training, started by torch's elastic launcher and run under accelerate.

Several machines each start their own: whatever brings a command to them, a shell, Slurm or Kubernetes, also knows their
numbers and the first one's address, and no more is needed.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed.run as torchrun
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin, patch_environment
from accelerate.utils.launch import prepare_multi_gpu_env
from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from loradock.registry import machine
from loradock.registry.errors import BadInput, LoradockError, NotFound, Unreachable, first_line
from loradock.trainer.processes import MAIN_PORT, Machines

_LAST_LINES: Final = 20
_TERMS: Final = ("num_machines", "machine_rank", "main_process_ip", "main_process_port")
"""What accelerate's files and its command call these."""


class ProcessFailed(LoradockError):
    """A process of the crew ended with an error, which it told itself where it could."""

    def __init__(self, rank: int, code: int, said: str) -> None:
        super().__init__(f"process {rank} of the training ended with {code}" + (f":\n{said}" if said else ""))
        self.exit_code = code if code > 0 else 1


def run(arguments: Sequence[str], processes: int, machines: Machines, config: Path | None = None) -> None:
    """Run `loradock ARGUMENTS` in this machine's part of so many processes that train together, and wait for them.

    On CPUs they talk through gloo, on GPUs through NCCL. `config` is a file of `accelerate config`, with FSDP or
    DeepSpeed for GPUs. Raises BadInput when there are more processes than GPUs, Unreachable when the machines do not
    find each other, ProcessFailed when a process ended without a word, and SystemExit with its code when it spoke for
    itself.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    here = processes // machines.count
    if torch.cuda.is_available() and here > (gpus := torch.cuda.device_count()):
        raise BadInput(
            f"{here} processes want a GPU each, and this machine has {gpus}",
            hint=f"--processes {gpus * machines.count}",
        )
    first = machines.rank * here
    threads = os.environ.get("OMP_NUM_THREADS") or max(1, machine.processors() // here)
    with tempfile.TemporaryDirectory(prefix="loradock-logs-") as logs:
        # Only the first process speaks; what the others say is kept for the case that one of them fails.
        quiet = ",".join(f"{rank}:3" for rank in range(1, here)) or "0"
        worker = ["-m", "loradock", *arguments]
        try:
            with patch_environment(omp_num_threads=threads, pythonsafepath=1):
                if torch.cuda.is_available():
                    options = ["--config_file", str(config)] if config else ["--multi_gpu", "--mixed_precision", "no"]
                    options += ["--num_processes", str(processes), *_for_accelerate(machines)]
                    given = _accelerate([*options, "--log_dir", logs, *worker])
                    given.redirects = quiet  # torchrun's, which accelerate has no option for and hands on
                    launch_command(given)
                else:
                    with patch_environment(accelerate_use_cpu="true"):
                        options = [*_for_torchrun(machines), "--nproc-per-node", str(here), "--max-restarts", "0"]
                        options += ["--log-dir", logs, "--redirects", quiet]
                        torchrun.run(torchrun.parse_args([*options, *worker]))
        except ChildFailedError as error:
            if machines.rank == 0:
                _bury_the_dead()
            rank, failure = (first, error.failures[first]) if first in error.failures else error.get_first_failure()
            if rank == first and failure.exitcode > 0:
                raise SystemExit(failure.exitcode) from error
            raise ProcessFailed(rank, failure.exitcode, _said(Path(logs), failure.local_rank)) from error
        except SignalException as error:
            raise SystemExit(128 + error.sigval) from error
        except (DistError, ConnectionError) as error:
            raise Unreachable(
                f"the machines of this training do not find each other: {first_line(error)}",
                hint="start the same command on every machine, with an address of machine 0 that all of them reach",
            ) from error


def machines(given: Mapping[str, Any], processes: int, config: Path | None) -> Machines:
    """The machines of a training: what was given, in accelerate's terms, before what a file of its own says.

    Raises BadInput with every fault.
    """
    found = vars(load_config_from_file(str(config))) if config else {}
    told: dict[str, Any] = {term: found.get(term) if given.get(term) is None else given[term] for term in _TERMS}
    count, rank, host, port = (told[term] for term in _TERMS)
    if (count or 1) == 1:
        if alone := [_option(term) for term in _TERMS[1:] if given.get(term) is not None]:
            raise BadInput(f"{alone[0]} has no effect without --num-machines")
        return Machines()
    problems = []
    if rank is None or rank >= count:
        problems.append(f"--machine-rank is this machine's number, from 0 to {count - 1}")
    if not host:
        problems.append("--main-process-ip is the address at which the others reach machine 0")
    if processes % count:
        problems.append(f"--processes {processes} are those of all machines, and cannot be shared out over {count}")
    deepspeed = found.get("deepspeed_config") or {}
    if deepspeed and deepspeed.get("deepspeed_multinode_launcher") != "standard":
        problems.append(f"deepspeed_multinode_launcher in {config} has to be standard: each machine starts its own")
    if problems:
        raise BadInput(f"these {count} machines cannot train together", problems=problems)
    return Machines(count, rank, host, port or MAIN_PORT)


def _option(term: str) -> str:
    return "--" + term.replace("_", "-")


def _for_accelerate(machines: Machines) -> list[str]:
    values = (machines.count, machines.rank, machines.host, machines.port)
    terms = zip(_TERMS, values, strict=True) if machines.count > 1 else [(_TERMS[0], 1)]
    return [word for term, value in terms for word in (f"--{term}", str(value))]


def _for_torchrun(machines: Machines) -> list[str]:
    if machines.count == 1:
        return ["--standalone"]
    nodes = ["--nnodes", str(machines.count), "--node-rank", str(machines.rank)]
    return [*nodes, "--master-addr", machines.host, "--master-port", str(machines.port)]


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


def _bury_the_dead() -> None:
    """Close the run whose main process ended without a word."""
    from loradock.registry.settings import Settings
    from loradock.registry.store import Store
    from loradock.trainer import undertaking

    with suppress(LoradockError):
        undertaking.bury_the_dead(Store(Settings()), Settings())


def _said(logs: Path, rank: int) -> str:
    """The last lines that a process wrote to stderr."""
    found = sorted(logs.glob(f"**/{rank}/stderr.log"))
    return "\n".join(found[-1].read_text(errors="replace").splitlines()[-_LAST_LINES:]) if found else ""
