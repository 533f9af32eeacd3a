"""The signals of a test: which come by themselves when a step waits for them, and what goes wrong with them."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from msgspec import Struct

from sagastream.core.messages import SIGNAL, Signal
from sagastream.core.parsing import parse_signal
from sagastream.errors import MalformedMessage, ScenarioError

#: Why a signal is declined if the test does not say it.
_DECLINED: Final = "as the test has it"


class Awaited(Struct, frozen=True, kw_only=True):
    """A step has begun to wait for a signal."""

    saga_id: str
    step: int
    name: str  # of the signal


class Wrong(Enum):
    """What goes wrong with the signal that a step waits for."""

    DECLINED = "is declined"
    NEVER = "is not signalled in time"
    TWICE = "is signalled twice"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A signal that comes when a step waits for it."""

    name: str
    payload: Any
    decline: str | None
    after_ms: int  # how long after the step has begun to wait
    times: int | None  # how often it comes for one step; None: whenever that waits


@dataclass(slots=True)
class Signals:
    """All signals that come by themselves. The newest plan for a name counts."""

    _plans: dict[str, Plan] = field(default_factory=dict)
    _came: dict[tuple[str, int], int] = field(default_factory=dict)  # how often, for this step of this saga
    _wrong: dict[int, Wrong] = field(default_factory=dict)  # by the number of the step

    def plan(self, plan: Plan) -> None:
        """Raises ScenarioError for a plan that can never come about."""
        if plan.times is not None and (type(plan.times) is not int or plan.times < 1):
            raise ScenarioError(f"signal {plan.name}: times is at least 1, or None for whenever it is waited for")
        signal("any", plan.name, plan.payload, decline=plan.decline)  # raises for what is no signal
        self._plans[plan.name] = plan

    @property
    def names(self) -> Collection[str]:
        """The names of the signals that come by themselves."""
        return self._plans.keys()

    def go_wrong(self, step: int, wrong: Wrong) -> None:
        """From now on, this goes wrong with the signals of this step of each saga."""
        self._wrong[step] = wrong

    def go_well(self) -> None:
        """Nothing goes wrong any more, and what has come counts no longer."""
        self._wrong.clear()
        self._came.clear()

    def for_(self, awaited: Awaited) -> Iterator[tuple[int, Signal]]:
        """The signals that come for a step that has begun to wait, each with the time until it comes, in ms."""
        wrong, plan = self._wrong.get(awaited.step), self._plans.get(awaited.name)
        if wrong is Wrong.NEVER:
            return
        if wrong is Wrong.DECLINED:
            yield 0, signal(awaited.saga_id, awaited.name, None, decline=_DECLINED)
            return
        place = awaited.saga_id, awaited.step
        came = self._came.get(place, 0)
        if plan is None or (plan.times is not None and came >= plan.times):
            return
        self._came[place] = came + 1
        for _ in range(2 if wrong is Wrong.TWICE else 1):
            yield plan.after_ms, signal(awaited.saga_id, plan.name, plan.payload, decline=plan.decline)

    def payload_of(self, name: str) -> Any:
        """What comes with a signal of this name, as planned; None: nothing is planned."""
        plan = self._plans.get(name)
        return None if plan is None else plan.payload


def signal(saga_id: str, name: str, payload: Any, *, decline: str | None, **more: str) -> Signal:
    """Raises ScenarioError, which says what is wrong."""
    body: dict[str, Any] = {"type": SIGNAL, "saga_id": saga_id, "name": name} | more
    if decline is not None:
        body["decline"] = decline
    if payload is not None or decline is None:
        body["payload"] = payload
    try:
        return parse_signal(body, called="the signal")
    except MalformedMessage as error:
        raise ScenarioError(str(error)) from None
