"""References as values, which nobody recorded."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from loradock.registry.reference import Probe, Reference
from tests.support.adapters import SMOL

PROBE = Probe(prompt=(1, 2, 3), answer=(4, 5), adapted=(-1.5, -2, -0.1, -0.2), bare=(-1, -2, -3, -4), margins=(0.5, 2))
ADAPTER = "a" * 64


def reference(**changes: Any) -> Reference:
    whole = {
        "adapter": ADAPTER,
        "base": SMOL.weights_digest,
        "config": SMOL.config_digest,
        "software": {"peft": "0.21"},
        "at": datetime(2025, 1, 1, tzinfo=UTC),
        "probes": (PROBE,),
    }
    return Reference.model_validate(whole | changes)
