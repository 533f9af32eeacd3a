"""How a list of sagas looks: a line for each, and below it how many there are."""

from collections.abc import Iterator, Sequence

from sagastream.console import printable
from sagastream.core import not_undone
from sagastream.core.causes import Cause
from sagastream.core.durations import spoken
from sagastream.core.filtering import Filter
from sagastream.core.saga import SagaState
from sagastream.core.why import headline
from sagastream.store.finding import Page
from sagastream_bridge.inspection import screen
from sagastream_bridge.inspection.colours import status, styled
from sagastream_bridge.inspection.formatting import attributes
from sagastream_bridge.inspection.lookup import Listing


def rows(listing: Listing, width: int | None = None) -> Iterator[str]:
    """The sagas of a list; above them, on a terminal of this width, what stands in the columns."""
    if width is not None and listing.page.sagas:
        yield screen.cut(f"{'STATUS':<12}  {'BEGUN':>6}  SAGA, its attributes, and why it is there", width)
    for state, causes in zip(listing.page.sagas, listing.causes, strict=True):
        yield row(state, listing.now_ms, causes, width, [name for name, _ in listing.wanted.where])


def row(
    state: SagaState,
    now_ms: int,
    causes: Sequence[Cause] = (),
    width: int | None = None,
    asked: Sequence[str] = (),
) -> str:
    """A saga on one line of a list, cut to the width of the terminal. Its age counts from its begin, as lists are in
    that order. `causes`: why it waits. `asked`: the names of the attributes that come first."""
    why = why_there(state, causes)
    name = "PARKED" if state.parked else str(state.status)
    shown = styled(name.ljust(12), fg="red", bold=True) if state.parked else status(name, 12)
    found = attributes(state, asked)
    if found and width is not None:  # so that there is room for why
        found = screen.cut(found, max(width // 3, 24))
    parts = (shown, f"{spoken(now_ms - state.begun_ms):>6}", printable(state.saga_id), found, printable(why))
    return screen.cut("  ".join(filter(None, parts)).rstrip(), width)


def why_there(state: SagaState, causes: Sequence[Cause]) -> str:
    """Why a saga is where it is, in a few words. `causes`: why it waits."""
    if state.parked:
        return state.parked
    if state.ended:
        return "; ".join(filter(None, (not_undone.told(state), state.reason)))
    return headline(causes) or f"waits for {state.waiting_for}"


def counted(listing: Listing, limit: int) -> str:
    """The line below a list: how many sagas it shows, and what there is to say of the store."""
    page = listing.page
    shown = len(page.sagas)
    if page.cursor is not None and not shown and not page.total:
        more = f"; --cursor {page.cursor} looks on"
        if is_faster_by_status(listing.wanted):
            more += "; --status aborted, --status compensating or --status parked is faster"
        found = none_found(page, listing.wanted, is_first=listing.is_first)
    else:
        found = f"{shown} shown of {page.total}" if page.total_is_exact else f"{shown} shown of {page.total} or more"
        does = "or a larger --limit shows more" if shown == limit else "looks on"
        more = f" (--cursor {page.cursor} {does})" if page.cursor is not None else ""
    parked = f", {listing.parked} of them parked," if listing.parked else ""
    unread = f", {listing.unread} requested and not read by a worker yet" if listing.unread else ""
    messages = "1 message" if listing.quarantined == 1 else f"{listing.quarantined} messages"
    aside = f", {messages} quarantined" if listing.quarantined else ""
    stands = f"; {headline(listing.standing)}" if listing.standing and (listing.live or listing.unread) else ""
    counts = f"{listing.live} live{parked} and {listing.ended} ended in the store{unread}{aside}{stands}"
    return printable(f"{found}{more}; {counts}")


def none_found(page: Page, wanted: Filter, *, is_first: bool) -> str:
    """Among which sagas none was found, if there may be others."""
    names, number = wanted.index_names, f"{page.looked_at:,}"
    if len(names) > 1:
        return f"none among the {number} that were looked at, newest first"
    of = f" with {names[0]}" if names else ""
    return f"none among the {number}{of} that began last" if is_first else f"none among the next {number}{of}"


def is_faster_by_status(wanted: Filter) -> bool:
    """Whether a status that has an index would help: errors are mostly looked for in sagas that have one."""
    return wanted.error is not None and (wanted.status, wanted.at, wanted.parked) == (None, None, None)
