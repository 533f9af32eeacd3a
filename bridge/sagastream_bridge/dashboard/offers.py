"""What a person may do about a saga, out of the advice that the core gives. Pure.

The core says it as command lines, so a page offers what `sagastream show` advises, and nothing else.
"""

import shlex
from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import Struct

from sagastream.core.causes import Cause
from sagastream.core.saga import SagaState

#: What each verb is called on a button.
CALLED: Final = {
    "retry": "Retry",
    "skip": "Skip",
    "abandon": "Abandon",
    "cancel": "Cancel",
    "signal": "Signal",
    "resume": "Resume",
}
_CANCELS: Final = "goes back when what is out is answered"
_CANCELS_NOW: Final = "goes back at once: what is out may have been done, and is undone"


class Offer(Struct, frozen=True, kw_only=True):
    """One thing that a person may do."""

    verb: str
    meaning: str  # what it would do
    line: str  # the command line that does the same
    advice: str  # as the core gives it
    step: str = ""  # the number or id of the step that is meant; empty: there is no choice
    parked_at: str = ""
    now: bool = False
    signal: str = ""  # the name of the signal
    declines: bool = False
    service: str = ""  # what is resumed: a service …
    command: str = ""  # … or this command of it

    @property
    def title(self) -> str:
        if self.verb == "signal":
            return f"{'Decline' if self.declines else 'Send'} {self.signal}"
        if self.verb == "resume":
            return f"Resume {f'{self.command} of ' if self.command else ''}{self.service}"
        return CALLED[self.verb] + (" now" if self.now and self.verb == "cancel" else "")

    @property
    def key(self) -> str:
        """Tells it from the others of the saga."""
        marks = [self.verb, self.step, "now" if self.now else "", self.signal, "decline" if self.declines else ""]
        marks += [self.service, self.command]
        return "-".join(mark for mark in marks if mark)


def offers(state: SagaState, causes: Iterable[Cause]) -> list[Offer]:
    """What may be done about a saga, in the order of the advice."""
    found = [offer for cause in causes for line in cause.do if (offer := _read(state.saga_id, line)) is not None]
    if state.may_be_cancelled and not any(offer.verb == "cancel" and not offer.now for offer in found):
        where = f" --parked-at {state.parked_at}" if state.parked_at else ""
        line = f"sagastream cancel {state.saga_id} --reason TEXT{where}"
        found.append(Offer(verb="cancel", meaning=_CANCELS, line=line, advice=line, parked_at=state.parked_at or ""))
    if state.may_be_cancelled_now and any(step.in_flight for step in state.steps):
        line = f"sagastream cancel {state.saga_id} --now --reason TEXT"
        found.append(Offer(verb="cancel", meaning=_CANCELS_NOW, line=line, advice=line, now=True))
    return list({offer.key: offer for offer in reversed(found)}.values())[::-1]


def _read(saga_id: str, advice: str) -> Offer | None:
    """The offer in one advice; None: it is something else."""
    line, _, meaning = advice.partition("  # ")
    try:
        words = shlex.split(line)
    except ValueError:
        return None
    if len(words) < 3 or words[0] != "sagastream" or words[1] not in CALLED:
        return None
    if words[1] == "resume":
        command = "" if words[3:4] in ([], ["--reason"]) else words[3]
        return Offer(verb="resume", meaning=meaning, line=line, advice=advice, service=words[2], command=command)
    if words[2] != saga_id:
        return None
    rest = words[3:]
    is_signal = words[1] == "signal"
    return Offer(
        verb=words[1],
        meaning=meaning,
        line=line,
        advice=advice,
        step=_option(rest, "--step"),
        parked_at=_option(rest, "--parked-at"),
        now="--now" in rest,
        signal=rest[0] if is_signal and rest else "",
        declines=is_signal and "--decline" in rest,
    )


def _option(words: Sequence[str], name: str) -> str:
    return words[words.index(name) + 1] if name in words[:-1] else ""
