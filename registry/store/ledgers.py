"""A family's history in MLflow: runs whose n-th param is the n-th entry.

MLflow writes a param once, which makes it a compare-and-set: the same value again is accepted, another value for the
same key is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from registry.store.connection import Connection, translated
from registry.store.families import Family

_APPLIED: Final = "applied"


@dataclass(frozen=True, slots=True)
class Ledger:
    """A family's history as it is stored."""

    entries: Mapping[int, str]
    """By number, in order."""
    applied: frozenset[int]
    """The numbers of the entries whose alias was set."""


class Ledgers(Connection):
    """Reading and appending to histories."""

    def append(self, family: Family, seq: int, entry: str) -> bool:
        """Write entry number `seq` of a family's history; False when somebody else wrote that number first."""
        from mlflow.exceptions import MlflowException

        with translated(self.uri, f"history of {family.name!r}"):
            try:
                self.client.log_param(family.ledger, f"{seq:08d}", entry, synchronous=True)
            except MlflowException as error:
                if error.error_code == "INVALID_PARAMETER_VALUE" and "already logged" in str(error):
                    return False
                raise
        return True

    def mark_applied(self, family: Family, seq: int) -> None:
        """Note that the alias was set to where entry `seq` says."""
        with translated(self.uri, f"history of {family.name!r}"):
            self.client.log_param(family.ledger, f"{seq:08d}.{_APPLIED}", "yes", synchronous=True)

    def ledger(self, family: Family) -> Ledger:
        """A family's whole history."""
        with translated(self.uri, f"history of {family.name!r}"):
            params = self.client.get_run(family.ledger).data.params
        numbers = [key.partition(".") for key in sorted(params)]
        return Ledger(
            entries={int(number): params[number] for number, _, mark in numbers if not mark},
            applied=frozenset(int(number) for number, _, mark in numbers if mark == _APPLIED),
        )
