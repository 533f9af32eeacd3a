"""Which parts of a graph are alike. Pure.

A branch is a step and all steps that come after nothing else. Branches that come after the same steps, look the same
and lead to the same steps can change places: which of them has failed makes no difference to any decision.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

#: The numbers of the steps of a branch, ascending.
Branch = tuple[int, ...]


class Symmetry(NamedTuple):
    """What is alike in a graph."""

    alike: tuple[
        tuple[Branch, ...], ...
    ]  # branches that can change places; smaller ones, which may be parts, come first
    groups: tuple[tuple[int, ...], ...]  # steps that can change places, each step in one group


def symmetry(before: Sequence[Sequence[int]], facts: Sequence[Hashable]) -> Symmetry:
    """What is alike in a graph.

    Args:
        before: of each step, the numbers of those that it comes directly after.
        facts: of each step, all else that tells it from others.
    """
    siblings: dict[tuple[int, ...], list[int]] = {}
    for number, direct in enumerate(before, 1):
        siblings.setdefault(tuple(direct), []).append(number)
    alike = []
    for heads in siblings.values():
        found: dict[Hashable, list[Branch]] = {}
        for head in heads if len(heads) > 1 else ():
            branch = _branch(before, head)
            found.setdefault(_looks(before, facts, branch), []).append(branch)
        alike += [tuple(branches) for branches in found.values() if len(branches) > 1]
    alike.sort(key=lambda branches: len(branches[0]))
    return Symmetry(tuple(alike), _groups(len(before), alike))


def _branch(before: Sequence[Sequence[int]], head: int) -> Branch:
    found = {head}
    for number in range(head + 1, len(before) + 1):
        if before[number - 1] and found.issuperset(before[number - 1]):
            found.add(number)
    return tuple(sorted(found))


def _looks(before: Sequence[Sequence[int]], facts: Sequence[Hashable], branch: Branch) -> Hashable:
    """How a branch looks, from inside and to those after it."""
    places = {number: place for place, number in enumerate(branch)}
    inside = [tuple(places[other] for other in before[number - 1] if other in places) for number in branch]
    outside = [
        tuple(after for after, direct in enumerate(before, 1) if number in direct and after not in places)
        for number in branch
    ]
    return tuple(inside), tuple(outside), tuple(facts[number - 1] for number in branch)


def _groups(count: int, alike: Sequence[Sequence[Branch]]) -> tuple[tuple[int, ...], ...]:
    of = {number: {number} for number in range(1, count + 1)}
    for branches in alike:
        for steps in zip(*branches, strict=True):
            group = set[int]().union(*(of[number] for number in steps))
            of |= dict.fromkeys(group, group)
    return tuple(sorted({tuple(sorted(group)) for group in of.values()}))
