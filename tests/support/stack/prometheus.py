"""The stack's Prometheus: what it sees, and whether the dashboard's and the alerts' expressions say anything on it."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from typing import Any

from tests.support.stack.commands import ROOT

GRAFANA = {"$replica": ".*", "$adapter": ".*", "$__rate_interval": "1m", "$__interval": "1m"}
"""What Grafana puts for the dashboard's variables when everything is chosen."""


class Prometheus:
    """Its HTTP API."""

    def __init__(self, address: str) -> None:
        self.url = f"http://{address}/api/v1"

    def targets(self) -> Counter[str]:
        """How many targets of each job are up."""
        found = self._get("targets")["activeTargets"]
        return Counter(target["labels"]["job"] for target in found if target["health"] == "up")

    def value(self, expression: str) -> float | None:
        """The value of the only series of an expression; None where it has none, or several."""
        found = self.series(expression)
        return float(found[0]["value"][1]) if len(found) == 1 else None

    def series(self, expression: str) -> list[dict[str, Any]]:
        """The series of an expression now; raises ValueError where Prometheus does not understand it."""
        found: list[dict[str, Any]] = self._get("query", query=expression)["result"]
        return found

    def silent(self) -> list[str]:
        """The dashboard's expressions that have no series now, as it writes them."""
        return [expression for expression in expressions() if not self.series(chosen(expression))]

    def choices(self, metric: str, label: str) -> list[str]:
        """What Grafana offers for a variable: `label_values(metric, label)`."""
        found: list[str] = self._get(f"label/{label}/values", **{"match[]": metric})
        return found

    def alerts(self) -> dict[str, str]:
        """Each alert's state; its health instead where it is not ok."""
        rules = [rule for group in self._get("rules")["groups"] for rule in group["rules"]]
        return {rule["name"]: rule["state"] if rule["health"] == "ok" else rule["health"] for rule in rules}

    def _get(self, what: str, **query: str) -> Any:
        try:
            with urllib.request.urlopen(f"{self.url}/{what}?{urllib.parse.urlencode(query)}", timeout=30) as answer:  # noqa: S310
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise ValueError(f"{query}: {error.read().decode()}") from error


def chosen(expression: str) -> str:
    """An expression as Grafana sends it."""
    return re.sub("|".join(map(re.escape, GRAFANA)), lambda match: GRAFANA[match[0]], expression)


def expressions() -> list[str]:
    """Those of the dashboard's panels."""
    return [target["expr"] for panel in _dashboard()["panels"] for target in panel.get("targets", ())]


def marks() -> list[str]:
    """What it marks in all of its panels, as Grafana asks for it."""
    return [chosen(mark["target"]["expr"]) for mark in _dashboard()["annotations"]["list"]]


def _dashboard() -> Any:
    return json.loads((ROOT / "dashboards/loradock.json").read_text(encoding="utf-8"))
