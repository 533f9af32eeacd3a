"""Reads a document as far as it can be read: each time that the core refuses it, the reason is noted, and the copy is
changed so that this reason is gone. So all problems are found at once, by the rules that hold when a saga begins.
"""

import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any, Final, NamedTuple

from sagastream.core.begin_parsing import parse_begin
from sagastream.core.definition import parse
from sagastream.core.expansion import sketch
from sagastream.core.messages import Begin
from sagastream.core.pointers import below, tokens_of
from sagastream.core.steps import StepKind
from sagastream.errors import MalformedMessage
from sagastream_bridge.definitions.documents import Document
from sagastream_bridge.definitions.outline import numbers_by_name
from sagastream_bridge.definitions.problems import Code, Problem

_OF_A_STEP: Final = re.compile(r"(?:the (?:body|definition): )?step ([0-9]+)(?:: | )(.*)", re.DOTALL)
_OF_ALL: Final = re.compile(r"(?:the (?:body|definition)(?:: | ))?(.*)", re.DOTALL)
_UNKNOWN: Final = re.compile(
    r"has an unknown member (.+?)(?:; is it (?:a misspelling of|meant as) (\w+)\?)?", re.DOTALL
)
_NOT_OF_A_WAIT: Final = re.compile(r"a (?:wait|pause) cannot have (\w+)")
_OF_ONE_SAGA: Final = re.compile(r"(\w+) is of one saga")
_OF_AN_ITEM: Final = ("/item", "/index")
_MISSING: Final = re.compile(r"(\w+) is missing")
_BESIDE: Final = re.compile(r"it might run beside the pivot, step ([0-9]+)")
#: What stands in the place of a member that is missing or wrong.
_STAND_INS: Final[dict[str, Any]] = {
    "saga_id": "any",
    "name": "any",
    "version": 1,
    "transaction": "any",
    "service": "any",
    "params": None,
    "timeout_ms": 1000,
    "wait": "any",
    "wait_ms": 1000,
    "each": {"$ref": "/input/any"},
}
#: The most problems that are looked for: each takes another reading.
_MOST_PROBLEMS: Final = 500
#: The members in which references stand.
_TEMPLATES: Final = {"params": Code.REFERENCE, "compensation_params": Code.REFERENCE, "when": Code.CONDITION}


class Read(NamedTuple):
    """What a document says, as far as it makes sense."""

    problems: list[Problem]
    begin: Begin | None  # its steps have the numbers that they have in the document; None: too much is wrong


def mended(document: Document) -> Read:
    """All that the core refuses in a document, and what is left of it."""
    body = deepcopy(document.body)
    parsed = _definition if document.is_definition else parse_begin
    problems: dict[Problem, None] = {}
    while True:
        try:
            return Read(list(problems), parsed(body))
        except MalformedMessage as error:
            problem, mend = _Refused(body, str(error)).problem_and_mend()
            if problem in problems or len(problems) == _MOST_PROBLEMS:
                return Read(list(problems), None)
            problems[problem] = None
            mend()


def _definition(body: Any) -> Begin:
    return sketch(parse(body))


class _Refused:
    """A document that was refused, and the reason, which says where."""

    def __init__(self, body: dict[str, Any], text: str) -> None:
        self._body = body
        self._text, self._base, self._number = text, "", 0
        self._value: Any = body
        steps = body.get("steps")
        if (found := _OF_A_STEP.fullmatch(text)) and isinstance(steps, list) and int(found[1]) <= len(steps):
            self._number, self._text = int(found[1]), found[2]
            self._base, self._value = f"/steps/{self._number - 1}", steps[self._number - 1]
        elif found := _OF_ALL.fullmatch(text):
            self._text = found[1]

    def problem_and_mend(self) -> tuple[Problem, Callable[[], None]]:
        """What is wrong, and how to change the document so that it is not."""
        if not isinstance(self._value, dict):
            return self._problem(Code.MALFORMED, ""), self._stand_in
        if found := _UNKNOWN.fullmatch(self._text):
            name = next((one for one in self._value if f"{one!a}" == found[1]), "")
            return self._problem(Code.MALFORMED, below("", name)), lambda: self._rename(name, found[2])
        if found := _NOT_OF_A_WAIT.match(self._text) or _OF_ONE_SAGA.match(self._text):
            return self._problem(Code.MALFORMED, below("", found[1])), lambda: self._drop(found[1])
        if self._text.startswith(("each is only", "each cannot stand")):
            return self._problem(Code.MALFORMED, "/each"), self._drop_each
        if found := _MISSING.match(self._text):
            stand_in = _STAND_INS.get(found[1], f"any-{self._number}")
            return self._problem(Code.MALFORMED, ""), lambda: self._set(found[1], stand_in)
        if found := _BESIDE.match(self._text):
            pivot = int(found[1])
            return self._problem(Code.PIVOT, ""), lambda: self._put_apart(pivot)
        return self._named_problem()

    def _named_problem(self) -> tuple[Problem, Callable[[], None]]:
        """The same, if the text names a member, or should."""
        pointer = self._named
        member = tokens_of(pointer)[0] if pointer else ""
        if self._text.startswith("steps"):
            code = Code.LIMIT if self._body.get("steps") else Code.MALFORMED
            return self._problem(code, "/steps"), lambda: None
        if "names no compensation" in self._text:
            return self._problem(Code.NEEDLESS_UNDO, "/compensation"), lambda: self._drop("compensation")
        if "pivot" in self._text and "must be one of" not in self._text and self._number and member not in _TEMPLATES:
            if "condition" in self._text:
                return self._problem(Code.PIVOT, "/when"), lambda: self._drop("when")
            return self._problem(Code.PIVOT, "/kind"), self._set_kind
        if not member or (member in _STAND_INS and self._value[member] == _STAND_INS[member]):
            return self._problem(Code.MALFORMED, pointer), self._stand_in
        if member == "after" and self._number:
            return self._problem(Code.AFTER, pointer), self._keep_earlier
        if member == "input" and "too large" in self._text:
            return self._problem(Code.LIMIT, pointer), lambda: self._set(member, {})
        if member == "attributes" and isinstance(self._body[member], dict) and pointer.count("/") > 1:
            name = tokens_of(pointer)[1]
            return self._problem(Code.MALFORMED, pointer), lambda: self._body[member].pop(name, None)
        code = _TEMPLATES.get(member, Code.MALFORMED)
        if member in _STAND_INS:
            return self._problem(code, pointer), lambda: self._set(member, _STAND_INS[member])
        return self._problem(code, pointer), lambda: self._drop(member)

    @property
    def _named(self) -> str:
        """The pointer to what the text begins with: a member, or something in it."""
        return named_pointer(self._value, self._text)

    def _problem(self, code: Code, pointer: str) -> Problem:
        return Problem(code, self._base + pointer, self._text)

    # --- how it is mended

    def _set(self, member: str, value: Any) -> None:
        self._value[member] = value

    def _drop(self, member: str) -> None:
        self._value.pop(member, None)

    def _drop_each(self) -> None:
        """Drop `each`, and what only a step with it may say."""
        self._drop("each")
        for name in _TEMPLATES:
            if name in self._value:
                self._value[name] = _without_item(self._value[name])

    def _rename(self, member: str, meant: str | None) -> None:
        value = self._value.pop(member, None)
        if meant is not None:
            self._value[meant] = value

    def _stand_in(self) -> None:
        if not self._number:
            return  # the same reason comes again, and ends it
        kind = self._value.get("kind") if isinstance(self._value, dict) else None
        step: dict[str, Any] = {"transaction": "any", "service": "any"}
        if kind in list(StepKind):
            step["kind"] = kind
        if isinstance(self._value, dict) and isinstance(self._value.get("id"), str):
            step["id"] = self._value["id"]
        self._body["steps"][self._number - 1] = step

    def _keep_earlier(self) -> None:
        """Let it come after all earlier steps if it names what is none: after which ones it is meant to come is not
        known, and so nothing else is wrong because of that. If all are, something else is wrong with `after`."""
        names = self._value["after"]
        earlier = numbers_by_name(self._body["steps"][: self._number - 1])
        kept = (
            [name for name in names if type(name) in (int, str) and name in earlier]
            if isinstance(names, list)
            else names
        )
        if kept == names:
            self._drop("after")
        else:
            self._value["after"] = list(range(1, self._number))

    def _set_kind(self) -> None:
        """Have this step be of a kind that may stand there."""
        self._drop("kind")
        if "must be retriable" in self._text or "at most one pivot" in self._text:
            self._value |= {"kind": str(StepKind.RETRIABLE)}
            self._drop("compensation")

    def _put_apart(self, pivot: int) -> None:
        """Have this step come before the pivot or after it."""
        number, other = max(self._number, pivot), min(self._number, pivot)
        step = self._body["steps"][number - 1]
        step["after"] = [*step.get("after", [number - 1]), other]


def _without_item(value: Any) -> Any:
    """The same template, or condition, but what stands for the item or its index is data."""
    if isinstance(value, list):
        return [_without_item(one) for one in value]
    if not isinstance(value, dict):
        return value
    reference = value.get("$ref")
    if isinstance(reference, str) and f"/{reference[1:].partition('/')[0]}" in _OF_AN_ITEM:
        return 0
    return {name: _without_item(one) for name, one in value.items()}


def named_pointer(value: Any, text: str) -> str:
    """The pointer to that in a value which a text begins with: the name of a member, or a pointer without its first /.
    It is empty if it begins with none."""
    found = (one for one in _pointers(value, "") if re.match(rf"{re.escape(one[1:])}(?![\w/])", text))
    return max(found, key=len, default="")


def _pointers(value: Any, pointer: str) -> Iterator[str]:
    """The pointers to all that stands in a value, but to itself."""
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in members:
        yield below(pointer, name)
        yield from _pointers(inner, below(pointer, name))
