"""What a check is, and what it finds: a promise, kept or broken, with what was expected and what came."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from sagastream_bridge.conformance.trial import Broken, NotChecked, Trial

#: Where the protocol is described; a check names the section.
PROTOCOL: Final = "docs/protocol.md"
#: How far a promise about effects is kept, as far as can be seen, if nobody counts them.
AS_REPLIES_SHOW: Final = "as far as its replies show"


class Verdict(StrEnum):
    KEPT = "kept"
    BROKEN = "broken"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found out about one command, or about the service if `command` is ""."""

    check: str
    command: str
    promise: str  # in one sentence
    verdict: Verdict
    read_on: str  # where in the documentation
    expected: str = ""  # if it is broken
    came: str = ""  # what came; if it was not checked: why not
    only: str = ""  # if it is kept, but only a part of it could be seen: how far


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One promise, and how it is tried.

    `run` returns what came if the promise is kept; else it raises Broken or NotChecked. `needs`: checks that this one
    depends on: it runs only if their promises were kept.
    """

    name: str
    promise: str
    run: Callable[[Trial], str]
    needs: tuple[str, ...] = ()
    section: str = ""  # of PROTOCOL

    def about(self, command: str) -> Finding:
        """The finding before the check has run."""
        return Finding(
            check=self.name,
            command=command,
            promise=self.promise,
            verdict=Verdict.NOT_CHECKED,
            read_on=f"{PROTOCOL}#{self.section}",
        )

    def put_to(self, trial: Trial) -> Finding:
        """Run it. Raises CheckError or redis.RedisError if there can be no verdict."""
        finding = self.about(trial.case.command)
        try:
            came = self.run(trial)
            only = AS_REPLIES_SHOW if trial.is_uncounted else ""
            return replace(finding, verdict=Verdict.KEPT, came=came, only=only)
        except Broken as broken:
            return replace(finding, verdict=Verdict.BROKEN, expected=broken.expected, came=broken.came)
        except NotChecked as why:
            return replace(finding, came=str(why))


class Checks:
    """Checks, in the order in which they run. `section`: the anchor in the page of the protocol."""

    def __init__(self) -> None:
        self.all: list[Check] = []

    def check(
        self, name: str, promise: str, section: str, *, needs: tuple[str, ...] = ("answers",)
    ) -> Callable[[Callable[[Trial], str]], Callable[[Trial], str]]:
        def declare(run: Callable[[Trial], str]) -> Callable[[Trial], str]:
            self.all.append(Check(name=name, promise=promise, run=run, needs=needs, section=section))
            return run

        return declare
