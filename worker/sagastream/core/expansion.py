"""From a definition and an input to a saga_begin. Pure.

A step with `each` becomes one step for each item of a list in the input: `pick` becomes `pick.0`, `pick.1` and so on,
which run in parallel. To a definition they are one step: `after` names all of them, the result of `pick` is the list of
theirs, and `/steps/pick/result/1` is that of `pick.1`. If the list is empty, what comes after `pick` comes after the
steps before it. In their own templates `/item` is the item, and `/index` its place in the list, from 0.

What is written is again a template with references. So no item is copied, and no data of the input becomes a reference.
"""

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final

from msgspec import Struct

from sagastream.core.begin_parsing import parse_begin
from sagastream.core.conditions import OF_CONDITIONS
from sagastream.core.defined_attributes import filled_in
from sagastream.core.definition import SagaDefinition
from sagastream.core.messages import Begin
from sagastream.core.pointers import INDEX, below, follow, kind_of, shown, tokens_of, why_nothing
from sagastream.core.steps import MAX_STEPS
from sagastream.errors import MalformedMessage

#: The members of a step that may hold references.
_TEMPLATES: Final = ("params", "compensation_params", "when")
#: How a text begins that is about one step.
_STEP: Final = re.compile(r"\Astep ([0-9]+)")


class _Items(Struct, frozen=True):
    """The items of one step with `each`."""

    count: int
    at: str  # the pointer to their list in the input
    default: Sequence[Any] | None = None  # the items themselves, if the input has no such list
    stands_for_all: bool = False  # nobody knows how many there are: one item stands for all of them

    def has(self, token: str) -> bool:
        """Whether this is the index of an item."""
        return self.stands_for_all or int(token) < self.count


def expand(definition: SagaDefinition, data: dict[str, Any]) -> dict[str, Any]:
    """The members of a saga_begin for this input, but its id: `input`, `definition`, `steps`, the deadline and, if the
    definition gives it any, its attributes.

    Raises MalformedMessage, which says what is wrong and where: `each` of a step is not a list, there are more steps
    than a saga may have, or an attribute cannot be made of the input. All else is checked where the saga_begin is read.
    """
    items = {
        number: _items(step["each"], data, f"step {number}: each")
        for number, step in enumerate(definition.steps, 1)
        if "each" in step
    }
    expanded = _expanded(definition, data, items)
    attributes = filled_in(definition.attributes, data)
    return expanded | {"attributes": attributes} if attributes else expanded


def sketch(definition: SagaDefinition) -> Begin:
    """The saga for an input of which nothing is known: each list has one item, so that the steps have the numbers that
    they have in the definition.

    Raises MalformedMessage, which says what is wrong and where: also if that shows only in sagas for some inputs, so
    that what was deployed refuses none for what itself says.
    """
    lists = {number: step["each"] for number, step in enumerate(definition.steps, 1) if "each" in step}
    one = {number: _Items(1, each["$ref"], stands_for_all=True) for number, each in lists.items()}
    body = _expanded(definition, {}, one) | {"saga_id": definition.name}
    begin = parse_begin(body, called="the definition")
    for items, case in _cases(lists):
        _check(definition, items, case)
    return begin


def _cases(lists: Mapping[int, Mapping[str, Any]]) -> Iterator[tuple[dict[int, _Items], str]]:
    """The other inputs that can make a difference, each with what it is called. Two items stand for all numbers of
    them: an item is the one that a step is made for, or another one."""
    if not lists:
        return
    yield {number: _Items(0, each["$ref"]) for number, each in lists.items()}, "if each list is empty"
    two = {number: _Items(2, each["$ref"], stands_for_all=True) for number, each in lists.items()}
    yield two, "if each list has 2 items"
    by_default = {
        number: _Items(len(each["default"]), each["$ref"], each["default"])
        for number, each in lists.items()
        if "default" in each
    }
    if by_default:
        yield two | by_default, "with the default of each"


def _check(definition: SagaDefinition, items: Mapping[int, _Items], case: str) -> None:
    """Raises MalformedMessage if this saga would be refused, with the numbers that steps have in the definition."""
    counts = _counts(definition, items)
    too_many = sum(counts) > MAX_STEPS and not any(one.default for one in items.values())
    if too_many or not any(counts):
        return  # that is for the input to say, or for steps that are still to come
    body = _expanded(definition, {}, items) | {"saga_id": definition.name}
    try:
        parse_begin(body, called="the definition")
    except MalformedMessage as error:
        ends = list(accumulate(counts))
        text = _STEP.sub(lambda found: f"step {bisect_left(ends, int(found[1])) + 1}", str(error))
        raise MalformedMessage(f"{text} ({case})") from None


def _items(each: Mapping[str, Any], data: dict[str, Any], where: str) -> _Items:
    pointer = each["$ref"]
    tokens = tokens_of(pointer)[1:]
    count, found = follow(data, tokens)
    if count < len(tokens):
        if "default" in each:
            return _Items(len(each["default"]), pointer, each["default"])
        place = "/".join(["input", *tokens[:count]])
        raise MalformedMessage(f"{where}: there is no {shown(pointer)}: {place} {why_nothing(found, tokens[count])}")
    if not isinstance(found, list):
        raise MalformedMessage(f"{where}: {shown(pointer)} is not a list but {kind_of(found)}")
    return _Items(len(found), pointer)


def _counts(definition: SagaDefinition, items: Mapping[int, _Items]) -> list[int]:
    """How many steps of the saga each step of the definition makes."""
    return [items[number].count if number in items else 1 for number in range(1, len(definition.steps) + 1)]


def _expanded(definition: SagaDefinition, data: dict[str, Any], items: Mapping[int, _Items]) -> dict[str, Any]:
    counts = _counts(definition, items)
    if not 1 <= (total := sum(counts)) <= MAX_STEPS:
        lists = ", ".join(f"{one.count} of {shown(one.at)}" for one in items.values())
        raise MalformedMessage(f"steps: a saga has 1 to {MAX_STEPS}, and this one would have {total}: {lists}")
    steps = _Expansion(definition, items, [0, *accumulate(counts)]).steps() if items else list(definition.steps)
    return {"definition": definition.by.body(), "input": data, **definition.of_each_saga, "steps": steps}


class _Expansion:
    """The steps of one saga, as they are written."""

    def __init__(self, definition: SagaDefinition, items: Mapping[int, _Items], ends: Sequence[int]) -> None:
        """`ends`: how many steps of the saga come from the first steps of the definition: from none, from one …"""
        self._definition = definition
        self._items = items
        self._ends = ends
        self._before: dict[int, list[int]] = {}  # by number in the definition: those in the saga that come before it
        for number in range(1, len(definition.steps) + 1):
            self._before[number] = self._those_before(number)

    def steps(self) -> list[dict[str, Any]]:
        return [
            self._step(number, index) for number in self._before for index in range(len(self._made_of(number)))
        ]  # fmt: skip

    def _step(self, number: int, index: int) -> dict[str, Any]:
        """The step that is made for the item of this index; for a step without `each`, the index is 0."""
        written = self._definition.steps[number - 1]
        step = {name: member for name, member in written.items() if name not in ("each", "after")}
        if number in self._items:
            step["id"] = self._name(number, index)
        own, before = self._made_of(number)[index], self._before[number]
        if before != ([own - 1] if own > 1 else []):  # which goes without saying
            step["after"] = [self._name_of(one) for one in before]
        for name in _TEMPLATES:
            if name in step:
                rewriting = _Rewriting(self, number, index, f"step {number}: {name}")
                rewritten = rewriting.condition if name == "when" else rewriting.of
                step[name] = rewritten(step[name], "")
        return step

    def _made_of(self, number: int) -> range:
        """The numbers, in the saga, of the steps that are made of a step of the definition."""
        return range(self._ends[number - 1] + 1, self._ends[number] + 1)

    def _those_before(self, number: int) -> list[int]:
        """The numbers, in the saga, of the steps after which those of this step come."""
        after = self._definition.steps[number - 1].get("after", [number - 1] if number > 1 else [])
        if not isinstance(after, list) or not all(type(one) in (str, int) for one in after):
            raise MalformedMessage(f"step {number}: after must be a list of ids or numbers of steps before it")
        found: set[int] = set()
        for name in after:
            one = self._definition.numbers.get(name) if isinstance(name, str) else name
            if one not in self._before:
                raise MalformedMessage(f"step {number}: after: there is no step {name!s:.64} before it in the list")
            found.update(self._made_of(one) or self._before[one])
        return sorted(found)

    def number_of(self, name: str, where: str) -> int:
        """The number, in the definition, of the step that a reference names, by its id or its number."""
        by_number = {str(number): number for number in self._before}
        if (number := self._definition.numbers.get(name, by_number.get(name))) is None:
            raise MalformedMessage(f"{where}: there is no step {name[:64]} in the definition")
        return number

    def items_of(self, number: int) -> _Items | None:
        """The items of a step of the definition; None: it has no `each`."""
        return self._items.get(number)

    def _name(self, number: int, index: int) -> str | int:
        """By what the step is named that is made for the item of this index."""
        name = self._definition.steps[number - 1].get("id")
        if number in self._items:
            return f"{name}.{index}"
        return self._made_of(number)[0] if name is None else str(name)

    def result(self, number: int, index: int, tokens: Sequence[str]) -> str:
        """The pointer into the result of that step."""
        return _pointer(f"/steps/{self._name(number, index)}/result", tokens)

    def _name_of(self, made: int) -> str | int:
        """By what a step of the saga is named, by its number there."""
        number = bisect_left(self._ends, made)
        return self._name(number, made - self._ends[number - 1] - 1)


class _Rewriting(Struct, frozen=True):
    """The references of one template, as the step has them that is made for one item."""

    expansion: _Expansion
    number: int  # of the step, in the definition
    index: int  # of the item
    where: str

    def of(self, value: Any, path: str) -> Any:
        if isinstance(value, list):
            return [self.of(item, below(path, index)) for index, item in enumerate(value)]
        if not isinstance(value, dict) or "$literal" in value:
            return value
        if isinstance(value.get("$ref"), str):
            return self._reference(value, path)
        return {name: self.of(member, below(path, name)) for name, member in value.items()}

    def condition(self, value: Any, path: str) -> Any:
        """The same for a condition: what `exists` asks may be known by now."""
        if not isinstance(value, dict) or len(value) != 1:
            return self.of(value, path)
        ((name, operands),) = value.items()
        at = below(path, name)
        if name == "not":
            return {name: self.condition(operands, at)}
        if name in OF_CONDITIONS and isinstance(operands, list):
            return {name: [self.condition(one, below(at, index)) for index, one in enumerate(operands)]}
        if name == "exists" and isinstance(operands, dict) and operands.keys() == {"$ref"}:
            return self._exists(operands, at)
        return self.of(value, path)

    def _exists(self, reference: dict[str, Any], path: str) -> Any:
        found = self.of(reference, path)
        if isinstance(found, dict):
            return True if "$literal" in found else {"exists": found}
        text = f"{reference['$ref']} is always there"
        if isinstance(found, list):
            pointer = shown(reference["$ref"])
            text = f"{pointer} is the list of all results, and is always there; ask for one of them, as in {pointer}/0"
        raise MalformedMessage(f"{self.where}{path}: {text}")

    def _reference(self, value: dict[str, Any], path: str) -> Any:
        try:
            tokens = tokens_of(value["$ref"])
        except ValueError:
            return value  # what is wrong is told where all references are checked
        match tokens:
            case ("item", *rest) if (items := self.expansion.items_of(self.number)) is not None:
                return self._item(items, rest, value)
            case ("index",) if self.expansion.items_of(self.number) is not None:
                return self.index
            case ("steps", name, "result", *rest):
                number = self.expansion.number_of(name, f"{self.where}{path}")
                return self._result(number, rest, value, path)
        return value

    def _item(self, items: _Items, rest: Sequence[str], value: dict[str, Any]) -> Any:
        if items.default is None:
            return value | {"$ref": _pointer(f"{items.at}/{self.index}", rest)}
        count, found = follow(items.default[self.index], tuple(rest))
        if count == len(rest):
            return {"$literal": found}
        return {"$literal": value["default"]} if "default" in value else value | {"$ref": _pointer(items.at, rest)}

    def _result(self, number: int, rest: Sequence[str], value: dict[str, Any], path: str) -> Any:
        """What a reference to the result of a step becomes."""
        items = self.expansion.items_of(number)
        if items is None:
            return value | {"$ref": self.expansion.result(number, 0, rest)}
        if number == self.number:
            return value | {"$ref": self.expansion.result(number, self.index, rest)}
        if not rest:
            return [value | {"$ref": self.expansion.result(number, index, ())} for index in range(items.count)]
        if not INDEX.fullmatch(rest[0]):
            text = f"the result of a step with each is a list, one an item, and {rest[0][:64]!a} is not an index"
            raise MalformedMessage(f"{self.where}{path}: {text}")
        if not items.has(rest[0]):
            # There is no such result. Neither is there such an item, so this finds nothing, and says what is missing:
            # the item, not what would be in the result.
            return value | {"$ref": _pointer(items.at, rest[:1])}
        index = min(int(rest[0]), items.count - 1)
        return value | {"$ref": self.expansion.result(number, index, rest[1:])}


def _pointer(base: str, tokens: Sequence[str]) -> str:
    for token in tokens:
        base = below(base, token)
    return base
