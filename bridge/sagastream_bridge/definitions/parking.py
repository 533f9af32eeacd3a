"""What in a saga leads to a person in the ordinary course of things, though nothing is wrong with it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sagastream.core.input_use import needed_results
from sagastream.core.messages import Begin
from sagastream.core.steps import StepDefinition, StepKind
from sagastream_bridge.definitions.known import Services, never_undone
from sagastream_bridge.definitions.outline import called, numbers_by_name


def notes(steps: Sequence[Mapping[str, Any]], begin: Begin, services: Services | None) -> Iterator[str]:
    """A line for each step that may be parked although each service does what it is asked for."""
    numbers = numbers_by_name(steps)
    for number, (step, definition) in enumerate(zip(steps, begin.steps, strict=True), 1):
        found = list(_of_a_pivot(definition, services))
        if definition.kind is StepKind.RETRIABLE:
            for name in needed_results(definition):
                found += _of_a_wait(name, begin.steps[numbers.get(name, number) - 1])
        yield from (f"step {number} ({called(step, number)}): {text}" for text in found)


def _of_a_pivot(step: StepDefinition, services: Services | None) -> Iterator[str]:
    signal, why = step.shape.retry_on, never_undone(step, services)
    if step.kind is StepKind.PIVOT and signal is not None and why is not None:
        yield (
            f"if the signal {signal} is declined or does not come, the saga is parked: a late delivery might still do "
            f"the pivot, and nothing undoes it, since {why}"
        )


def _of_a_wait(name: int | str, wait: StepDefinition) -> Iterator[str]:
    """`name`: by which it is named."""
    if wait.shape.wait is not None and not wait.shape.goes_on:  # one that goes on needs a default anyway
        yield (
            f"if nobody sends the signal {wait.shape.wait}, an operator may skip step {name}. Then there is no result "
            "of it, this step is parked, and a retry cannot help: say a default"
        )
