"""Beam and best-first search over clusters of equivalent partial solutions (FETCH)."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tokenlens.controllers.search_tree import Cluster, Member, World, merged, turns


@dataclass(frozen=True)
class SearchSettings:
    """Budgets of both searches.

    Attributes
    ----------
    budget
        Children of one expansion.
    limit
        Expansions (best first), or time steps (beam).
    """

    budget: int = 5
    beam: int = 5
    limit: int = 50


async def _children(world: World, node: Cluster, budget: int, born: int) -> list[Cluster]:
    """Clusters of the open members' children; those of no value are dropped."""
    best = sorted((one for one in node.members if not one.is_leaf), key=lambda one: -one.value)
    written = await world.write(turns(best, budget), full=False)
    for one in written:
        one.value = await world.value(one)
    kept = [one for one in written if one.value >= 0]
    found = []
    for members in await merged(world, kept):
        ranked = sorted(members, key=lambda one: -one.value)
        found.append(Cluster(ranked, node, node.depth + 1, ranked[0].value, born=born))
    node.children += found
    node.expanded = True
    return found


async def beam_search(world: World, root: Cluster, how: SearchSettings) -> list[Cluster]:
    """All clusters that were found.

    A time step whose children were all dropped ends the search, as the authors' does; the best one
    of what there is can still be completed.
    """
    found: list[Cluster] = []
    latest = [root]
    for time in range(1, how.limit + 1):
        leaves = [one for one in found if one.is_leaf]
        pool = leaves + [one for one in latest if not one.is_leaf]
        beam = sorted(pool, key=lambda one: -one.value)[: how.beam]
        open_ones = [one for one in beam if not one.is_leaf]
        if not open_ones:
            break
        latest = []
        for node in open_ones:
            latest += await _children(world, node, how.budget, time)
        found += latest
    return found


async def best_first(
    world: World,
    root: Cluster,
    how: SearchSettings,
    complete: Callable[[Cluster], Awaitable[Member | None]],
) -> list[Cluster]:
    """All clusters that were found; at the limit the best open one is completed."""
    found = [root]
    for time in range(1, how.limit + 1):
        fresh = [one for one in found if not one.expanded]
        if not fresh:
            break
        node = max(fresh, key=lambda one: one.value)
        if node.is_leaf:
            return found
        found += await _children(world, node, how.budget, time)
    fresh = [one for one in found if not one.expanded and not one.is_leaf]
    if fresh and not any(one.is_leaf for one in found):
        node = max(fresh, key=lambda one: one.value)
        if (end := await complete(node)) is not None:
            found.append(Cluster([end], node, node.depth + 1, end.value))
    return found
