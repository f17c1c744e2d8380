"""Facts as MLflow's tags, one tag a fact, so that a person who reads them in MLflow's UI can."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from loradock.registry.errors import LoradockError
from loradock.registry.records import Facts, canonical_json

PREFIX: Final = "loradock."


def tags_of(facts: Facts) -> dict[str, str]:
    """One tag a fact, so that a person who reads them in MLflow's UI can; and one a parent, to find its children by."""
    values = facts.model_dump(mode="json").items()
    tags = {f"{PREFIX}{key}": value if isinstance(value, str) else canonical_json(value) for key, value in values}
    return tags | {child_tag(parent): "yes" for parent in facts.parents}


def child_tag(parent: str) -> str:
    """The key of the tag that a version made from `parent` has; MLflow looks up a key in a time that does not grow."""
    return f"{PREFIX}parent.{parent}"


def facts_from(tags: Mapping[str, str]) -> Facts:
    """The facts that were written as tags; raises LoradockError where somebody changed them."""
    try:
        values = {
            name: tags[PREFIX + name] if field.annotation is str else json.loads(tags[PREFIX + name])
            for name, field in Facts.model_fields.items()
            if field.is_required() or PREFIX + name in tags
        }
        return Facts.model_validate(values)
    except (KeyError, ValueError) as error:
        raise LoradockError(
            f"the tags that loradock wrote were changed in MLflow: {error}", hint="restore them, or register it again"
        ) from error
