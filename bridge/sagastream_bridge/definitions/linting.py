"""Finds what is wrong in a definition or a saga_begin body before a saga runs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sagastream.core import graph
from sagastream.core.definition import SagaDefinition, canonical
from sagastream.core.messages import Begin
from sagastream.core.pointers import below, tokens_of
from sagastream.core.steps import AS_PUBLISHED, StepKind
from sagastream.errors import SettingsError
from sagastream_bridge.definitions import parking
from sagastream_bridge.definitions.documents import Document
from sagastream_bridge.definitions.input_schema import in_schema
from sagastream_bridge.definitions.inputs import in_example, in_saga
from sagastream_bridge.definitions.known import Known, Services, never_undone
from sagastream_bridge.definitions.lasting import shortest_safe_deadline_ms
from sagastream_bridge.definitions.mending import mended
from sagastream_bridge.definitions.outline import numbers_by_name
from sagastream_bridge.definitions.problems import Code, Problem

#: What a step may say about its undo, besides what it is.
_ABOUT_UNDO: Final = ("compensation_params", "compensation_attempts")


class Linted(NamedTuple):
    """What was found."""

    problems: list[Problem]  # in the order in which they stand in the document
    notes: list[str]  # what leads to a person in the ordinary course of things, though it is not wrong
    not_checked: list[str]  # what could not be looked at, and why


def lint(document: Document, known: Known) -> Linted:
    """Find all that is wrong in a document. Raises CannotRead."""
    steps = document.written_steps
    found, begin = mended(document)
    is_right = not found
    services, not_checked = known.services, []
    notes: list[str] = []
    if services is None:
        not_checked.append("what services publish (--services and --store tell it)")
    if document.is_definition and not known.is_in_store:
        not_checked.append("whether its content has changed and its version has not (--store tells it)")
    if known.deployed is not None:
        found += _same_version(document, known.deployed)
    if document.is_definition:
        try:
            found += in_example(document.body, begins=is_right)
        except SettingsError as error:
            not_checked.append(str(error))
    if begin is not None:
        if not any(
            problem.code in (Code.PIVOT, Code.AFTER) for problem in found
        ):  # else the graph is not the one that is meant
            found += _redundant(steps, begin)
        found += _deadline(begin)
        if services is not None:
            found += _unpublished(steps, begin, services)
        found += _needless(steps, begin, services)
        notes += parking.notes(steps, begin, services)
        if document.is_definition:
            found += in_schema(document.body, steps)
        else:
            found += in_saga(begin)
    return Linted(sorted(dict.fromkeys(found), key=lambda problem: _place(document, problem)), notes, not_checked)


def _place(document: Document, problem: Problem) -> tuple[Any, ...]:
    position = document.position(problem.pointer)
    if position is not None:
        return (*position, problem)
    tokens = tokens_of(problem.pointer)
    return (int(tokens[1]) if tokens[:1] == ("steps",) and len(tokens) > 1 else -1, 0, problem)


def _same_version(document: Document, deployed: SagaDefinition) -> Iterator[Problem]:
    if canonical(document.body) != canonical(deployed.body):
        text = f"version {deployed.version} of {deployed.name} is deployed with other content: raise the version"
        yield Problem(Code.SAME_VERSION, "/version", text)


def _redundant(steps: Sequence[Mapping[str, Any]], begin: Begin) -> Iterator[Problem]:
    """Names in `after` of steps that another name there comes after anyway."""
    ancestors = graph.ancestors(begin.steps)
    numbers = numbers_by_name(steps)
    for at, step in enumerate(steps):
        names = step.get("after")
        if not isinstance(names, list):
            continue
        named = [numbers.get(name, 0) if isinstance(name, int | str) else 0 for name in names]
        for index, number in enumerate(named):
            pointer = below(f"/steps/{at}/after", index)
            if number in named[:index]:
                yield Problem(Code.AFTER_REDUNDANT, pointer, f"{names[index]} is named twice")
                continue
            later = [other for other in named if 0 < other <= at and number in ancestors[other - 1]]
            if number and later:
                name = names[named.index(later[0])]
                yield Problem(Code.AFTER_REDUNDANT, pointer, f"{name} comes after {names[index]} anyway")


def _deadline(begin: Begin) -> Iterator[Problem]:
    least = shortest_safe_deadline_ms(begin)
    if begin.deadline_ms is not None and begin.deadline_ms < least:
        text = (
            f"deadline_ms is {begin.deadline_ms}, and the longest way to the point of no return may take {least} ms, "
            "even if each command is sent only once"
        )
        yield Problem(Code.DEADLINE, "/deadline_ms", text)


def _unpublished(steps: Sequence[Mapping[str, Any]], begin: Begin, services: Services) -> Iterator[Problem]:
    """What no service publishes, and what nobody undoes."""
    for at, (step, definition) in enumerate(zip(steps, begin.steps, strict=True)):
        command, service, undo = definition.transaction, definition.service, definition.compensation
        if not definition.shape.sends or (step.get("transaction"), step.get("service")) != (command, service):
            continue
        if (offered := services.get(service)) is None:
            names = f"there are {', '.join(sorted(services))}" if services else "there is none"
            yield Problem(Code.UNKNOWN_SERVICE, f"/steps/{at}/service", f"no service {service} is known: {names}")
            continue
        if command not in offered.commands:
            text = f"the service {service} publishes no command {command}: it has {_names(offered.commands)}"
            yield Problem(Code.UNKNOWN_COMMAND, f"/steps/{at}/transaction", text)
        elif undo == AS_PUBLISHED and command in offered.silent and definition.kind is StepKind.COMPENSATABLE:
            text = f"nobody says what undoes {command}: say compensation, or null if nothing needs to be undone"
            yield Problem(Code.NO_UNDO, f"/steps/{at}", text)
        if undo and undo not in offered.all_compensations:
            text = f"the service {service} publishes no compensation {undo}: it has {_names(offered.all_compensations)}"
            yield Problem(Code.UNKNOWN_COMPENSATION, f"/steps/{at}/compensation", text)


def _needless(steps: Sequence[Mapping[str, Any]], begin: Begin, services: Services | None) -> Iterator[Problem]:
    """What is said about undos that there never are."""
    for at, (step, definition) in enumerate(zip(steps, begin.steps, strict=True)):
        if (why := never_undone(definition, services)) is not None:
            for name in _ABOUT_UNDO:
                if name in step:
                    yield Problem(Code.NEEDLESS_UNDO, f"/steps/{at}/{name}", f"{name} is said for nothing: {why}")


def _names(names: frozenset[str]) -> str:
    return ", ".join(sorted(names)) or "none"
