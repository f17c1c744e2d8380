"""The `check` verb: parse, call, print."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from loradock.cli.command import Command
from loradock.cli.completion import complete_ref
from loradock.cli.options import base_option, json_option, rank_limit_option
from loradock.cli.output import emit
from loradock.registry import base as bases
from loradock.registry import check as checks
from loradock.registry import promotion, refs, versions
from loradock.registry.artifact import verify as verify_files
from loradock.registry.check.mend import Mended, mend
from loradock.registry.errors import NotFound, NotServable, Refused
from loradock.registry.output import say
from loradock.registry.records import Version
from loradock.registry.settings import Settings
from loradock.registry.store import Store

_NO_BASE: Final = {"base-not-given", "copy-unread", "shape-unheld"}


@click.command(cls=Command)
@click.argument("target", metavar="REF|DIR", shell_complete=complete_ref)
@base_option(required=False)
@rank_limit_option
@click.option(
    "--fix", type=click.Path(path_type=Path), metavar="OUT", help="Write a repaired copy into this new directory."
)
@json_option
def check(target: str, base: str | None, max_lora_rank: int, fix: Path | None, as_json: bool) -> None:
    """Say whether vLLM can serve an adapter, and why not: servable, not servable, or unknown.

    Example:
      loradock check outputs/lora --base Qwen/Qwen2.5-0.5B-Instruct

    The configuration, the tensors' headers and their values are read; no model is loaded. An adapter is servable
    only if each tensor and each setting was understood and checked against the base. A version's own base is the
    default for --base. The exit code is 0 for servable, else 3. --fix writes a repaired copy, loads it as PEFT
    does, and prints the difference of B·A for each layer.
    """
    settings = Settings()
    if max_lora_rank not in checks.RANKS:
        say(f"warning: vLLM starts with no --max-lora-rank {max_lora_rank}, only {', '.join(map(str, checks.RANKS))}")
    where = bases.config_of(base, settings) if base else None
    with _files(target, settings) as (directory, version):
        shapes = checks.read_shapes(where) if where else checks.BaseShapes()
        if version and not where:
            shapes = versions.own_shapes(version.facts.base, settings)
        found = checks.examine(directory, base=shapes, max_rank=max_lora_rank)
        if version and where and shapes.complete:
            found = checks.with_base(found, version.facts.base, bases.identify(where, base_id=str(base)))
        if fix:
            mended = mend(directory, fix, found, base=shapes, max_rank=max_lora_rank)
            _report_mended(target, fix, found, mended, as_json)
            return
    _print({"target": target, "verdict": found.verdict, "servable": found.servable}, found, as_json)
    _refuse(target, found)


@contextlib.contextmanager
def _files(target: str, settings: Settings) -> Iterator[tuple[Path, Version | None]]:
    """A directory as it is, or a version's files, verified."""
    if Path(target).is_dir():
        yield Path(target), None
        return
    if target.startswith((".", "/", "~")):
        raise NotFound(f"there is no directory {target}")
    store = Store(settings)
    version = promotion.resolve(store, refs.parse_ref(target))
    with versions.fetched(store, version) as directory:
        verify_files(directory, version.facts.digest, what=str(version.ref))
        yield directory, version


def _report_mended(target: str, out: Path, found: checks.Diagnosis, mended: Mended | None, as_json: bool) -> None:
    if mended is None:
        say(f"there is nothing to mend in {target}; nothing was written")
        _print({"target": target, "verdict": found.verdict, "servable": found.servable}, found, as_json)
        return
    told: dict[str, Any] = {
        "target": target,
        "mended": str(out),
        "mendings": mended.mendings,
        "verdict": mended.diagnosis.verdict,
        "servable": mended.diagnosis.servable,
        "largest_difference": mended.largest,
    }
    if as_json:
        told["differences"] = mended.differences
    _print(told, mended.diagnosis, as_json)
    _refuse(str(out), mended.diagnosis)


def _print(told: dict[str, Any], found: checks.Diagnosis, as_json: bool) -> None:
    rows = [finding.row() for finding in found.findings]
    if as_json:
        emit(told | {"findings": rows}, as_json)
        return
    emit(told, as_json)
    if rows:
        emit(rows, as_json, columns=("code", "remedy", "blocks", "unknown", "text"))


def _refuse(what: str, found: checks.Diagnosis) -> None:
    if found.servable:
        return
    if not found.blocking:
        raise Refused(
            f"it is unknown whether {what} can be served: {'; '.join(finding.text for finding in found.doubts)}",
            hint="give the base that it was trained on: --base BASE"
            if _NO_BASE & {f.code for f in found.doubts}
            else "",
        )
    error = NotServable(what, [finding.text for finding in found.blocking])
    if found.mendings and found.curable:
        error.hint = f"it is {found.verdict}; --fix OUT writes a mended copy"
    elif found.curable:
        error.hint = f"it is {found.verdict}"
    else:
        error.hint = "no command cures that: train it again, or save it again where only its files are wrong"
    raise error
