"""Having a version's reference recorded by what is installed for it: the trainer, which needs torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Final

from loradock.registry.errors import LoradockError, first_line
from loradock.registry.records import Version
from loradock.registry.store import Store

GROUP: Final = "loradock.reference"
"""Entry points that are called as `record` is, with the versions that need one."""

Say = Callable[[str], None]


def record(store: Store, versions: Sequence[Version], say: Say, base: str | None = None, *, here: bool = False) -> None:
    """Record what PEFT says with each version that has no reference yet and could be served.

    `base` is where their base is, by default what their facts name; with `here` it is not downloaded. Raises NotFound
    or WrongBase for it, and LoradockError where PEFT is not installed or fails.
    """
    needed = [
        version
        for version in versions
        if not version.findings and store.find_reference(version.facts.digest, version.facts.base) is None
    ]
    if not needed:
        return
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is loaded: idle threads do not spin
    found = next(iter(entry_points(group=GROUP)), None)
    if found is None:
        raise LoradockError("loradock is not installed as a package", hint="pip install . in a checkout of loradock")
    try:
        found.load()(store, needed, say, base, here=here)
    except ImportError as error:
        raise LoradockError(
            f"that needs torch and PEFT, and {error.name} is not installed here",
            hint="pip install '.[train]' in a checkout of loradock, or do it on a machine that trains",
        ) from error


def attempt(store: Store, version: Version, say: Say, base: str | None = None) -> None:
    """Record a new version's, or say why not and what to do: the version is there, and right, all the same.

    One that vLLM cannot serve needs none. Its base is not downloaded: nobody asked for that.
    """
    if version.findings:
        return
    try:
        record(store, (version,), say, base, here=True)
    except Exception as error:  # noqa: BLE001 # the libraries that read a base may raise anything
        text, hint = (str(error), error.hint) if isinstance(error, LoradockError) else (first_line(error), "")
        say(f"warning: {version.ref} has no reference, without which no replica serves it: {text}")
        first = f"{hint}; then" if hint else "to record it, which may download its base"
        say(f"  -> {first}: loradock reference {version.ref}")
