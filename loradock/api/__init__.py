"""What `import loradock` gives: the verbs as functions, thin ones over the rooms that do the work.

Each takes the registry as `store`, by default the one that the environment names, and `report`, which is called with
each line of progress; by default these lines are logged, at INFO or, where they warn, at WARNING.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from loradock.registry import refs
from loradock.registry.errors import BadInput
from loradock.registry.refs import AliasRef, VersionRef
from loradock.registry.settings import Settings
from loradock.registry.store import Store

Ref = str | VersionRef | AliasRef
"""`support-bot/3`, `support-bot@production`, or `support-bot`, which means `support-bot@production`."""
Report = Callable[[str], None]
"""Takes a line of progress."""


def open_store(settings: Settings | None = None) -> Store:
    """Open the registry.

    Args:
        settings: Where it is; by default what LORADOCK_HOME and MLFLOW_TRACKING_URI say.

    Returns:
        The registry, which every verb takes as `store`.

    Raises:
        BadInput: A variable holds what cannot be meant.
    """
    return Store(settings or Settings())


def parsed(ref: Ref) -> VersionRef | AliasRef:
    """A ref as a value; raises BadInput."""
    return refs.parse_ref(ref) if isinstance(ref, str) else ref


def logged(line: str) -> None:
    """Log a line of progress; one that warns, and the remedy below it, as a warning."""
    level = logging.WARNING if line.startswith(("warning: ", "  -> ")) else logging.INFO
    logging.getLogger("loradock").log(level, "%s", line)


def forced(force: bool, reason: str) -> str:
    """Why a refusal is overridden, empty where it is not; raises BadInput where nobody says why."""
    if force and not reason:
        raise BadInput("force needs a reason", hint="say why: force=True, reason=...")
    return reason if force else ""
