"""The `plan` verb: parse, call, print."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from loradock.cli.command import Command
from loradock.cli.options import json_option
from loradock.cli.output import emit
from loradock.registry import base as bases
from loradock.registry import machine
from loradock.registry.errors import first_line
from loradock.registry.machine import GIB
from loradock.registry.output import say
from loradock.registry.settings import Settings
from loradock.trainer import dialects, gpus, hardware

if TYPE_CHECKING:
    from loradock.trainer.memory import Memory
    from loradock.trainer.plan import Estimator, Fit
    from loradock.trainer.recipe import Recipe

_PARTS: Final = ("weights", "adapter", "gradients", "optimizer", "activations", "loss", "runtime", "needed")


@click.command(cls=Command)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--gpu",
    "gpu_name",
    metavar="NAME|GIB",
    help="The GPU to fit: a name such as 'RTX 4090' or a100-80gb, or GiB.  [default: this machine's]",
)
@json_option
def plan(recipe: Path, gpu_name: str | None, as_json: bool) -> None:
    """Say what a training needs before it runs, and whether it fits.

    Example:
      loradock plan recipe.yaml --gpu 'RTX 4090'

    RECIPE is a YAML file: ours, Axolotl's or LLaMA-Factory's. The base's configuration is read, and none of its
    weights. Parameters are counted exactly; memory is estimated (docs/plan.md describes the method and its error).
    When the training does not fit, the cheapest changes to the recipe are listed.
    """
    source = dialects.load(recipe, say)
    wanted = gpus.find(gpu_name) if gpu_name else None
    settings = Settings()
    directory = bases.config_of(source.recipe.base, settings, relative_to=source.directory)
    from loradock.trainer import plan
    from loradock.trainer.remembered import Remembered

    remembered = Remembered.of(directory, settings.cache)
    estimator = plan.Estimator(directory, source.directory, remembered)
    estimator.check(source)
    found = _found(source.recipe, estimator, wanted or _here())
    remembered.save()
    if as_json:
        emit(found, as_json)
    else:
        _show(found)


def _here() -> gpus.Gpu | None:
    """This machine's GPU."""
    if not hardware.may_have_gpu():
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    return gpus.Gpu(torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory)


def _found(recipe: Recipe, estimator: Estimator, gpu: gpus.Gpu | None) -> dict[str, Any]:
    from loradock.trainer import plan

    counts = estimator.counts(recipe)
    where = plan.machine(recipe, cuda=True)
    found: dict[str, Any] = {
        "recipe": recipe.name,
        "base": recipe.base,
        "method": recipe.method.type,
        "trainable": counts.trainable,
        "total": counts.total,
        "base_parameters": counts.base,
        "share": round(counts.share, 8),
        "adapter_bytes": counts.file,
        "batch": recipe.training.per_device_train_batch_size,
        "max_length": recipe.training.max_length,
        "gradient_checkpointing": recipe.checkpoints_activations(cuda=True),
        "memory_gib": {},
        "unknown": {},
    }
    for title, other in plan.side_by_side(recipe).items():
        with _unless_unknown(found, f"memory of {title}"):
            found["memory_gib"][title] = _gib(estimator.needed(other, cuda=True))
    with _unless_unknown(found, "activations"):
        of = estimator.kept(recipe, where).like or recipe.method.type
        found |= {"activations_of": of, "activations_gib": _both(recipe, estimator)}
    with _unless_unknown(found, "this machine"):
        found["this_machine"] = _machine(recipe, estimator)
    with _unless_unknown(found, "fits"):
        if gpu is None:
            found["fits"] = {each.name: fits for each, fits in plan.roomy(recipe, estimator)}
        else:
            told = _told(plan.fit(recipe, estimator, gpu.memory, cuda=True))
            found |= {"gpu": gpu.name, "gpu_gib": round(gpu.memory / GIB, 2)} | told
    return found


@contextmanager
def _unless_unknown(found: dict[str, Any], part: str) -> Iterator[None]:
    """Note why a part of the answer cannot be known, and go on with the others."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 # the model's own code runs on shapes, and may do anything
        found["unknown"][part] = first_line(error)


def _told(fit: Fit) -> dict[str, Any]:
    return {
        "usable_gib": round(fit.available / GIB, 2),
        "fits": fit.fits,
        "changes": [{"lines": dict(change.lines), "cost": change.cost} for change in fit.changes],
        "needed_gib": round(fit.needed / GIB, 2),
        "gpus": fit.gpus,
    }


def _gib(found: Memory) -> dict[str, float]:
    values = asdict(found)
    return {part: round(values[part] / GIB, 2) for part in _PARTS}


def _both(recipe: Recipe, estimator: Estimator) -> dict[str, float]:
    """The recipe's activations without gradient checkpointing, and with it where the method bears it."""
    found = {}
    ways = {"kept": False} | ({"checkpointed": True} if recipe.method.entry.checkpoints else {})
    for title, on in ways.items():
        training = recipe.training.model_copy(update={"gradient_checkpointing": on})
        size = estimator.needed(recipe.model_copy(update={"training": training}), cuda=True)
        found[title] = round(size.activations / GIB, 2)
    return found


def _machine(recipe: Recipe, estimator: Estimator) -> dict[str, float]:
    """What the recipe needs on this machine's CPU, and what there is."""
    size = estimator.needed(recipe, cuda=False)
    return {
        "needed_gib": round(size.needed / GIB, 2),
        "available_gib": round(machine.memory().available / GIB, 2),
    }


def _show(found: dict[str, Any]) -> None:
    emit(
        {
            "training": f"{found['recipe']}: {found['method']} on {found['base']}",
            "trained": f"{found['trainable']:,} of {found['total']:,} weights ({found['share']:.4%})",
            "adapter": _size(found["adapter_bytes"]),
            "batch": f"{found['batch']} rows of {found['max_length']:,} tokens",
            **({"activations": _activations(found)} if "activations_gib" in found else {}),
            **{part: f"unknown: {why}" for part, why in found["unknown"].items()},
        },
        as_json=False,
    )
    if table := found["memory_gib"]:
        _table(table)
    click.echo("")
    here = {"this machine": _on_cpu(found["this_machine"])} if "this_machine" in found else {}
    emit({**(_verdict(found) if "fits" in found else {}), **here}, as_json=False)


def _table(table: dict[str, dict[str, float]]) -> None:
    click.echo("\nGiB on a GPU; parts are not all there at once, so that the peak is less than their sum")
    rows = [
        {"part": "peak" if part == "needed" else part, **{title: f"{table[title][part]:.2f}" for title in table}}
        for part in _PARTS
    ]
    emit(rows, as_json=False, columns=("part", *table))


def _activations(found: dict[str, Any]) -> str:
    both = found["activations_gib"]
    return (
        f"{both['kept']} GiB kept, "
        + (f"{both['checkpointed']} GiB with" if "checkpointed" in both else "not to be had with")
        + f" gradient checkpointing ({'on' if found['gradient_checkpointing'] else 'off'})"
        + ("" if found["activations_of"] == found["method"] else f", taken from {found['activations_of']}")
    )


def _verdict(found: dict[str, Any]) -> dict[str, str]:
    from loradock.trainer.plan import yaml_text

    if "gpu" not in found:
        fits = [name for name, yes in found["fits"].items() if yes]
        return {"fits": ", ".join(fits) or "none of " + ", ".join(found["fits"])}
    room = f"{found['gpu']} ({found['usable_gib']} of {found['gpu_gib']} GiB are used; the rest stays free)"
    if found["fits"]:
        return {"fits": f"yes, {room}: {found['needed_gib']} GiB"}
    said = {"fits": f"no, {room}"}
    for number, change in enumerate(found["changes"], start=1):
        lines = "; ".join(f"{key}: {yaml_text(value)}" for key, value in change["lines"].items())
        said[f"change {number}"] = f"{lines}  ({change['cost']})"
    if found["changes"]:
        return said | {"then it needs": f"{found['needed_gib']} GiB"}
    several = f"{found['gpus']} of them with FSDP would hold it" if found["gpus"] else "no number of them would hold it"
    return said | {"no change helps": several}


def _on_cpu(here: dict[str, float]) -> str:
    return f"on its CPU {here['needed_gib']} GiB, of {here['available_gib']} GiB that are free"


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB ({size:,} bytes)" if size else "-"
