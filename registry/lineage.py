"""Where a version comes from and what became of it, as a graph: decided purely from what was found beforehand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from loradock.registry import history as histories
from loradock.registry.errors import BadInput, NotFound
from loradock.registry.records import Version
from loradock.registry.refs import AliasRef, VersionRef, parse_version
from loradock.registry.store import Store
from loradock.registry.store.lineage import Publication, RunFacts
from loradock.registry.tenures import Tenure, tenures

__all__ = ["Branch", "Edge", "Graph", "Kin", "Node", "Publication", "graph", "kin", "tree"]

_BACKWARDS: Final = {
    "made from": "made into",
    "stands at": "under",
    "stood at": "was under",
    "measures": "measured by",
}
"""How an edge reads from its end to its beginning."""


@dataclass(frozen=True, slots=True)
class Kin:
    """What was found around one version."""

    version: Version
    run: RunFacts | None
    """None when it is gone."""
    parents: Mapping[str, Version | None] = field(default_factory=dict)
    """By ref; None for one that is gone."""
    aliases: tuple[str, ...] = ()
    """Those that stand at it in MLflow."""
    tenures: tuple[Tenure, ...] = ()
    """When aliases stood at it, by its family's history."""
    children: tuple[VersionRef, ...] = ()
    evaluations: tuple[RunFacts, ...] = ()
    """Of its bytes, newest first."""
    publications: tuple[Publication, ...] = ()


@dataclass(frozen=True, slots=True)
class Node:
    """One thing: a version, run, recipe, commit, data set, base, alias, evaluation or publication."""

    id: str
    kind: str
    label: str
    """For a person, in one line."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    gone: bool = False

    def row(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"id": self.id, "kind": self.kind, "label": self.label, "gone": self.gone, **self.facts}


@dataclass(frozen=True, slots=True)
class Edge:
    """Why one thing points at another."""

    start: str
    end: str
    kind: str
    """As one says it: a version is `made from` its parents, an alias `stands at` a version."""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"from": self.start, "to": self.end, "kind": self.kind, **self.facts}


@dataclass(frozen=True, slots=True)
class Graph:
    """Everything around one version, which is the first node."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]

    def row(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"nodes": [node.row() for node in self.nodes], "edges": [edge.row() for edge in self.edges]}


@dataclass(frozen=True, slots=True)
class Branch:
    """A line of a tree, and what hangs on it."""

    text: str
    branches: tuple[Branch, ...] = ()


def kin(store: Store, version: Version) -> Kin:
    """Look around a version, in calls whose cost does not grow with its family; what is gone is no error."""
    past = histories.read(store, version.ref.name)
    number = version.ref.number
    return Kin(
        version=version,
        run=store.run_facts(version.facts.run_id),
        parents={parent: _parent(store, parent) for parent in version.facts.parents},
        aliases=tuple(sorted(alias for alias, at in past.family.aliases.items() if at == number)),
        tenures=tuple(tenure for tenure in tenures(past.moves) if tenure.number == number),
        children=store.children(version.ref),
        evaluations=store.evaluations(version.facts.digest),
        publications=store.publications(version.ref),
    )


def _parent(store: Store, ref: str) -> Version | None:
    try:
        return store.version(parse_version(ref))
    except (NotFound, BadInput):
        return None


Link = tuple[Node, Edge]


def graph(found: Kin) -> Graph:
    """Nodes and edges; the version itself is the first node."""
    version = found.version
    digest, method = version.facts.digest, version.facts.method
    me = Node(str(version.ref), "version", f"{version.ref}  {digest[:12]}", {"digest": digest, "method": method})
    links = (*_back(found, me.id), *_forward(found, me.id))
    nodes = {me.id: me}
    for node, _ in links:
        nodes.setdefault(node.id, node)
    return Graph(tuple(nodes.values()), tuple(edge for _, edge in links))


def _back(found: Kin, me: str) -> Iterator[Link]:
    facts, run = found.version.facts, found.run
    if facts.run_id:
        yield from _run(run, facts.run_id, me)
    if facts.data_digest:
        counts = {key.removeprefix("data."): value for key, value in _params(run, "data.").items()}
        label = f"{counts.get('file', 'data')}, {counts.get('rows', '?')} rows  {facts.data_digest[:12]}"
        data = Node(f"data:{facts.data_digest}", "data", label, {"digest": facts.data_digest, "counts": counts})
        yield _out(f"run:{facts.run_id}", "trained on", data)
    base = facts.base
    label = f"{base.id}{'@' if base.revision else ''}{base.revision[:12]}  {base.weights_digest[:12]}"
    about = {"name": base.id, **base.model_dump(mode="json", exclude={"id"})}
    yield _out(me, "adapts", Node(f"base:{base.weights_digest}", "base", label, about))
    for ref, parent in found.parents.items():
        digest = parent.facts.digest if parent else ""
        label = f"{ref}  {digest[:12]}".rstrip()
        yield _out(me, "made from", Node(ref, "version", label, {"digest": digest}, gone=parent is None))


def _run(run: RunFacts | None, run_id: str, me: str) -> Iterator[Link]:
    node_id = f"run:{run_id}"
    if run is None:
        yield _out(me, "made by", Node(node_id, "run", f"run {run_id}", {"run_id": run_id}, gone=True))
        return
    yield _out(me, "made by", _run_node(run, "run", node_id))
    recipe = _params(run, "recipe.")
    if run.recipe or recipe:
        where = run.recipe or f"recipe of run {run_id}"
        label = f"recipe {recipe.get('recipe.name', '')}  {where}"
        yield _out(node_id, "follows", Node(where, "recipe", label, {"parameters": recipe}, gone=not run.recipe))
    if commit := run.tags.get("mlflow.source.git.commit"):
        dirty = run.tags.get("loradock.git.dirty") == "true"
        label = f"commit {commit[:12]}{', with changes that are not in it' if dirty else ''}"
        yield _out(node_id, "at", Node(f"commit:{commit}", "commit", label, {"commit": commit, "dirty": dirty}))
    if software := run.params.get("environment.loradock"):
        yield _out(node_id, "by", Node(f"loradock:{software}", "software", f"loradock {software}"))


def _run_node(run: RunFacts, kind: str, node_id: str) -> Node:
    about = {"run_id": run.run_id, "name": run.name, "status": run.status, "started": run.started_at.isoformat()}
    measured = {"metrics": dict(run.metrics)} if kind == "evaluation" else {}
    label = f"run {run.run_id}  {run.name}, {run.status}"
    return Node(node_id, kind, label, about | measured, gone=run.status == "deleted")


def _forward(found: Kin, me: str) -> Iterator[Link]:
    name = found.version.ref.name
    current = {tenure.alias: tenure for tenure in found.tenures if tenure.until is None}
    for alias in found.aliases:
        ref = str(AliasRef(name, alias))
        yield _in(me, "stands at", Node(ref, "alias", ref), _when(current.get(alias)))
    for tenure in found.tenures:
        if tenure.until is not None:
            ref = str(AliasRef(name, tenure.alias))
            yield _in(me, "stood at", Node(ref, "alias", ref), _when(tenure))
    for child in found.children:
        yield _in(me, "made from", Node(str(child), "version", str(child)))
    for run in found.evaluations:
        yield _in(me, "measures", _run_node(run, "evaluation", f"run:{run.run_id}"))
    for publication in found.publications:
        where = f"{publication.repo}@{publication.revision}"
        about = publication.model_dump(mode="json")
        yield _out(me, "published as", Node(where, "publication", f"{where}  {publication.at:%Y-%m-%d}", about))


def _out(start: str, kind: str, node: Node) -> Link:
    return node, Edge(start, node.id, kind)


def _in(end: str, kind: str, node: Node, facts: Mapping[str, Any] | None = None) -> Link:
    return node, Edge(node.id, end, kind, facts or {})


def _when(tenure: Tenure | None) -> dict[str, Any]:
    if tenure is None:
        return {}
    until = tenure.until.isoformat() if tenure.until else None
    return {"since": tenure.since.isoformat(), "until": until, "actor": tenure.actor, "reason": tenure.reason}


def _params(run: RunFacts | None, prefix: str) -> dict[str, str]:
    return {key: value for key, value in run.params.items() if key.startswith(prefix)} if run else {}


def tree(found: Graph) -> Branch:
    """The graph as it hangs on its version."""
    nodes = {node.id: node for node in found.nodes}

    root = found.nodes[0]

    def outwards(node: Node) -> tuple[Branch, ...]:
        edges = (edge for edge in found.edges if edge.start == node.id and edge.end != root.id)
        return tuple(Branch(f"{edge.kind}  {_told(nodes[edge.end])}", outwards(nodes[edge.end])) for edge in edges)

    inwards = (Branch(_backwards(edge, nodes[edge.start])) for edge in found.edges if edge.end == root.id)
    return Branch(_told(root), (*outwards(root), *inwards))


def _told(node: Node) -> str:
    return f"{node.label}{'  (gone)' if node.gone else ''}"


def _backwards(edge: Edge, node: Node) -> str:
    note = ""
    if since := edge.facts.get("since"):
        until = edge.facts["until"]
        when = f"{since[:19]} to {until[:19]}" if until else f"since {since[:19]}"
        note = f"  {when}, by {edge.facts['actor']}" + (f": {edge.facts['reason']}" if edge.facts["reason"] else "")
    return f"{_BACKWARDS[edge.kind]}  {_told(node)}{note}"
