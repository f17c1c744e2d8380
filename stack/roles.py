"""Make the users of an MLflow server with basic-auth, each with what its work needs and no more.

    python stack/roles.py DIRECTORY      # with MLFLOW_TRACKING_URI, _USERNAME and _PASSWORD of an admin

DIRECTORY holds one file a user, named as it, with its password. Said again, it sets passwords anew and puts grants
right.
"""

# ruff: noqa: INP001 - a script, which the image carries alone

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.server.auth.client import AuthServiceClient

TRAININGS: Final = os.environ.get("MLFLOW_EXPERIMENT_NAME", "loradock")
SERVED: Final = (TRAININGS, "loradock-ledgers", "loradock-references")
"""What a replica reads: adapters, which are files of trainings, histories, reference outputs; and no evaluation."""
OURS: Final = (*SERVED, "loradock-evaluations")
"""The experiments that loradock writes to: trainings, each adapter's history, evaluations, reference outputs."""
ANY: Final = "*"


class Grant(NamedTuple):
    """What a role may do with one experiment, or with all things of a kind."""

    kind: str
    which: str
    permission: str


READING: Final = (Grant("experiment", ANY, "READ"), Grant("registered_model", ANY, "READ"))
ROLES: Final[Mapping[str, tuple[Grant, ...]]] = {
    "loradock-reader": READING,
    "loradock-replica": (
        Grant("registered_model", ANY, "READ"),
        *(Grant("experiment", name, "READ") for name in SERVED),
    ),
    "loradock-trainer": (*READING, Grant("experiment", TRAININGS, "EDIT")),
    # USE of the workspace is the right to make what is not there yet: a new adapter's registered model.
    "loradock-promoter": (
        Grant("experiment", ANY, "READ"),
        Grant("registered_model", ANY, "EDIT"),
        *(Grant("experiment", name, "EDIT") for name in OURS),
        Grant("workspace", ANY, "USE"),
    ),
}
USERS: Final[Mapping[str, str]] = {
    "reader": "loradock-reader",
    "replica": "loradock-replica",
    "trainer": "loradock-trainer",
    "promoter": "loradock-promoter",
}
WORKSPACE: Final = "default"


def ensure_experiments(uri: str) -> dict[str, str]:
    """Each experiment's id by its name; they are made by the admin, so that nobody else owns them."""
    client = MlflowClient(uri)
    found = {}
    for name in OURS:
        there = client.get_experiment_by_name(name)
        found[name] = there.experiment_id if there else client.create_experiment(name)
    return found


def ensure_user(auth: AuthServiceClient, name: str, password: str) -> None:
    """A user with this password."""
    try:
        auth.get_user(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        auth.create_user(name, password)
    else:
        auth.update_user_password(name, password)


def ensure_role(auth: AuthServiceClient, name: str, grants: set[Grant]) -> int:
    """A role with exactly these grants, by its id."""
    role = next((role for role in auth.list_roles(WORKSPACE) if role.name == name), None)
    role = role or auth.create_role(WORKSPACE, name)
    there = {
        Grant(found.resource_type, found.resource_pattern, found.permission): found.id
        for found in auth.list_role_permissions(role.id)
    }
    for grant in there.keys() - grants:
        auth.remove_role_permission(there[grant])
    for grant in sorted(grants - there.keys()):
        auth.add_role_permission(role.id, *grant)
    return int(role.id)


def main() -> None:
    """Do it."""
    if len(sys.argv) != 2 or "MLFLOW_TRACKING_URI" not in os.environ:
        sys.exit(__doc__)
    uri, directory = os.environ["MLFLOW_TRACKING_URI"], Path(sys.argv[1])
    if absent := [name for name in USERS if not (directory / name).is_file()]:
        sys.exit(f"{directory} lacks the passwords of: {', '.join(absent)}; stack/secrets.sh makes them")
    auth = AuthServiceClient(uri)
    ids = ensure_experiments(uri)
    roles = {
        name: ensure_role(auth, name, {Grant(kind, ids.get(which, which), may) for kind, which, may in grants})
        for name, grants in ROLES.items()
    }
    for user, role in USERS.items():
        ensure_user(auth, user, (directory / user).read_text(encoding="utf-8").strip())
        there = {found.id for found in auth.list_user_roles(user)}
        for other in there & set(roles.values()) - {roles[role]}:
            auth.unassign_role(user, other)
        if roles[role] not in there:
            auth.assign_role(user, roles[role])
        sys.stdout.write(f"{user}: {role}\n")


if __name__ == "__main__":
    main()
