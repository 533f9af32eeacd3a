"""Puts a service to all checks, one after another, and says of each what was found."""

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
        """`cases`: one a command, at least one; the checks of the service as a whole use the first."""
        self._exchange = exchange
        self._cases = cases
        self._probe = probe
        self._verdicts: dict[tuple[str, str], Verdict] = {}
        self._silent_since = ""  # the check after which the service answered nothing any more
        self._trials = 0

    def findings(self) -> Iterator[Finding]:
        """Raises CheckError where the service cannot be checked."""
        for case in self._cases:
            for check in command_checks.CHECKS.all:
                yield self._put(check, case)
        for check in service_checks.CHECKS.all:
            yield replace(self._put(check, self._cases[0]), command="")

    def _put(self, check: Check, case: Case) -> Finding:
        finding = check.about(case.command)
        if why := self._hindrance(check, case):
            finding = replace(finding, came=why)
        else:
            trial = self._trial(case)
            try:
                finding = check.put_to(trial)
            finally:
                trial.close()
        self._verdicts[case.command, check.name] = finding.verdict
        if finding.verdict is Verdict.BROKEN and not self._answers_still(case):
            self._silent_since = check.name
        return finding

    def _hindrance(self, check: Check, case: Case) -> str:
        """Why a check would tell nothing."""
        if self._silent_since:
            return f"the service has answered nothing since the check {self._silent_since}"
        for name in check.needs:
            if (verdict := self._verdicts[case.command, name]) is not Verdict.KEPT:
                return f"{name}, on which it rests, was {verdict}"
        return ""

    def _answers_still(self, case: Case) -> bool:
        """Whether the service answers a command in any way; True where it never did: that was told then."""
        if self._verdicts.get((case.command, "answers")) is not Verdict.KEPT:
            return True
        trial = self._trial(case)
        try:
            self._exchange.send(trial.transaction().fields())
            return bool(self._exchange.until(lambda: self._exchange.answers(trial.saga_id)))
        finally:
            trial.close()

    def _trial(self, case: Case) -> Trial:
        self._trials += 1
        return Trial(self._exchange, case, self._probe, self._trials)
