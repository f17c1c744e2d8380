"""A family's history in MLflow: runs whose params are its entries, by number.

MLflow writes a param once, which makes it a compare-and-set: the same value again is accepted, another value for the
same key is refused. N is an entry's number in eight digits, ID a random name of whoever repairs. All params are:

| Param        | Written by                | When                     | Read by         | Carried over?               |
|--------------|---------------------------|--------------------------|-----------------|-----------------------------|
| N            | append: whoever is first  | before the alias is set  | history.read    | as N.carried, if it matters |
| N.applied    | mark_applied: N's writer  | when it is done          | History.applied | with N.carried              |
| N.mending.ID | mending: another promoter | before it sets the alias | History._late   | while open: _hand_on        |
| N.mended.ID  | mending: the same one     | when a reading agreed    | History.applied | as N.mended.carried         |
| N.carried    | _next, _mark: a copy of N | in each later run        | history.read    | again, if it matters        |
| next         | _next: whoever is first   | when the run is full     | _parts          | no                          |

`History.carry` says what matters. A writer is done when it has set the alias, or was overtaken. The first run's tag
`loradock.ledger.newest` is a short cut to a later run. docs/decisions/0002-a-ledger-for-aliases.md draws the states of
a move: written, applied, open repair, repaired, overtaken; and drift.
"""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Final

from loradock.registry.errors import Refused
from loradock.registry.store.connection import experiment_id, refusals, restoring, translated, upsert
from loradock.registry.store.families import LEDGERS, Families, Family, ledger_title

ENTRIES: Final = 100
"""How many entries a run holds: reading one of 100 takes MLflow 14 ms, one of 5,000 takes 343."""
_APPLIED: Final = "applied"
_MENDING: Final = "mending."
_MENDED: Final = "mended."
_CARRIED: Final = "carried"
_NEXT: Final = "next"
_NEWEST: Final = "loradock.ledger.newest"
"""The tag of a history's first run with a later one: from there, not from the beginning, the end is looked for."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """A family's history as it is stored, or the end of it."""

    start: int
    """The number of the first entry that was read."""
    entries: Mapping[int, str]
    """By number, in order."""
    carried: Mapping[int, str]
    """The copies of older entries that the runs which were read begin with."""
    applied: frozenset[int]
    """The entries whose writer is done with the alias: it has set it, or was overtaken."""
    mended: frozenset[int]
    """The entries whose alias another promoter has set: closed repairs."""
    mending: frozenset[int]
    """The entries whose alias another promoter is setting, or was setting when it was killed: open repairs."""
    begun_at: str
    """The first run that was read."""
    run_id: str
    """The newest run."""
    room: bool
    """Whether the newest run takes another entry, so that no run has to follow it."""


class Ledgers(Families):
    """Reading and appending to histories."""

    entries_per_run = ENTRIES

    def ledger(self, family: Family, *, whole: bool = False) -> Ledger:
        """A family's history, from its newest run or from its beginning."""
        parts = tuple(self._parts(family, whole=whole))
        texts = [(*key.partition("."), value) for _, params in parts for key, value in sorted(params.items())]
        run_id, newest = parts[-1]
        before = [int(key.partition(".")[0]) for key in parts[0][1] if key.endswith(_CARRIED)]
        return Ledger(
            start=max(before, default=-1) + 1,
            entries={int(number): text for number, _, mark, text in texts if number.isdigit() and not mark},
            carried={int(number): text for number, _, mark, text in texts if mark == _CARRIED},
            applied=frozenset(int(number) for number, _, mark, _ in texts if mark == _APPLIED),
            mended=frozenset(int(number) for number, _, mark, _ in texts if mark.startswith(_MENDED)),
            mending=frozenset(_mending(key for _, params in parts for key in params)),
            begun_at=parts[0][0],
            run_id=run_id,
            room=sum(key.isdigit() for key in newest) < self.entries_per_run,
        )

    def append(self, family: Family, ledger: Ledger, seq: int, entry: str, *, carry: Mapping[int, str]) -> bool:
        """Write entry number `seq`, the next one of `ledger`; False when somebody else wrote that number first.

        `carry` are the entries that a new run begins with, where this one needs one.
        """
        try:
            with translated(self.uri, f"history of {family.name!r}"):
                run_id = ledger.run_id if ledger.room else self._next(family, ledger, carry)
                if run_id != ledger.begun_at:
                    self._hand_on(family, run_id, end=seq)
                    upsert(partial(self.client.set_tag, family.ledger, _NEWEST, run_id))
                return self._write_once(run_id, _key(seq), entry)
        except Refused as error:
            if command := self.binned(family):  # its runs are there with it, and would be again
                error.hint = f"bring all histories back, and nothing is lost: {command}"
            raise

    def mark_applied(self, ledger: Ledger, seq: int) -> None:
        """Note that the writer of entry `seq` has set the alias, and sets it no more."""
        with translated(self.uri, "history"):
            self._write_once(ledger.run_id, f"{_key(seq)}.{_APPLIED}", "yes")

    @contextmanager
    def mending(self, ledger: Ledger, seq: int) -> Iterator[None]:
        """Mark a repair as open before, and as closed after, another than the writer of entry `seq` sets the alias."""
        nonce, text = secrets.token_hex(8), {**ledger.carried, **ledger.entries}[seq]
        with translated(self.uri, "history"):
            self._mark(ledger.run_id, seq, text, f"{_MENDING}{nonce}")
        yield
        with translated(self.uri, "history"):
            self._mark(ledger.run_id, seq, text, f"{_MENDED}{nonce}")

    def _mark(self, run_id: str, seq: int, text: str, mark: str) -> None:
        """Mark an entry in the run that holds it and in every later run, since readers may read only the newest."""
        self._write_once(run_id, f"{_key(seq)}.{mark}", "yes")
        if after := self.client.get_run(run_id).data.params.get(_NEXT, ""):
            self._write_once(after, f"{_key(seq)}.{_CARRIED}", text)
            self._mark(after, seq, text, mark)

    def _hand_on(self, family: Family, run_id: str, *, end: int) -> None:
        """Copy open repairs into a new run before anybody can read that run alone."""
        for older, params in takewhile(lambda part: part[0] != run_id, self._parts(family, whole=False)):
            for seq, others in _mending(params).items():
                text = params.get(_key(seq)) or params[f"{_key(seq)}.{_CARRIED}"]
                for nonce in others if end - ENTRIES <= seq else ():
                    self._mark(older, seq, text, f"{_MENDING}{nonce}")

    def deleted(self, family: Family) -> tuple[str, ...]:
        """The runs of a family's history that somebody deleted in MLflow, whose next `mlflow gc` purges them."""
        runs = [run_id for run_id, _ in self._parts(family, whole=True)]
        with translated(self.uri, f"history of {family.name!r}"):
            return tuple(run for run in runs if self.client.get_run(run).info.lifecycle_stage == "deleted")

    def binned(self, family: Family) -> str:
        """The command that brings the experiment of all histories back out of MLflow's bin, whose `gc` purges it."""
        with translated(self.uri, f"history of {family.name!r}"):
            run = self.client.get_run(family.ledger)
            return restoring(self.client.get_experiment(run.info.experiment_id))

    def strays(self, family: Family) -> tuple[str, ...]:
        """The runs that hold entries of a history called as a family's is, and that its parts do not lead to."""
        reached = {run_id for run_id, _ in self._parts(family, whole=True)}
        with translated(self.uri, f"history of {family.name!r}"):
            ledgers = experiment_id(self.client, self.settings, LEDGERS)
            found = self.client.search_runs([ledgers], f"attributes.run_name = '{ledger_title(family.name)}'")
        entered = [run.info.run_id for run in found if any(key.isdigit() for key in run.data.params)]
        return tuple(run_id for run_id in entered if run_id not in reached)

    def _parts(self, family: Family, *, whole: bool) -> Iterator[tuple[str, Mapping[str, str]]]:
        with translated(self.uri, f"history of {family.name!r}"):
            run_id, run = family.ledger, self.client.get_run(family.ledger)
            if (title := run.info.run_name) != ledger_title(family.name):
                raise Refused(
                    f"{family.name!r} names run {run_id} as its history, and that is called {title!r}",
                    hint=f"rename in MLflow what was renamed there: the run is {ledger_title(family.name)!r}",
                )
            if not whole and _NEWEST in run.data.tags:
                run_id = run.data.tags[_NEWEST]
                run = self.client.get_run(run_id)
            while True:
                yield run_id, run.data.params
                if not (run_id := run.data.params.get(_NEXT, "")):
                    return
                run = self.client.get_run(run_id)

    def _next(self, family: Family, ledger: Ledger, carry: Mapping[int, str]) -> str:
        """The run after a full one; of several who make it at once, one does, and all get the same."""
        made = self.new_ledger(family.name)
        for seq, entry in carry.items():
            self._write_once(made, f"{_key(seq)}.{_CARRIED}", entry)
            if seq in ledger.applied:
                self._write_once(made, f"{_key(seq)}.{_APPLIED}", "yes")
            if seq in ledger.mended:
                self._write_once(made, f"{_key(seq)}.{_MENDED}{_CARRIED}", "yes")
        if self._write_once(ledger.run_id, _NEXT, made):
            return made
        self.client.delete_run(made)
        found: str = self.client.get_run(ledger.run_id).data.params[_NEXT]
        return found

    def _write_once(self, run_id: str, key: str, value: str) -> bool:
        try:
            self.client.log_param(run_id, key, value, synchronous=True)
        except refusals() as error:
            if error.error_code == "INVALID_PARAMETER_VALUE" and "already logged" in str(error):
                return False
            raise
        return True


def _mending(params: Iterable[str]) -> Mapping[int, Collection[str]]:
    """By entry, the IDs of its open repairs."""
    params, found = set(params), defaultdict[int, set[str]](set)
    for key in params:
        number, _, who = key.partition(f".{_MENDING}")
        if who and f"{number}.{_MENDED}{who}" not in params:
            found[int(number)].add(who)
    return found


def _key(seq: int) -> str:
    return f"{seq:08d}"
