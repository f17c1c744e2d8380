"""What was measured on the last calls that ended, for whoever decides by it; of what was asked and said, nothing.

A bounded ring, read in pages by rising sequence number. It begins anew with the process, which has an id of its own.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Final

from loradock.serving.calls import Call, Outcome, Role

KEPT: Final = 20_000
"""Calls that are kept, of all adapters together: about 6 MB."""
_PAGE: Final = 2_000
"""Calls looked through for one page, so that no page holds up the event loop."""


@dataclass(frozen=True, slots=True)
class Ended:
    """One request that ended, however vLLM splits it. Times are in seconds."""

    seq: int
    name: str
    version: int
    role: Role
    started: float
    """Since the epoch, by this replica's clock."""
    outcome: Outcome
    finish: str
    """Why the model stopped: `length` where any answer was cut off, else `stop`, ...; empty when it did not."""
    first_token: float | None
    """Until the first token; None where none came."""
    per_token: float | None
    """Mean over the longest answer's tokens after the first; None where there were none, or it did not end well."""
    seconds: float
    prompt_tokens: int
    output_tokens: int
    """Of its longest answer."""


@dataclass(frozen=True, slots=True)
class Page:
    """An adapter's calls after a sequence number, and where the next page begins."""

    process: str
    oldest: int
    """The first call that is still kept, of whatever adapter."""
    next: int
    more: bool
    """Whether the next page is there already."""
    rows: tuple[Ended, ...]


class Signals:
    """The ring of one replica; use it on the event loop only."""

    def __init__(self, *, kept: int = KEPT, now: Callable[[], float] = time.time) -> None:
        self._rows: deque[Ended] = deque(maxlen=kept)
        self._next, self._now = 1, now
        self.process = uuid.uuid4().hex
        """Another in each process."""

    def ended(self, call: Call) -> None:
        """Keep what was measured on an adapter's call."""
        if call.version is None or call.ended is None:
            return
        seconds = call.ended - call.started
        first = None if call.first_token is None else call.first_token - call.started
        timed = first is not None and call.outcome == "ok" and call.longest > 1
        per_token = (seconds - first) / (call.longest - 1) if timed and first is not None else None
        self._rows.append(
            Ended(
                seq=self._next,
                name=call.version.name,
                version=call.version.number,
                role=call.asked.role,
                started=self._now() - seconds,
                outcome=call.outcome,
                finish=call.finish,
                first_token=first,
                per_token=per_token,
                seconds=seconds,
                prompt_tokens=call.prompt_tokens,
                output_tokens=call.longest,
            )
        )
        self._next += 1

    def page(self, name: str, since: int) -> Page:
        """An adapter's calls after a sequence number."""
        oldest = self._next - len(self._rows)
        begin = min(max(0, since + 1 - oldest), len(self._rows))
        looked = list(islice(self._rows, begin, begin + _PAGE))
        return Page(
            process=self.process,
            oldest=oldest,
            next=looked[-1].seq if looked else self._next - 1,
            more=begin + len(looked) < len(self._rows),
            rows=tuple(row for row in looked if row.name == name),
        )
