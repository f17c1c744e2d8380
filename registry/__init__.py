"""From a run to a version to an alias: the ground floor, which imports neither trainer nor serving.

The names in `__all__` are the stable ones, for notebooks and scripts: `from registry import Store, Settings, promote`.
Each is imported when it is first asked for, so that `import registry` stays light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from registry.base import resolve as resolve_base
    from registry.check import examine
    from registry.diff import compare
    from registry.errors import BadInput, Conflict, LoradockError, NotFound, Refused, Unreachable
    from registry.history import read as read_history
    from registry.promotion import promote, resolve, rollback
    from registry.records import Version
    from registry.refs import AliasRef, VersionRef, parse_ref
    from registry.settings import Settings
    from registry.store import Store
    from registry.versions import fetched, import_directory, register, verify

__all__ = [
    "AliasRef",
    "BadInput",
    "Conflict",
    "LoradockError",
    "NotFound",
    "Refused",
    "Settings",
    "Store",
    "Unreachable",
    "Version",
    "VersionRef",
    "compare",
    "examine",
    "fetched",
    "import_directory",
    "parse_ref",
    "promote",
    "read_history",
    "register",
    "resolve",
    "resolve_base",
    "rollback",
    "verify",
]

if not TYPE_CHECKING:  # a type checker shall still tell of names that are not there
    from registry.lazy import lazily

    HOMES = {
        "resolve_base": "registry.base:resolve",
        "examine": "registry.check",
        "compare": "registry.diff",
        "read_history": "registry.history:read",
        **dict.fromkeys(("BadInput", "Conflict", "LoradockError", "NotFound"), "registry.errors"),
        **dict.fromkeys(("Refused", "Unreachable"), "registry.errors"),
        **dict.fromkeys(("promote", "resolve", "rollback"), "registry.promotion"),
        "Version": "registry.records",
        **dict.fromkeys(("AliasRef", "VersionRef", "parse_ref"), "registry.refs"),
        "Settings": "registry.settings",
        "Store": "registry.store",
        **dict.fromkeys(("fetched", "import_directory", "register", "verify"), "registry.versions"),
    }
    __getattr__, __dir__ = lazily(__name__, HOMES)
