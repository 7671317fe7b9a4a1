"""Search over clusters of equivalent partial solutions: best first, beam, MCTS (FETCH).

arXiv 2502.11183. Knows neither models nor texts: a :class:`World` writes, values and groups.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(eq=False)
class Member:
    """One partial solution: its steps so far, and whatever the world keeps of it."""

    path: tuple[str, ...] = ()
    is_leaf: bool = False
    value: float = 0.0
    state: Any = None


@dataclass(eq=False)
class Cluster:
    """Members that stand for the same, in the order in which they were created."""

    members: list[Member]
    parent: "Cluster | None" = None
    depth: int = 0
    value: float = 0.0
    prior: float = 1.0
    visits: int = 0
    total: float = 0.0
    born: int = 0
    expanded: bool = False
    children: list["Cluster"] = field(default_factory=list)

    @property
    def is_leaf(self) -> bool:
        """Whether its members are whole."""
        return self.members[0].is_leaf

    @property
    def mean(self) -> float:
        """Of its rewards."""
        return self.total / self.visits if self.visits else 0.0


class World(Protocol):
    """Writes, values and groups partial solutions."""

    async def write(self, parents: Sequence[Member], *, full: bool) -> list[Member]:
        """One child of each parent, to the end of its step or of the text."""

    async def value(self, member: Member) -> float:
        """Of a partial solution, from 0 to 1."""

    async def groups(self, members: Sequence[Member]) -> list[int]:
        """A label for each, in the order of appearance."""


async def merged(world: World, children: Sequence[Member]) -> list[list[Member]]:
    """Members that stand for the same; leaves and others apart."""
    found: list[list[Member]] = []
    for is_leaf in (False, True):
        some = [one for one in children if one.is_leaf == is_leaf]
        if not some:
            continue
        by_label: dict[int, list[Member]] = {}
        for member, label in zip(some, await world.groups(some)):
            by_label.setdefault(label, []).append(member)
        found += by_label.values()
    return found


def turns(members: Sequence[Member], count: int) -> list[Member]:
    """Members in turn, so many of them."""
    return [members[at % len(members)] for at in range(count)]


def average_linkage(rows: Sequence[Sequence[float]], distance: float) -> list[int]:
    """Labels of agglomerative clusters: average linkage, cosine distance, cut at a distance."""
    unit = []
    for row in rows:
        norm = math.sqrt(sum(x * x for x in row)) or 1.0
        unit.append([x / norm for x in row])
    apart = [[1 - sum(x * y for x, y in zip(a, b)) for b in unit] for a in unit]
    groups = [[i] for i in range(len(rows))]
    while len(groups) > 1:
        best, pair = math.inf, (0, 0)
        for i, a in enumerate(groups):
            for j in range(i):
                b = groups[j]
                mean = sum(apart[x][y] for x in a for y in b) / (len(a) * len(b))
                if mean < best:
                    best, pair = mean, (j, i)
        if best >= distance:
            break
        low, high = pair
        groups[low] += groups.pop(high)
    label = {i: min(group) for group in groups for i in group}
    order: dict[int, int] = {}
    return [order.setdefault(label[i], len(order)) for i in range(len(rows))]


@dataclass(frozen=True)
class TreeSettings:
    """Of the tree search, as the paper names them."""

    root_budget: int = 8
    node_budget: int = 4
    c: float = 0.6
    alpha: float = 0.5
    n_rollouts: int = 2
    min_search_time: int = 40
    max_search_time: int = 400
    min_terminals: float = 5
    conf_high_value: float = 0.9
    max_depth: int = 5
    # whose value a cluster has: of its first member (the authors' code) or of its best one
    first_value: bool = False


async def tree_search(world: World, root: Cluster, how: TreeSettings) -> Cluster:
    """MCTS: the root, with all that was found below it."""
    terminals = 0.0
    for time in range(1, how.max_search_time + 1):
        node = root
        while node.expanded and node.children and all(one.visits for one in node.children):
            node = max(node.children, key=lambda one: _bound(one, how.c))
        if node.is_leaf and node.visits:
            terminals += 0.1
        elif not node.is_leaf or node is root:
            if not node.expanded:
                await _expand(world, node, how)
            fresh = next((one for one in node.children if not one.visits), None)
            if fresh is not None:
                node = fresh
                terminals += node.is_leaf
        reward = node.value
        if how.n_rollouts and not node.is_leaf and node is not root:
            ends = await world.write(turns(node.members, how.n_rollouts), full=True)
            values = [await world.value(one) for one in ends]
            if values:
                mean = sum(values) / len(values)
                reward = (1 - how.alpha) * reward + how.alpha * mean
        up: Cluster | None = node
        while up is not None:
            up.visits += 1
            up.total += reward
            up = up.parent
        if time >= how.min_search_time and terminals >= how.min_terminals:
            break
    return root


def _bound(node: Cluster, c: float) -> float:
    assert node.parent is not None
    return node.mean + c * node.prior * math.sqrt(
        math.log(node.parent.visits + 1) / (node.visits + 1)
    )


async def _expand(world: World, node: Cluster, how: TreeSettings) -> None:
    node.expanded = True
    budget = how.root_budget if node.parent is None else how.node_budget
    if node.parent is not None:
        budget += round(min(0.5 * len(node.members), budget))
    full = node.depth + 1 >= how.max_depth or (
        node.parent is not None and node.mean >= how.conf_high_value
    )
    children = await world.write(turns(node.members, budget), full=full)
    for one in children:
        one.value = await world.value(one)
    for members in await merged(world, children):
        value = members[0].value if how.first_value else max(one.value for one in members)
        share = 0.8 + 0.2 * len(members) / len(children)
        node.children.append(Cluster(members, node, node.depth + 1, value, share))
