"""What the steps of a saga take of its input: what a worker copies, and what it would have to read; and whose results
they need. Pure.

If the input is sealed, a worker can only copy what is in it.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from sagastream.core.steps import StepDefinition
from sagastream.core.strict_json import value_of
from sagastream.core.templates import INPUT, Problem, Reference, operators

#: What references lead to: each name or index, with what they lead to below it, which is again such a dict.
Paths = dict[str, Any]


def paths(steps: Iterable[StepDefinition]) -> Paths:
    """All places in the input to which references of these steps lead."""
    found: Paths = {}
    for step in steps:
        for _, _, reference in _of_input(step):
            at = found
            for token in reference.tokens:
                at = at.setdefault(token, {})
    return found


def unreadable(step: StepDefinition) -> str | None:
    """Why a step cannot be of a saga whose input is sealed: a worker would have to read something of it, to compare it
    or to join it to a text. None: it can."""
    for member, path, reference in _of_input(step):
        if "/$concat/" not in f"{path}/" and (member != "when" or path.endswith("/exists")):
            continue
        problem = Problem(f"{path}/$ref", f"{reference.pointer}: the input is sealed, so a worker can only copy it")
        return f"{member}{problem.path}: {problem.text}: it can neither compare it nor join it to a text"
    return None


def needed_results(step: StepDefinition) -> list[int | str]:
    """The steps, by id or number, without whose results this step cannot begin."""
    found: dict[int | str, None] = {}
    for member, path, one in _references(step):
        asks = member == "when" and path.endswith("/exists")
        if member != "compensation_params" and one.step is not None and one.default is None and not asks:
            found[int(one.step) if one.step.isdecimal() else one.step] = None
    return list(found)


def _of_input(step: StepDefinition) -> Iterator[tuple[str, str, Reference]]:
    return (one for one in _references(step) if one[2].root == INPUT)


def _references(step: StepDefinition) -> Iterator[tuple[str, str, Reference]]:
    """The references of a step, each with the member in which it stands, and where in that."""
    shape = step.shape
    templates = {
        "params": step.params if shape.has_references else None,
        "when": shape.when,
        "compensation_params": shape.compensation_params,
    }
    for member, template in templates.items():
        for path, one in operators(value_of(template)) if template is not None else ():
            if isinstance(one, Reference):
                yield member, path, one
