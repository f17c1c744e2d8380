"""What a key that is for some models only sees of a replica."""

from __future__ import annotations

import re

from loradock.registry.refs import VersionRef
from loradock.registry.replica_status import ReplicaStatus, read
from loradock.serving.fleet import page
from loradock.serving.keys import Caller
from loradock.serving.report import seen_by
from tests.support.serving.status import NOTHING, answering, quarantined

BOT_1, BOT_2 = VersionRef("bot", 1), VersionRef("bot", 2)

WHOLE = read(
    NOTHING
    | {
        "converged": False,
        "waiting": {"cat": "cat/2 is being loaded"},
        "registry": {
            "uri": "http://mlflow:5000",
            "reachable": False,
            "staleness_seconds": 1.0,
            "error": "mlflow:5000 refused",
        },
        "adapters": {name: answering(f"{name}/1", promoted=f"{name}/1") for name in ("bot", "cat")},
        "cold": {"cow": "cow/1"},
        "shares": {"cat": {"canary": {"version": "cat/2", "weight": 0.1}}},
        "loading": ["cat/2", "bot/2"],
        "quarantined": {"cat/3": quarantined("no effect")},
        "refused": {"cod": {"version": "cod/1", "reason": "another base"}},
        "unlike": {"cat/1": "cat/1 was trained with another chat template than its base has here"},
        "histories": {"cat": "the history of cat does not go on"},
        "resident": {"bot/1": 1, "cat/1": 0},
        "proofs": {"bot/1": {}, "cat/1": {}},
        "keys": {"file": "/etc/keys.json", "count": 3, "error": ""},
    },
    "http://a",
)


def test_it_sees_its_own_adapters_and_no_address() -> None:
    seen = seen_by(Caller("site", allowed=re.compile("bot")), WHOLE)
    assert not re.search("cat|cow|cod|mlflow|keys.json", repr(seen))
    assert (seen.adapters.keys(), seen.loading, seen.resident) == ({"bot"}, (BOT_2,), {BOT_1: 1})
    assert (seen.converged, seen.waiting, seen.registry.reachable) == (True, {}, False)
    assert "bot" in page(read(seen.as_json(), "http://a")), "`loradock status` prints it"


def test_every_part_that_tells_of_single_adapters_is_known() -> None:
    seen = seen_by(Caller("site", allowed=re.compile("bot")), WHOLE)
    same = {part for part in ReplicaStatus.model_fields if getattr(seen, part) == getattr(WHOLE, part)}
    assert same == {"format", "base", "ready", "stopping", "capacity", "slots", "max_rank", "aliases"}
