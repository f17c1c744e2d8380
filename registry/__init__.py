"""From a run to a version to an alias: the ground floor, which imports neither trainer nor serving.

The names in `__all__` are the stable ones, for notebooks and scripts: `from loradock.registry import Store, promote`.
Each is imported when it is first asked for, so that `import loradock.registry` stays light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if __name__ != "loradock.registry":  # a module under two names is two modules, with two of each class
    raise ImportError("this package is loradock.registry; import it by that name")

if TYPE_CHECKING:
    from loradock.registry.base import resolve as resolve_base
    from loradock.registry.check import examine
    from loradock.registry.diff import compare
    from loradock.registry.errors import BadInput, Conflict, LoradockError, NotFound, Refused, Unreachable
    from loradock.registry.history import read as read_history
    from loradock.registry.promotion import promote, resolve, rollback
    from loradock.registry.records import Version
    from loradock.registry.refs import AliasRef, VersionRef, parse_ref
    from loradock.registry.settings import Settings
    from loradock.registry.store import Store
    from loradock.registry.versions import fetched, import_directory, register, verify

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
    from loradock.registry.lazy import lazily

    HOMES = {
        "resolve_base": "loradock.registry.base:resolve",
        "examine": "loradock.registry.check",
        "compare": "loradock.registry.diff",
        "read_history": "loradock.registry.history:read",
        **dict.fromkeys(("BadInput", "Conflict", "LoradockError", "NotFound"), "loradock.registry.errors"),
        **dict.fromkeys(("Refused", "Unreachable"), "loradock.registry.errors"),
        **dict.fromkeys(("promote", "resolve", "rollback"), "loradock.registry.promotion"),
        "Version": "loradock.registry.records",
        **dict.fromkeys(("AliasRef", "VersionRef", "parse_ref"), "loradock.registry.refs"),
        "Settings": "loradock.registry.settings",
        "Store": "loradock.registry.store",
        **dict.fromkeys(("fetched", "import_directory", "register", "verify"), "loradock.registry.versions"),
    }
    __getattr__, __dir__ = lazily(__name__, HOMES)
