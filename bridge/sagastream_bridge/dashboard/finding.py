"""Finds sagas by what a person asks for on a page. Bounded: a call looks at MOST_LOOKED_AT sagas at most."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar, Final
from urllib.parse import urlencode

from msgspec import Struct

from sagastream.broker.exchange import Exchange
from sagastream.client.listing import Listing, ListStatus
from sagastream.core.saga import SagaState
from sagastream.errors import UnreadableSaga
from sagastream.store.keys import StoreKeys

STATUSES: Final[Sequence[ListStatus]] = ("PENDING", "COMPENSATING", "PARKED", "ABORTED", "COMPLETED")
#: How many sagas a call looks at, and how many a page shows.
MOST_LOOKED_AT: Final = 2_000
PAGE: Final = 50
#: The units of a duration, in ms.
_UNITS: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


class WrongFilter(ValueError):
    """What a person asks for makes no sense; the text says why."""


class Filter(Struct, frozen=True, kw_only=True):
    """What is looked for: all of it."""

    status: ListStatus | None = None
    definition: str = ""
    at: str = ""  # the service, the command, or service/command at which it waits
    older_ms: int | None = None  # it began longer ago than this
    newer_ms: int | None = None
    error: str = ""  # a part of an error, or of why it is parked or goes back
    given: tuple[tuple[str, str], ...] = ()  # as the page was asked for it

    #: What the query of a page may ask for.
    NAMES: ClassVar[Sequence[str]] = ("status", "definition", "at", "older", "newer", "error")

    @classmethod
    def of(cls, query: Mapping[str, str]) -> "Filter":
        """What the query of a page asks for. Raises WrongFilter."""
        given = {name: text for name in cls.NAMES if (text := query.get(name, "").strip())}
        return cls(
            status=_status(given.get("status", "")),
            definition=given.get("definition", ""),
            at=given.get("at", ""),
            older_ms=_duration(given.get("older", ""), "older"),
            newer_ms=_duration(given.get("newer", ""), "newer"),
            error=given.get("error", ""),
            given=tuple(given.items()),
        )

    @property
    def query(self) -> str:
        """The same as the query of a page."""
        return urlencode(self.given)

    def without(self, name: str) -> str:
        """The query of the page that asks for the rest."""
        return urlencode([pair for pair in self.given if pair[0] != name])

    @property
    def is_narrow(self) -> bool:
        """Whether sagas must be looked at one by one."""
        return any(name != "status" for name, _ in self.given)

    def matches(self, state: SagaState, now_ms: int) -> bool:
        """Whether a saga is one that is looked for; its status was compared before."""
        age_ms = now_ms - state.begun_ms
        if self.definition and (state.definition is None or state.definition.name != self.definition):
            return False
        if self.older_ms is not None and age_ms < self.older_ms:
            return False
        if self.newer_ms is not None and age_ms > self.newer_ms:
            return False
        if self.at and self.at not in set(_places(state)):
            return False
        return not self.error or any(self.error.lower() in text.lower() for text in _texts(state))


class FoundSagas(Struct, frozen=True, kw_only=True):
    """A page of sagas."""

    states: Sequence[SagaState]
    unreadable: Sequence[UnreadableSaga]
    looked_at: int
    are_more: bool  # there may be more


def find(keys: StoreKeys, wanted: Filter, now_ms: int, count: int = PAGE) -> Exchange[FoundSagas]:
    """The first sagas that match."""
    listing = Listing(keys, wanted.status, MOST_LOOKED_AT)
    states: list[SagaState] = []
    unreadable: list[UnreadableSaga] = []
    looked_at = 0
    page: Sequence[SagaState | UnreadableSaga] = ()
    while len(states) <= count and (page := (yield from listing.next_page())):
        looked_at += len(page)
        for one in page:
            if isinstance(one, UnreadableSaga):
                unreadable.append(one)
            elif wanted.matches(one, now_ms):
                states.append(one)
    are_more = len(states) > count or looked_at >= MOST_LOOKED_AT
    return FoundSagas(states=states[:count], unreadable=unreadable[:count], looked_at=looked_at, are_more=are_more)


def _places(state: SagaState) -> Iterator[str]:
    """Where a saga is now, as a person may name it."""
    for number in [] if state.ended else state.active_steps or [state.current_step]:
        step = state.steps[number - 1]
        yield from (step.definition.service, step.command, f"{step.definition.service}/{step.command}")


def _texts(state: SagaState) -> Iterable[str]:
    found = [state.reason or "", state.cancelling or ""]
    for step in state.steps:
        found += [step.parked or "", _text(step.error), _text(step.compensation_error)]
    return found


def _text(data: bytes | None) -> str:
    return "" if data is None else data.decode(errors="backslashreplace")


def _status(text: str) -> ListStatus | None:
    for status in STATUSES:
        if status == text.upper():
            return status
    if text:
        raise WrongFilter(f"status must be one of {', '.join(STATUSES)}, not {text!r:.80}")
    return None


def _duration(text: str, name: str) -> int | None:
    """`90s`, `15m`, `2h`, `1d` in ms."""
    if not text:
        return None
    number, unit = text[:-1].strip(), text[-1].lower()
    if not number.isascii() or not number.isdigit() or len(number) > 6 or unit not in _UNITS:
        raise WrongFilter(f"{name} must be a duration such as 90s, 15m, 2h or 1d, not {text!r:.80}")
    return int(number) * _UNITS[unit]
