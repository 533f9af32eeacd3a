"""How the problems of a document look, to people and as JSON."""

import json

from sagastream.console import printable
from sagastream.core.pointers import tokens_of
from sagastream_bridge.definitions.documents import Document
from sagastream_bridge.definitions.outline import called
from sagastream_bridge.definitions.problems import Problem


def line(document: Document, problem: Problem) -> str:
    """A problem on one line, as compilers write it. What was made in Python has no lines: there, its place is named."""
    position = document.position(problem.pointer)
    step = _step(document, problem)
    called_so = "" if step is None or step[1] == f"step {step[0]}" else f" ({step[1]})"
    name = "" if step is None else f" step {step[0]}{called_so}:"
    if position is None:
        where = f"{document.where}: {problem.pointer or '/'}"
    else:
        where = f"{document.where}:{position.line}:{position.column}"
    return printable(f"{where}: {problem.code}:{name} {problem.text}")


def as_json(document: Document, problem: Problem) -> str:
    """A problem as a JSON object."""
    position = document.position(problem.pointer)
    step = _step(document, problem)
    return json.dumps(
        {
            "source": document.where,
            "line": None if position is None else position.line,
            "column": None if position is None else position.column,
            "pointer": problem.pointer,
            "step": None if step is None else step[0],
            "name": None if step is None else step[1],
            "code": problem.code,
            "text": problem.text,
        }
    )


def _step(document: Document, problem: Problem) -> tuple[int, str] | None:
    """The number of the step with the problem, and what it is called."""
    tokens = tokens_of(problem.pointer)
    if tokens[:1] != ("steps",) or len(tokens) < 2:
        return None
    number = int(tokens[1]) + 1
    return number, called(document.steps[number - 1], number)
