"""Every error that loradock raises on purpose, and what it means to a shell.

    LoradockError      1  anything else
    ├── BadInput       2  invalid input
    ├── Refused        3  refused by a check or a policy
    │   ├── DigestMismatch   stored bytes are not the bytes that were registered
    │   ├── GateFailed       a version does not meet its adapter's policy
    │   ├── HistoryDamaged   an entry of a history was edited, or is missing
    │   ├── NotServable      the adapter's own files rule it out
    │   ├── Taken            the name belongs to something else in MLflow
    │   └── WrongBase        trained on another base model
    ├── Conflict       4  somebody else moved it first
    │   └── Drifted          it was changed out of band, in MLflow itself
    ├── HistoryCut     4  a history does not continue from the newest entry seen
    ├── NotFound       5  no such run, version, alias or file
    └── Unreachable    6  a service does not answer

Each carries its facts as attributes, and one sentence, `hint`, on what to do next.
They become text in one place only: `LoradockError.text`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from pydantic import ValidationError


def first_line(error: BaseException) -> str:
    """What a library's error says, in its first line and those that this one announces; its type where it says nothing.

    Torch says "Error(s) in loading state_dict for X:" and the reason below, pydantic how many errors it has.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if hasattr(error, "error_count"):
        lines = faults_of(cast("ValidationError", error))
    upto = next((at for at, line in enumerate(lines) if not line.endswith(":")), len(lines) - 1)
    return " ".join(lines[: upto + 1])


def faults_of(error: ValidationError) -> list[str]:
    """Each thing that pydantic refused, in a line: where, and why; never the value, which may be a secret."""
    return [
        ": ".join(filter(None, (".".join(map(str, fault["loc"])), fault["msg"].removeprefix("Value error, "))))
        for fault in error.errors(include_url=False, include_input=False)
    ]


class LoradockError(Exception):
    """The root of the tree."""

    exit_code = 1
    problems: tuple[str, ...] = ()
    """Every fault that was found, where there can be several."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    @property
    def text(self) -> str:
        """All that people are told: the message, a line for each problem, and the hint."""
        return "\n  ".join([str(self), *self.problems]) + (f"\n  -> {self.hint}" if self.hint else "")


class BadInput(LoradockError):
    """What the user wrote cannot be meant; `problems` lists every fault that was found."""

    exit_code = 2

    def __init__(self, message: str, *, problems: Sequence[str] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems)


class Refused(LoradockError):
    """A check or a gate said no."""

    exit_code = 3


class DigestMismatch(Refused):
    """Stored bytes are not the bytes that were registered."""

    def __init__(self, what: str, *, expected: str, found: str, faults: Sequence[str] = ()) -> None:
        detail = f" ({'; '.join(faults)})" if faults else ""
        super().__init__(
            f"{what} does not hold the bytes that were registered{detail}",
            hint="restore the files from a backup, or register the adapter again as a new version",
        )
        self.what, self.expected, self.found, self.faults = what, expected, found, tuple(faults)


class GateFailed(Refused):
    """A version does not meet its adapter's policy; `problems` has every rule with its figure."""

    def __init__(self, ref: str, alias: str, verdicts: Sequence[str]) -> None:
        super().__init__(
            f"{ref} does not pass the policy for {alias}",
            hint="fix what the failed rules ask for; `--force --reason WHY` overrides them, and the history keeps it",
        )
        self.ref, self.alias, self.problems = ref, alias, tuple(verdicts)


class Taken(Refused):
    """A name in MLflow that something else than loradock made, `what`."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(
            f"{name!r} cannot be an adapter: in MLflow it is {what}",
            hint="choose another name: `loradock register RUN_ID --name NAME`",
        )
        self.name, self.what = name, what


class HistoryDamaged(Refused):
    """An entry of a family's history was edited, or is missing."""

    def __init__(self, name: str, number: int, fault: str) -> None:
        super().__init__(
            f"the history of {name} is damaged: entry {number} {fault}",
            hint="MLflow never changes an entry, so somebody changed its database: restore it from a backup",
        )
        self.name, self.number, self.fault = name, number, fault


class Unsigned(Refused):
    """An entry of a family's history lacks the signature that the policy before it demands, or has a false one."""

    def __init__(self, name: str, number: int, fault: str) -> None:
        super().__init__(
            f"the history of {name}: entry {number} {fault}",
            hint="LORADOCK_SIGNING_KEY_FILE names the private key that you sign with; an entry that stands in the"
            " history like this was written out of band: see `loradock history` and docs/explanation/trust.md",
        )
        self.name, self.number, self.fault = name, number, fault


class NotServable(Refused):
    """The adapter's own files rule it out; `reasons` lists why."""

    def __init__(self, what: str, reasons: Sequence[str], *, hint: str = "") -> None:
        super().__init__(
            f"{what} cannot be served: {'; '.join(reasons)}",
            hint=hint or "`loradock check` lists the remedies; without one, train it again without these",
        )
        self.what, self.reasons = what, tuple(reasons)


class WrongBase(Refused):
    """An adapter belongs to one base, and this is another."""

    def __init__(self, what: str, *, trained_on: str, given: str, hint: str = "") -> None:
        super().__init__(
            f"{what} was trained on {trained_on}, not on {given}",
            hint=hint or "train it on this base, or serve it on its own",
        )
        self.what, self.trained_on, self.given = what, trained_on, given


class Conflict(LoradockError):
    """Somebody else moved the alias first; `winner` has who, and to which version."""

    exit_code = 4

    def __init__(self, ref: str, *, expected: str, found: str, winner: str = "") -> None:
        by = f" by {winner}" if winner else ""
        super().__init__(
            f"{ref} is at {found}{by}, not at {expected}",
            hint=f"look at `loradock history {ref.partition('@')[0]}`, then decide again",
        )
        self.ref, self.expected, self.found, self.winner = ref, expected, found, winner


class Drifted(Conflict):
    """An alias was changed out of band: in MLflow itself, and not through loradock."""

    def __init__(self, name: str, alias: str, *, recorded: int | None, found: int | None) -> None:
        super().__init__(
            f"{name}@{alias}",
            expected=f"version {recorded}" if recorded else "no version",
            found=f"version {found}" if found else "no version",
            winner="an out-of-band change",
        )
        now = f"is at version {found}" if found else "was deleted"
        before = f"not at version {recorded}" if recorded else "and history has no move of it"
        self.args = (f"{name}@{alias} was changed out of band: it {now}, {before}",)
        self.hint = f"`loradock history {name} --adopt` takes it as it is, `--restore` moves it back"


class HistoryCut(LoradockError):
    """A history does not continue from the newest entry seen: it was truncated or replaced."""

    exit_code = 4

    def __init__(self, name: str, by: str, fault: str) -> None:
        super().__init__(
            f"the history of {name} does not continue from what {by}: it {fault}",
            hint=f"if somebody restored a backup, `loradock history {name} --accept --reason WHY` accepts what is"
            " there; else restore MLflow's database",
        )
        self.name, self.by, self.fault = name, by, fault


class NotFound(LoradockError):
    """There is no such run, version, alias or file."""

    exit_code = 5


class Unreachable(LoradockError):
    """A service does not answer."""

    exit_code = 6
