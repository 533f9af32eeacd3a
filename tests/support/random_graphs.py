"""Random sagas that are graphs, and what must come of each: worked out here once more, and in another way than the
core does it. Pure: the same number gives the same saga.

A saga has up to 12 steps: commands that work, fail, are slow or kill their process; waits whose signal comes early, in
time, late, declined or never; pauses; conditions; references to the input and to results; retries that are signalled.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from support import oracle

MOST_STEPS: Final = 12
#: A command that nothing undoes.
KEEP: Final = "Keep"
#: What the params of a step may ask of its service, besides what oracle.py knows: its process is killed, once.
DYING: Final = ("die before", "die after")
#: The first attempt is rejected; of an undo: with `compensation_attempts` 1, its saga is parked.
REFUSE_ONCE: Final = "refuse once"
#: Data that would do harm if anybody took it for a template.
EVIL: Final[Mapping[str, Any]] = {
    "$ref": "/saga/id",
    "$literal": {"$concat": ["a", {"$ref": "/input/absent"}]},
    "/input/n": "/steps/1/result",
    "$unknown": [{"$ref": 7}],
}
_SHORT_MS: Final = 150


class Fate(StrEnum):
    """What becomes of a step if the saga gets to it, and goes on after it."""

    DONE = "done"
    BYPASSED = "bypassed"
    SKIPPED = "skipped"  # it is parked behind the pivot, and the operator skips it
    FAILS = "fails"
    UNREACHED = "unreached"  # a step before it fails


class Sends(StrEnum):
    """When the signal is sent that a step waits for."""

    EARLY = "early"  # as soon as the saga is begun
    IN_TIME = "in time"  # once the step waits
    DECLINED = "declined"
    NEVER = "never"
    LATE = "late"  # once the step waits no more: it is refused
    AFTER_RETRY = "after retry"  # the step was parked without it, and the operator said retry


@dataclass(slots=True, kw_only=True)
class Task:
    """A signal that somebody sends."""

    step: int
    name: str
    when: Sends
    payload: Any


@dataclass(slots=True, kw_only=True)
class Node:
    """A step, and what must come of it."""

    number: int
    body: dict[str, Any]
    before: tuple[int, ...]
    task: Task | None = None  # the signal that it waits for
    fate: Fate = Fate.DONE
    uncertain: bool = False  # it may fail as well
    undo_cannot_be_told: bool = False
    params: Any = None  # as its service must get them
    result: Any = None
    has_result: bool = False

    @property
    def sends(self) -> bool:
        return "transaction" in self.body

    @property
    def is_undoable(self) -> bool:
        return self.sends and self.body["transaction"] != KEEP

    @property
    def name(self) -> str:
        return str(self.body.get("id", self.number))


@dataclass(slots=True, kw_only=True)
class Graph:
    """A saga, and what must come of it."""

    saga_id: str
    input: dict[str, Any]
    nodes: list[Node]
    starts_after_ms: int | None = None
    deadline_ms: int | None = None
    cancel: str | None = None  # "soft" or "now": the operator cancels it some time
    expected: frozenset[str] = frozenset()

    def body(self, now_ms: int) -> dict[str, Any]:
        """The saga_begin."""
        found: dict[str, Any] = {"saga_id": self.saga_id, "input": self.input}
        found["steps"] = [node.body for node in self.nodes]
        if self.starts_after_ms is not None:
            found["start_at_ms"] = now_ms + self.starts_after_ms
        if self.deadline_ms is not None:
            found["deadline_ms"] = self.deadline_ms
        return found

    def ancestors(self) -> list[set[int]]:
        """Of each step the numbers of all steps before it."""
        found: list[set[int]] = []
        for node in self.nodes:
            found.append(set(node.before).union(*(found[number - 1] for number in node.before)))
        return found


def graph(number: int, seed: str = "graphs", *, hasty: bool = False) -> Graph:
    """The saga with this number. `hasty`: its steps time out so soon that any that may fail may also be given up."""
    made = _Maker(number, random.Random(f"{seed}/{number}")).make()
    if hasty:
        for node in made.nodes:
            if node.sends:
                node.body |= {"timeout_ms": 500, "attempts": node.body.get("attempts", 3)}
                node.uncertain = node.body.get("kind") != "retriable"
    _foretell(made)
    return made


class _Maker:
    """Makes one saga."""

    def __init__(self, number: int, chance: random.Random) -> None:
        self._saga_id = f"g{number}"
        self._chance = chance
        self._count = chance.randint(1, MOST_STEPS)
        pivot = chance.randint(1, self._count * 2)  # beyond the last step: there is none
        self._pivot = pivot if pivot <= self._count else None
        may_fail = range(1, (self._pivot or self._count) + 1)
        failing = min(len(may_fail), chance.choice((1, 1, 2)))
        self._fails = set(chance.sample(may_fail, failing)) if self._is(0.4) else set()
        self._nodes: list[Node] = []
        self._ancestors: list[set[int]] = []

    def make(self) -> Graph:
        colour = self._chance.choice(("red", "green", "blue"))
        for number in range(1, self._count + 1):
            self._add(number)
        return Graph(
            saga_id=self._saga_id,
            input={"n": self._chance.randint(0, 9), "flag": self._is(0.6), "colour": colour, "evil": EVIL},
            nodes=self._nodes,
            starts_after_ms=self._chance.randint(50, 300) if self._is(0.08) else None,
            deadline_ms=self._chance.randint(100, 500) if self._is(0.03) else None,
            cancel=self._chance.choice(("soft", "now")) if self._is(0.05) else None,
        )

    def _is(self, probability: float) -> bool:
        return self._chance.random() < probability

    @property
    def _is_past_pivot(self) -> bool:
        return self._pivot is not None and len(self._nodes) >= self._pivot

    def _add(self, number: int) -> None:
        body: dict[str, Any] = {"id": f"s{number}"} if self._is(0.7) else {}
        before = self._before(number)
        if before != ((number - 1,) if number > 1 else ()) or self._is(0.2):
            body["after"] = [self._chance.choice((one, self._named(one))) for one in before]
        node = Node(number=number, body=body, before=before)
        self._ancestors.append(set(before).union(*(self._ancestors[one - 1] for one in before)))
        self._nodes.append(node)
        if number != self._pivot and self._is(0.25):
            body["when"] = self._condition(number)
        if number != self._pivot and self._is(0.16):
            self._wait(node)
        elif number != self._pivot and self._is(0.06):
            body["wait_ms"] = self._chance.randint(1, 60)
        else:
            self._command(node)

    def _before(self, number: int) -> tuple[int, ...]:
        if number == self._pivot:
            taken = {one for node in self._nodes for one in node.before}
            return tuple(one for one in range(1, number) if one not in taken)
        first = self._pivot if self._pivot is not None and number > self._pivot else 1
        earlier = range(first, number)
        if not earlier:
            return ()
        least = 1 if first == self._pivot or self._is(0.7) else 0
        return tuple(sorted(self._chance.sample(earlier, self._chance.randint(least, min(3, len(earlier))))))

    def _named(self, number: int) -> Any:
        return self._nodes[number - 1].body.get("id", number)

    # --- waits

    def _wait(self, node: Node) -> None:
        number, body = node.number, node.body
        past = self._is_past(number)
        when = self._chance.choice((Sends.EARLY, Sends.IN_TIME, Sends.IN_TIME, Sends.LATE, *self._fruitless(number)))
        payload = {"by": "boss", "n": self._chance.randint(0, 9), "evil": EVIL}
        name = f"go-{number}"
        node.task = Task(step=number, name=name, when=when, payload=payload)
        in_time = when in (Sends.EARLY, Sends.IN_TIME, Sends.DECLINED)
        body |= {"wait": name, "timeout_ms": 600_000 if in_time else _SHORT_MS}
        if when is Sends.LATE or (when is Sends.NEVER and not past and number not in self._fails):
            body["on_timeout"] = "continue"

    def _is_past(self, number: int) -> bool:
        return self._pivot is not None and number > self._pivot

    def _fruitless(self, number: int) -> tuple[Sends, ...]:
        """The ways to make a wait fail, if it may."""
        if self._is_past(number):
            return (Sends.DECLINED, Sends.NEVER, Sends.AFTER_RETRY)
        return (Sends.DECLINED, Sends.NEVER, Sends.NEVER, Sends.DECLINED) if number in self._fails else (Sends.NEVER,)

    # --- commands

    def _command(self, node: Node) -> None:
        number, body = node.number, node.body
        past = self._is_past(number)
        undo = self._chance.choice((*oracle.UNDOING, "ok", "ok", REFUSE_ONCE))
        body |= {"transaction": "Do", "service": self._chance.choice(oracle.NAMES), "backoff_ms": 20}
        if past:
            body["kind"] = "retriable"
        elif number == self._pivot:
            body["kind"] = "pivot"
        how = self._how(node, past=past)
        if how in (*oracle.WORKING, *DYING) and self._is(0.15):
            body["transaction"] = KEEP
        if how in oracle.FAILING:
            body["attempts"] = 2
        if undo == REFUSE_ONCE and not past and self._is(0.4):
            body["compensation_attempts"] = 1
        body["params"] = {"how": how, "undo": undo, "n": number} | self._references(number)
        if not past and self._is(0.4):
            self._tell_undo(node)

    def _how(self, node: Node, *, past: bool) -> str:
        """What the step asks of its service; and the options that go with it."""
        body, number = node.body, node.number
        chance = self._chance
        if number in self._fails and self._is(0.8):
            return chance.choice(oracle.FAILING)
        if past:
            if self._is(0.15):
                body["attempts"] = chance.choice((1, 5))
                return REFUSE_ONCE
        elif self._is(0.12):
            return self._retried(node)
        elif self._is(0.04):
            body |= {"timeout_ms": 400, "attempts": 2}
            return oracle.LATE
        return chance.choice((*oracle.WORKING, "ok", "ok", "ok")) if self._is(0.97) else chance.choice(DYING)

    def _retried(self, node: Node) -> str:
        """It is refused, and sent again: after a delay, or at a signal."""
        if self._is(0.3):
            node.body["retry_failed"] = True
            return REFUSE_ONCE
        fruitless = (Sends.DECLINED, Sends.NEVER) if node.number in self._fails else ()
        when = self._chance.choice((Sends.EARLY, Sends.IN_TIME, Sends.IN_TIME, *fruitless))
        name = f"again-{node.number}"
        node.body |= {"retry_on": name, "retry_within_ms": _SHORT_MS if when is Sends.NEVER else 600_000}
        node.task = Task(step=node.number, name=name, when=when, payload=None)
        return "reject" if when in fruitless else REFUSE_ONCE

    def _tell_undo(self, node: Node) -> None:
        node.body["compensation_params"] = {
            "why": {"$ref": "/failure/reason"},
            "failed": {"$ref": "/failure/step"},
            "error": {"$ref": "/failure/error"},
            "mine": {"$ref": f"/steps/{node.name}/result/n", "default": None},
            "evil": {"$ref": "/input/evil"},
        }
        if self._is(0.06):
            node.undo_cannot_be_told = True
            node.body["compensation_params"]["absent"] = {"$ref": f"/steps/{node.name}/result/absent"}

    # --- references and conditions

    def _references(self, number: int) -> dict[str, Any]:
        found: dict[str, Any] = {"const": self._chance.randint(0, 99)}
        if self._is(0.5):
            found["evil"] = self._chance.choice(({"$ref": "/input/evil"}, {"$literal": EVIL}))
        if self._is(0.3):
            found["text"] = {"$concat": ["saga ", {"$ref": "/saga/id"}, " has ", {"$ref": "/input/n"}]}
        if self._is(0.5):
            found["of"] = [self._reference(number) for _ in range(self._chance.randint(1, 3))]
        if self._is(0.3):
            found["give"] = self._reference(number)
        if self._is(0.03 if number in self._fails or self._is_past(number) else 0.0):
            found["absent"] = {"$ref": "/input/absent/member"}
        return found

    def _reference(self, number: int) -> dict[str, Any]:
        others = sorted(self._ancestors[number - 1])
        if not others or self._is(0.2):
            return {"$ref": f"/input/{self._chance.choice(('n', 'flag', 'colour'))}"}
        other = self._nodes[self._chance.choice(others) - 1]
        name = self._chance.choice((other.name, str(other.number)))
        # What a wait gives that the operator skips is nothing; so is what a bypassed step gives.
        found: dict[str, Any] = {"$ref": f"/steps/{name}/result/{self._chance.choice(('n', 'evil'))}"}
        if "when" in other.body or not other.sends or self._is_past(other.number) or self._is(0.2):
            found["default"] = {"$literal": EVIL} if self._is(0.2) else "none"
        return found

    def _condition(self, number: int) -> Any:
        others = sorted(self._ancestors[number - 1])
        kinds: list[Callable[[], Any]] = [
            lambda: {"eq": [{"$ref": "/input/flag"}, True]},
            lambda: {"in": [{"$ref": "/input/colour"}, ["red", "blue"]]},
            lambda: {"not": {"lt": [{"$ref": "/input/n"}, 4]}},
        ]
        if others:
            name = self._nodes[self._chance.choice(others) - 1].name
            n = {"$ref": f"/steps/{name}/result/n", "default": 0}
            exists = {"exists": {"$ref": f"/steps/{name}/result/n"}}
            kinds += [lambda: {"ge": [n, 2]}, lambda: exists, lambda: {"not": exists}]
            kinds += [lambda: {"any": [exists, {"eq": [{"$ref": "/input/n"}, 3]}]}]
        if number in self._fails or self._is_past(number):
            kinds.append(lambda: {"all": [{"ne": [1, 2]}, {"lt": [{"$ref": "/input/colour"}, 3]}]})
        one = self._chance.choice(kinds)()
        return {"all": [one, {"le": [{"$ref": "/input/n"}, 9]}]} if self._is(0.2) else one


# --- what must come of it


class CannotTell(Exception):
    """A reference finds nothing, or a condition compares what has no order."""


@dataclass(slots=True)
class _Known:
    """What references find."""

    input: Any
    saga_id: str
    results: dict[str, Any] = field(default_factory=dict)

    def find(self, pointer: str) -> Any:
        _, root, *rest = pointer.split("/")
        if root == "saga":
            return self.saga_id
        value: Any = self.input
        if root == "steps":
            name, _, *rest = rest
            if name not in self.results:
                raise CannotTell(pointer)
            value = self.results[name]
        for token in rest:
            if not isinstance(value, dict) or token not in value:
                raise CannotTell(pointer)
            value = value[token]
        return value

    def built(self, template: Any) -> Any:
        if isinstance(template, list):
            return [self.built(one) for one in template]
        if not isinstance(template, dict):
            return template
        if "$literal" in template:
            return template["$literal"]
        if "$concat" in template:
            return "".join(str(self.built(one)) for one in template["$concat"])
        if "$ref" not in template:
            return {name: self.built(value) for name, value in template.items()}
        try:
            return self.find(template["$ref"])
        except CannotTell:
            if "default" not in template:
                raise
            return template["default"]

    def holds(self, condition: Any) -> bool:
        [(name, of)] = condition.items()
        if name in ("all", "any"):
            return (all if name == "all" else any)(self.holds(one) for one in of)
        if name == "not":
            return not self.holds(of)
        if name == "exists":
            try:
                self.find(of["$ref"])
            except CannotTell:
                return False
            return True
        left, right = map(self.built, of)
        if name == "in":
            return left in right
        if name in ("eq", "ne"):
            return (left == right) is (name == "eq")
        if isinstance(left, str) or isinstance(right, str):
            raise CannotTell("no order")
        return bool({"lt": left < right, "le": left <= right, "gt": left > right, "ge": left >= right}[name])


def _foretell(made: Graph) -> None:
    """Work out what becomes of each step, and which ends the saga may have."""
    known = _Known(made.input, made.saga_id)
    pivot = next((node.number for node in made.nodes if node.body.get("kind") == "pivot"), None)
    for node in made.nodes:
        if any(made.nodes[one - 1].fate in (Fate.FAILS, Fate.UNREACHED) for one in node.before):
            node.fate = Fate.UNREACHED
            continue
        _foretell_step(node, known, made.saga_id, is_past=pivot is not None and node.number > pivot)
        if node.has_result and node.fate is Fate.DONE:
            known.results |= {str(node.number): node.result, node.name: node.result}
    if any(node.fate is Fate.FAILS for node in made.nodes):
        made.expected = frozenset({"ABORTED"})
    elif made.cancel or made.deadline_ms or any(n.uncertain and n.fate is Fate.DONE for n in made.nodes):
        made.expected = frozenset({"ABORTED", "COMPLETED"})
    else:
        made.expected = frozenset({"COMPLETED"})


def _foretell_step(node: Node, known: _Known, saga_id: str, *, is_past: bool) -> None:
    body, fails = node.body, Fate.SKIPPED if is_past else Fate.FAILS
    try:
        if "when" in body and not known.holds(body["when"]):
            node.fate = Fate.BYPASSED
            return
        if node.sends:
            node.params = known.built(body["params"])
    except CannotTell:
        node.fate = fails
        return
    if not node.sends:
        if node.task is not None:
            _foretell_wait(node, node.task.when, fails)
        return
    how = node.params["how"]
    given_up = node.task is not None and node.task.when in (Sends.DECLINED, Sends.NEVER)
    if how in oracle.FAILING or given_up:
        node.fate = Fate.FAILS
    node.uncertain = node.uncertain or how == oracle.LATE
    node.has_result, node.result = True, result_of(saga_id, node.number, node.params)


def _foretell_wait(node: Node, when: Sends, fails: Fate) -> None:
    if when in (Sends.EARLY, Sends.IN_TIME, Sends.AFTER_RETRY):
        assert node.task is not None
        node.has_result, node.result = True, node.task.payload
    elif "on_timeout" not in node.body:
        node.fate = fails


def result_of(saga_id: str, number: int, params: Any) -> dict[str, Any]:
    """What the services return."""
    return {"key": f"{saga_id}/{number}/transaction", "n": number, "give": params.get("give"), "evil": EVIL}


def tasks(made: Graph) -> Iterator[Task]:
    for node in made.nodes:
        if node.task is not None and node.task.when is not Sends.NEVER:
            yield node.task
