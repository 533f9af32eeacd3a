"""What a person looks for on the page of sagas, read out of its address. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final
from urllib.parse import urlencode

from msgspec import Struct

from sagastream.core.attributes import named
from sagastream.core.durations import written
from sagastream.core.filtering import Filter, parse_filter

STATUSES: Final = ("PENDING", "COMPENSATING", "PARKED", "ABORTED", "COMPLETED")


class WrongSearch(ValueError):
    """What a person asks for makes no sense; the text says why."""


class Search(Struct, frozen=True, kw_only=True):
    """What is looked for."""

    wanted: Filter = Filter()
    cursor: str | None = None  # of the page before
    given: tuple[tuple[str, str], ...] = ()  # as the page was asked for it, without the cursor

    #: What the address of a page may ask for.
    NAMES: ClassVar[Sequence[str]] = ("where", "status", "definition", "at", "parked", "older", "newer", "error")

    @classmethod
    def of(cls, query: Mapping[str, str]) -> "Search":
        """What an address asks for. Raises WrongSearch, and MalformedMessage, which says what is wrong."""
        given = {name: text for name in cls.NAMES if (text := query.get(name, "").strip())}
        body: dict[str, Any] = {name: given[name] for name in ("definition", "at", "parked", "error") if name in given}
        if "status" in given:
            body["status"] = given["status"].upper()
        for name in ("older", "newer"):
            if name in given:
                body[f"{name}_ms"] = _duration(given[name], name)
        body["where"] = named(given.get("where", "").split(), "with")
        return cls(
            wanted=parse_filter(body, "the search"), cursor=query.get("cursor") or None, given=tuple(given.items())
        )

    def query(self, cursor: str | None = None) -> str:
        """The same as a part of an address. `cursor`: of the page before the one that is asked for."""
        return urlencode([*self.given, *([] if cursor is None else [("cursor", cursor)])])


def _duration(text: str, name: str) -> int:
    try:
        return written(text.lower().replace(" ", ""))
    except ValueError as error:
        raise WrongSearch(f"{name} than: {error}") from None
