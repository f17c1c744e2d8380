"""The answers of a run on disk: one line a row, kept as they come, and put into the input's order at the end.

While a run goes on, its answers are appended to OUTPUT.partial. OUTPUT itself appears once, whole, by a rename, when
every row has its line. A process that is killed while it writes leaves a line without an end, which the next one cuts.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from loradock.registry.errors import BadInput, LoradockError
from loradock.registry.records import Record
from loradock.serving.batch.manifest import RESTART


class Usage(Record):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int


class Answer(Record):
    """One line of the output."""

    id: str | int | None
    """The row's own."""
    index: int
    """The row's place in the input, from 0."""
    model: str
    """The version that answered, `support-bot/3`, or the base's name."""
    digest: str
    """Of the version's bytes, or of the base's weights."""
    text: str | None = None
    finish_reason: str | None = None
    """`stop`, or `length` where the tokens ran out; None for a row that failed."""
    usage: Usage | None = None
    error: str | None = None
    """Why this row has no answer."""


@dataclass(frozen=True, slots=True)
class _Place:
    file: BinaryIO
    start: int
    size: int
    failed: bool


class Journal:
    """One run's answers; no other process has them at the same time."""

    def __init__(self, output: Path, partial: BinaryIO) -> None:
        self._output = output
        self._partial = partial
        self._final = output.open("rb") if output.exists() else None
        self._places: dict[int, _Place] = {}

    @property
    def empty(self) -> bool:
        """Whether there is nothing of any run."""
        return self._final is None and not os.fstat(self._partial.fileno()).st_size

    @property
    def finished(self) -> bool:
        """Whether OUTPUT is there, and nothing came after it."""
        return self._final is not None and not os.fstat(self._partial.fileno()).st_size

    @property
    def done(self) -> frozenset[int]:
        """The rows that have a line."""
        return frozenset(self._places)

    @property
    def failed(self) -> frozenset[int]:
        """Those of them whose line is an error."""
        return frozenset(index for index, place in self._places.items() if place.failed)

    def read(self) -> None:
        """Find the lines that are there; cut off what was not written to its end. Raises BadInput for foreign lines."""
        if self._final is not None:
            whole = self._scan(self._final)
            if whole != os.fstat(self._final.fileno()).st_size:
                raise BadInput(f"{self._output} was changed since it was written", hint=RESTART)
        self._partial.truncate(self._scan(self._partial))
        self._partial.seek(0, os.SEEK_END)

    def _scan(self, file: BinaryIO) -> int:
        """Take in the lines of a file, and return where the last whole one ends; a later line of a row counts."""
        start = 0
        file.seek(0)
        for line in file:
            try:
                answer = Answer.model_validate_json(line)
            except ValidationError:
                break
            if not line.endswith(b"\n"):
                break
            self._places[answer.index] = _Place(file, start, len(line), answer.error is not None)
            start += len(line)
        return start

    def clear(self) -> None:
        """Delete every answer."""
        if self._final is not None:
            self._output.unlink()
            self._final.close()
            self._final = None
        self._partial.truncate(0)
        self._partial.seek(0)
        self._places.clear()

    def add(self, answers: list[Answer]) -> None:
        """Write lines; once this returns, they outlive this process."""
        start = self._partial.tell()
        for answer in answers:
            line = answer.model_dump_json().encode() + b"\n"
            self._partial.write(line)
            self._places[answer.index] = _Place(self._partial, start, len(line), answer.error is not None)
            start += len(line)
        self._partial.flush()

    def finish(self) -> None:
        """Put the lines into the input's order, as OUTPUT, by one rename."""
        scratch = self._output.with_name(f".{self._output.name}.sorted")
        with scratch.open("wb") as file:
            for _, place in sorted(self._places.items()):
                place.file.seek(place.start)
                file.write(place.file.read(place.size))
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(self._output)
        partial_for(self._output).unlink()

    def close(self) -> None:
        """Let go of the files."""
        self._partial.close()
        if self._final is not None:
            self._final.close()


def partial_for(output: Path) -> Path:
    """Where the answers of a run that goes on are."""
    return output.with_name(f"{output.name}.partial")


@contextmanager
def opened(output: Path) -> Iterator[Journal]:
    """The journal of an output.

    Raises LoradockError while another process has it, and BadInput when it cannot be written.
    """
    path = partial_for(output)
    try:
        partial = _locked(path)
        journal = Journal(output, partial)
    except BlockingIOError as error:
        raise LoradockError(
            f"another process writes {output} now", hint="let it end, or give another --output"
        ) from error
    except OSError as error:
        raise BadInput(f"{error.filename or path} cannot be written: {error.strerror}") from error
    try:
        yield journal
    finally:
        if journal.finished or journal.empty:
            path.unlink(missing_ok=True)
        journal.close()


def _locked(path: Path) -> BinaryIO:
    """The file open and locked, and not one that its last holder deleted meanwhile."""
    while True:
        file = path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            file.close()
            raise
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()
