"""Where a training ran: versions, machine and the recipe's commit; no user, no host, no path."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import torch

_PACKAGES: Final = ("loradock", "torch", "transformers", "peft", "trl", "accelerate", "datasets", "mlflow")


def facts() -> dict[str, str]:
    """The versions and the hardware that a result may depend on."""
    found = {name: _version(name) for name in _PACKAGES}
    found |= {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    found["threads"] = str(torch.get_num_threads())
    found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu ({_processor()})"
    return found


def commit(directory: Path) -> tuple[str, bool] | None:
    """The Git commit of a directory, and whether something below it differs from that commit; None outside Git."""
    head = _git(directory, "rev-parse", "--verify", "HEAD")
    changes = _git(directory, "status", "--porcelain", "--", ".")
    return None if head is None or changes is None else (head, bool(changes))


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(directory), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
