"""Runs all checks on a service, one after another, and yields what each has found."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from sagastream_bridge.conformance import command_checks, service_checks
from sagastream_bridge.conformance.effects import Effects
from sagastream_bridge.conformance.exchange import Exchange
from sagastream_bridge.conformance.promises import Check, Finding, Verdict
from sagastream_bridge.conformance.trial import Case, Trial

#: How many checks a command has, and how many a service has besides.
COMMAND_CHECKS = len(command_checks.CHECKS.all)
SERVICE_CHECKS = len(service_checks.CHECKS.all)


class Examination:
    def __init__(self, exchange: Exchange, cases: Sequence[Case], probe: Effects | None) -> None:
        """`cases`: one per command. The checks of the service as a whole use the first one. If there are none, because
        the service publishes nothing, that is the only finding."""
        self._exchange = exchange
        self._cases = cases
        self._probe = probe
        self._verdicts: dict[tuple[str, str], Verdict] = {}
        self._silent_since = ""  # the check after which the service answered nothing more
        self._trials = 0

    def findings(self) -> Iterator[Finding]:
        """Raises CheckError if the service cannot be checked."""
        if not self._cases:
            yield self._nothing_published()
            return
        for case in self._cases:
            for check in command_checks.CHECKS.all:
                yield self._put(check, case)
        for check in service_checks.CHECKS.all:
            yield replace(self._put(check, self._cases[0]), command="")

    def _nothing_published(self) -> Finding:
        [check] = (check for check in command_checks.CHECKS.all if check.name == "published")
        expected = f"a hash {self._exchange.keys.published(self._exchange.service)} with a field for each command"
        came = "none; --command NAME checks what it does not publish"
        return replace(check.about(""), verdict=Verdict.BROKEN, expected=expected, came=came)

    def _put(self, check: Check, case: Case) -> Finding:
        if why := self._hindrance(check, case):
            finding = replace(check.about(case.command), came=why)
        else:
            finding = self._try(check, case)
        self._verdicts[case.command, check.name] = finding.verdict
        return finding

    def _try(self, check: Check, case: Case) -> Finding:
        self._trials += 1
        trial = Trial(self._exchange, case, self._probe, self._trials)
        try:
            finding = check.put_to(trial)
            # If it never answered, the first check has reported that.
            answered = self._verdicts.get((case.command, "answers")) is Verdict.KEPT
            if finding.verdict is Verdict.BROKEN and answered and not trial.is_heard():
                self._silent_since = check.name
        finally:
            try:
                if not self._silent_since:
                    trial.undo()
            finally:
                self._exchange.tidy()
        return finding

    def _hindrance(self, check: Check, case: Case) -> str:
        """Why a check would find nothing out; "": it would."""
        if self._silent_since:
            return f"the service has answered nothing since the check {self._silent_since}"
        for name in check.needs:
            if (verdict := self._verdicts[case.command, name]) is not Verdict.KEPT:
                return f"{name}, on which it depends, was {verdict}"
        return ""
