"""What of a saga's input workers would have to read, which they cannot once it is sealed. Pure."""

from collections.abc import Iterator

from sagastream.core.steps import StepDefinition
from sagastream.core.strict_json import value_of
from sagastream.core.templates import INPUT, Problem, Reference, operators


def unreadable(step: StepDefinition) -> str | None:
    """Why a step cannot be of a saga whose input is sealed; None: it can. A worker copies a member of the input as a
    whole: it can neither look into it, nor compare it, nor join it to a text."""
    shape = step.shape
    templates = {"params": step.params if shape.has_references else None, "when": shape.when}
    templates["compensation_params"] = shape.compensation_params
    for member, template in templates.items():
        if template is not None and (problem := next(_problems(member, template), None)) is not None:
            return f"{member}{problem.path}: {problem.text}"
    return None


def _problems(member: str, template: bytes) -> Iterator[Problem]:
    for path, one in operators(value_of(template)):
        if not isinstance(one, Reference) or one.root != INPUT:
            continue
        is_copied = len(one.tokens) <= 1 and "/$concat/" not in f"{path}/"
        if is_copied and (member != "when" or path.endswith("/exists")):
            continue
        text = f"{one.pointer}: the input is sealed, so a worker can only copy a member of it as a whole"
        yield Problem(f"{path}/$ref", f"{text}; it can neither look into it, nor compare it, nor join it")
