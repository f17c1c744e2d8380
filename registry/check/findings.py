"""What the doctor says: findings, and the verdict that they add up to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from loradock.registry.outside import printable

MENDINGS: Final = {
    "files": "copies PEFT's two files alone",
    "names": "writes the tensors' names as PEFT does",
    "settings": "completes adapter_config.json from the tensors",
    "zero-layers": "leaves out layers that do nothing",
    "plain-start": "turns what started from the base's own weights into plain LoRA of twice the rank",
    "one-rank": "pads every layer to one rank, its scaling folded in",
}
"""What `--fix` can do, in the order in which it is done; none changes what the adapter does."""
VERBS: Final = ("convert", "merge")
"""The verbs that cure what `--fix` does not."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the doctor found."""

    code: str
    """Stable: `rank-above-limit`."""
    text: str
    """A sentence with figures."""
    remedy: str = ""
    """A mending, a verb, or nothing."""
    blocks: bool = True
    """False for what vLLM and PEFT both put up with, and for what is unknown."""
    unknown: bool = False
    """True for what nobody looked at, or could read: it may block."""

    def __post_init__(self) -> None:
        """Make the sentence fit to print: it may quote names of any length and of any characters from a file."""
        object.__setattr__(self, "text", printable(self.text, 600))
        object.__setattr__(self, "blocks", self.blocks and not self.unknown)

    def row(self) -> dict[str, Any]:
        """What `check` prints of it."""
        return {name: getattr(self, name) for name in ("code", "remedy", "blocks", "unknown", "text")}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All that was found of one adapter, for one base and one rank limit."""

    findings: tuple[Finding, ...]

    @property
    def blocking(self) -> tuple[Finding, ...]:
        """What keeps it from being served as it is."""
        return tuple(finding for finding in self.findings if finding.blocks)

    @property
    def doubts(self) -> tuple[Finding, ...]:
        """What keeps anybody from knowing whether it can be served."""
        return tuple(finding for finding in self.findings if finding.unknown)

    @property
    def servable(self) -> bool | None:
        """Whether it can be served as it is; None where that is unknown."""
        return False if self.blocking else None if self.doubts else True

    @property
    def mendings(self) -> tuple[str, ...]:
        """What `--fix` would do, in order."""
        return _mendings(self.findings)

    @property
    def curable(self) -> bool:
        """Whether everything in the way has a remedy."""
        return all(finding.remedy for finding in self.blocking)

    @property
    def verdict(self) -> str:
        """`servable`, `servable after ...`, `not servable`, or `unknown` and `unknown after ...`."""
        best = "unknown" if self.doubts else "servable"
        if not self.blocking:
            return best
        if not self.curable:
            return "not servable"
        remedies = {finding.remedy for finding in self.blocking}
        steps = [f"repair: {', '.join(mendings)}"] if (mendings := _mendings(self.blocking)) else []
        # What is merged needs no conversion any more.
        steps += [verb for verb in VERBS[::-1] if verb in remedies][:1]
        return f"{best} after {', then '.join(steps)}"


def _mendings(findings: Iterable[Finding]) -> tuple[str, ...]:
    remedies = {finding.remedy for finding in findings}
    return tuple(name for name in MENDINGS if name in remedies)


def some(names: Iterable[str], *, most: int = 3) -> str:
    """The first few of many names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(printable(name, 150) for name in listed[:most]) + more
