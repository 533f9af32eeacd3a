"""The graph of a saga's steps: which step comes after which. Pure functions of what a saga_begin says.

A step names steps that stand before it in the list, so there are no cycles, and the numbers of the steps, descending,
are always an order in which they may be undone. A step that names none comes after the one before it, so a plain list
is a chain.
"""

from collections.abc import Iterator, Sequence

from sagastream.core.steps import StepDefinition, StepKind


def before(definition: StepDefinition, number: int) -> tuple[int, ...]:
    """The numbers of the steps that must be done before step `number` may begin, ascending; only the direct ones."""
    if definition.shape.after is not None:
        return definition.shape.after
    return (number - 1,) if number > 1 else ()


def ancestors(definitions: Sequence[StepDefinition]) -> list[frozenset[int]]:
    """Of each step the numbers of all steps that must be done before it, directly or not."""
    found: list[frozenset[int]] = []
    for number, definition in enumerate(definitions, 1):
        direct = before(definition, number)
        found.append(frozenset(direct).union(*(found[one - 1] for one in direct)))
    return found


def beside_pivot(definitions: Sequence[StepDefinition]) -> Iterator[tuple[int, int]]:
    """The steps that might run beside the pivot, each with the number of the pivot. A saga that has any is refused:
    what runs beside the pivot could fail after the point from which there is no way back."""
    pivot = next((number for number, one in enumerate(definitions, 1) if one.kind is StepKind.PIVOT), None)
    if pivot is None:
        return
    all_before = ancestors(definitions)
    for number in range(1, len(definitions) + 1):
        if (number < pivot and number not in all_before[pivot - 1]) or (
            number > pivot and pivot not in all_before[number - 1]
        ):
            yield number, pivot
