"""How hard tests of chance try, by hypothesis's profile.

`suite` tries a little, and the same each time: what it finds is new in the code, not in the numbers that were drawn.
`deep` is for hunts (`make hunt`), with other numbers in each round; what one finds is kept as an `@example`.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

SUITE, DEEP = 100, 1000
"""Examples of a property, where it does not say how many."""
SEED = int(os.environ.get("LORADOCKTEST_SEED", "0"))
"""What the numbers of tests without hypothesis are drawn by."""


def register() -> None:
    """Make both profiles known, and the suite's the one in force, unless pytest is told another."""
    # How fast a machine is at a moment is no fault of what is tested.
    calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
    settings.register_profile("suite", calm, max_examples=SUITE, derandomize=True)
    settings.register_profile("deep", calm, max_examples=DEEP)
    settings.load_profile("suite")


def tries(count: int) -> int:
    """How many it is in this profile of what is so many in the suite."""
    return count * settings.default.max_examples // SUITE


def seeds(count: int) -> range:
    """As many seeds as `tries` says."""
    return range(SEED, SEED + tries(count))
