"""Why a saga waits while a command is out: what became of it, and of the processes that should answer it. Pure.

why.py says the rest.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from msgspec.structs import replace

from sagastream.core.back import quote
from sagastream.core.causes import Cause, CauseKind, Evidence, Handler, Job, Place, Whereabouts
from sagastream.core.durations import spoken
from sagastream.core.saga import SagaState
from sagastream.core.step_state import Step
from sagastream.core.why_service import LOG, START, all_hang, busy_with, hangs, no_command, nobody

#: If a command was delivered this often, the processes that take it may die of it.
_MANY_DELIVERIES: Final = 3
#: From so many deaths on, the command is what they have in common. For the first one, all that its process had begun
#: may be to blame; what is taken over a second time runs alone.
_MANY_DEATHS: Final = 2
#: If so many attempts have failed, waiting may not help.
MANY_FAILURES: Final = 2
#: For how long after its time a worker may be busy with others before a saga counts as late, in milliseconds.
LATE_MS: Final = 10_000

#: How to start what can open a value.
_WITH_KEY: Final = "with the key that sealed it, in the file that SAGASTREAM_KEYS names"
#: What a clock that was set back does to what waits for a time.
SET_BACK: Final = "What waits for a time begins to wait again: it waits for each time once more, at most"
#: The causes after which its answer may still come by itself.
_GOES_ON: Final = frozenset(
    {CauseKind.QUEUED, CauseKind.RUNNING, CauseKind.PROCESS_DEAD, CauseKind.HANDED_BACK, CauseKind.SENT}
)


def due_of(state: SagaState, step: Step) -> int | None:
    """When a saga no longer waits for what this step waits for: at the step's time or, if that is earlier, at its
    deadline."""
    deadline_ms = state.deadline_now_ms if state.deadline_counts else None
    if step.due_ms is None or deadline_ms is None:
        return step.due_ms
    return min(step.due_ms, deadline_ms)


def late(due_ms: int | None, now_ms: int, what: str) -> Cause | None:
    """If a time has come and no worker has seen to it: that. `what`: what the saga waited for."""
    if due_ms is None or now_ms - due_ms < LATE_MS:
        return None
    text = f"{what}; a worker should have seen to it {spoken(now_ms - due_ms)} ago: the workers are behind, or hang"
    return Cause(kind=CauseKind.LATE, text=text, do=("sagastream doctor",), facts={"due_ms": due_ms})


def fails(state: SagaState, number: int) -> Cause:
    """That attempts of this step's command fail again and again."""
    step = state.steps[number - 1]
    do = CommandOut(state, number, Evidence(now_ms=state.updated_ms), Place()).way_out()
    text = f"attempts of {step.command} fail: {quote(step.current_error)}"
    return Cause(kind=CauseKind.BACKING_OFF, text=text, do=do, facts={"attempt": step.current_attempt})


class CommandOut:
    """The command of a step that a saga has out."""

    def __init__(self, state: SagaState, number: int, evidence: Evidence, place: Place) -> None:
        """`number`: of the step."""
        self._state = state
        self._number = number
        self._step = state.steps[number - 1]
        self._now_ms = evidence.now_ms
        self._names = evidence.names
        self._service = evidence.of(self._step.definition.service)
        self._place = place
        self._command = self._step.command

    def cause(self) -> Cause:
        """Why it has no answer yet."""
        cause = self._found()
        if cause.kind not in _GOES_ON:
            return cause
        failed = self._failed()
        if (deaths := self._deaths()) < _MANY_DEATHS:
            return cause if failed is None else replace(cause, text=f"{cause.text}; {failed}")
        words = [f"{self._command} seems to have killed {deaths} processes: they did not live to answer it", failed]
        return Cause(
            kind=CauseKind.KILLS,
            text="; ".join(filter(None, (*words, cause.text))),
            do=(*self.cancel(), self._log(), *cause.do),
            facts={**cause.facts, "deaths": deaths},
        )

    def of_its_service(self) -> Cause | None:
        """What is wrong with its service, wherever the command is."""
        return self._nobody() or self._lacks_it() or all_hang(self._service, self._now_ms)

    def way_out(self) -> tuple[str, ...]:
        """What helps if attempts of it fail again and again."""
        if self._step.failed_attempts < MANY_FAILURES and self._place.takeovers < _MANY_DEATHS:
            return ()
        return (self._log(), *self.cancel())

    def cancel(self) -> tuple[str, ...]:
        """How to be rid of it, if its saga may go back without its answer."""
        if not self._state.may_be_cancelled_now:
            return ()
        return (f"sagastream cancel {self._state.saga_id} --now --reason TEXT  # undoes what it may have done",)

    def _found(self) -> Cause:
        rules: Mapping[Whereabouts, Callable[[], Cause]] = {
            Whereabouts.UNREAD: self._unread,
            Whereabouts.HELD: self._held,
            Whereabouts.SKIPPED: self._skipped,
            Whereabouts.GONE: self._gone,
            Whereabouts.UNKNOWN: self._somewhere,
        }
        return rules[self._place.where]()

    def _somewhere(self) -> Cause:
        if (mine := self._handler()) is not None:
            return self._running(mine)
        service, now_ms = self._service, self._now_ms
        if cause := self._nobody() or self._lacks_it() or self._unopened() or all_hang(service, now_ms):
            return cause
        step = self._step
        since_ms = step.compensation_sent_ms if step.being_undone else step.sent_ms
        text = f"service {self._service.name} has not answered {self._command}{self._for(', sent', since_ms, ' ago')}"
        return late(due_of(self._state, self._step), self._now_ms, text) or self._cause(
            CauseKind.SENT, text, since_ms=since_ms
        )

    def _unread(self) -> Cause:
        if cause := self._nobody() or self._lacks_it():
            return cause
        place, service = self._place, self._service
        before = f"more than {place.before}" if place.are_more else str(place.before)
        text = f"queued{self._for(' for', place.added_ms)}: commands before it: {before}"
        text += f"; processes of service {service.name} at work: {service.at_work}{busy_with(service, self._now_ms)}"
        facts = {"before": place.before, "since_ms": place.added_ms, "unread": service.unread}
        if front := all_hang(service, self._now_ms):
            text = f"{front.text}; {text}"
            return Cause(kind=CauseKind.HANGS, text=text, do=front.do, facts={**front.facts, **facts})
        return self._cause(CauseKind.QUEUED, text, **facts)

    def _held(self) -> Cause:
        if self._place.job is not None:
            return self._in_rq(self._place.job)
        if self._place.handed_back:
            text = f"process {self._place.holder} handed {self._command} back; another takes it over within 2 s"
            given = self._cause(CauseKind.HANDED_BACK, text, process=self._place.holder)
            return self._nobody() or self._lacks_it() or self._unopened() or given
        holder = self._service.process(self._place.holder)
        if holder is None or not holder.is_alive:
            return self._holder_dead()
        if (mine := self._handler(holder.name)) is not None:
            return self._running(mine)
        has = f"process {holder.name} has {self._command}"
        if self._place.unasked:
            has += f" (RQ's server does not say whether it is out as a job: {self._place.unasked})"
        facts = {"process": holder.name, "deliveries": self._place.deliveries}
        if front := all_hang(self._service, self._now_ms, holder.name):
            text = f"{has}, and has not begun it: {front.text}"
            return Cause(kind=CauseKind.HANGS, text=text, do=front.do, facts={**front.facts, **facts})
        attempt, again = self._step.current_attempt, self._deliveries()
        text = f"{has}{again}, and was heard {spoken(holder.silent_ms)} ago"
        if not holder.is_at_work:
            text += ": it may be dead or hung" + self._may_kill()
        return self._cause(CauseKind.RUNNING, text, attempt=attempt, **facts)

    def _unopened(self) -> Cause | None:
        """If a process that is alive has left it to others, since it cannot open it: that."""
        me, service = (self._state.saga_id, self._number, self._command), self._service
        left = [one for one in service.unopened if (one.saga_id, one.step, one.command) == me]
        if (one := next((one for one in left if service.is_alive(one.process)), None)) is None:
            return None
        text = f"process {one.process} cannot open {self._command}: {one.why}; it waits for a process that can"
        do = f"start service {service.name} {_WITH_KEY}"
        return Cause(kind=CauseKind.CANNOT_OPEN, text=text, do=(do, *self.cancel()), facts={"process": one.process})

    def _running(self, mine: Handler) -> Cause:
        """Its handler runs."""
        step, not_after_ms = self._step, mine.not_after_ms
        facts = {"process": mine.process, "since_ms": mine.since_ms, "not_after_ms": not_after_ms}
        process = self._service.process(mine.process)
        if process is None or not process.is_alive:
            return self._holder_dead(mine.process)
        if mine.overdue:
            cause = hangs(mine, self._now_ms)
            return replace(cause, do=(*cause.do, *self.cancel()))
        runs = f"{mine.command} has run for {spoken(self._now_ms - mine.since_ms)} in process {mine.process}"
        attempt = f", attempt {step.current_attempt} of {step.attempts}" if step.current_attempt > 1 else ""
        left = "" if not_after_ms is None else f"; its deadline comes in {spoken(not_after_ms - self._now_ms)}"
        if not process.is_at_work:
            left += f"; its process was last heard {spoken(process.silent_ms)} ago: it may be dead or hung"
        return self._cause(CauseKind.RUNNING, f"running: {runs}{attempt}{left}", attempt=step.current_attempt, **facts)

    def _holder_dead(self, name: str = "") -> Cause:
        """The process that has it is not heard any more."""
        name = name or self._place.holder
        holder, service = self._service.process(name), self._service
        heard = "is not heard any more" if holder is None else f"was last heard {spoken(holder.silent_ms)} ago"
        text = f"process {name} has {self._command}{self._deliveries()}, and {heard}: dead or hung"
        text += self._may_kill()
        last_ms = None if holder is None else self._now_ms - holder.silent_ms
        facts = {"process": name, "deliveries": self._place.deliveries, "last_heard_ms": last_ms}
        if not service.alive:
            text += f"; no process of service {service.name} is listening"
            return Cause(kind=CauseKind.PROCESS_DEAD, text=text, do=(START + LOG,), facts=facts)
        if front := all_hang(self._service, self._now_ms):
            text += f". No other process takes it over, since {front.text}"
            return Cause(kind=CauseKind.HANGS, text=text, do=front.do, facts={**facts, **front.facts, "holder": name})
        text += "; another process takes it over when the lease has ended and it has a slot free"
        if self._place.where is Whereabouts.HELD:
            text += f" (by default after 30 s; it was last renewed {spoken(self._place.held_ms)} ago)"
        text += busy_with(service, self._now_ms, {process.name for process in service.alive})
        return self._cause(CauseKind.PROCESS_DEAD, text, **facts)

    def _skipped(self) -> Cause:
        text = f"{self._command} is in the stream of service {self._service.name}, and nobody will read it"
        do = ("sagastream doctor --repair  # puts it back",)
        return Cause(kind=CauseKind.LOST, text=text, do=do, facts={"since_ms": self._place.added_ms})

    def _gone(self) -> Cause:
        if replies := self._place.replies:
            text = f"{self._command} was answered; replies that wait for a worker: {replies}"
            return self._cause(CauseKind.ANSWERED, text, replies=replies)
        text = f"{self._command} is not in the stream of service {self._service.name} any more, and no reply waits"
        due_ms = due_of(self._state, self._step)
        if cause := late(due_ms, self._now_ms, text):
            return cause
        then = "" if due_ms is None else f"; it counts as not answered in {spoken(due_ms - self._now_ms)}"
        return self._cause(CauseKind.LOST, text + then, until_ms=due_ms)

    def _in_rq(self, job: Job) -> Cause:
        facts = {"queue": job.queue, "job": job.status, "before": job.before, "workers": job.workers}
        if job.unopened:
            text = f"RQ worker {job.worker} cannot open {self._command}: {job.unopened}; it waits for a worker that can"
            start = f"start an RQ worker of queue {job.queue} {_WITH_KEY}"
            return Cause(kind=CauseKind.CANNOT_OPEN, text=text, do=(start, *self.cancel()), facts=facts)
        if job.status != "queued":
            text = f"{self._command} is a job of queue {job.queue}: {job.status}{self._for('', job.since_ms, ' ago')}"
            text += f" by RQ worker {job.worker}" if job.worker else ""
            text += f" ({job.process})" if job.process else ""
            text += f"; it may take {spoken(job.limit_s * 1000)}" if job.limit_s else ""
            return self._cause(CauseKind.RUNNING, text, since_ms=job.since_ms, **facts)
        if job.workers:
            before = "unknown" if job.before is None else str(job.before)
            text = f"queued: jobs before it in queue {job.queue}: {before}; RQ workers at work: {job.workers}"
            return self._cause(CauseKind.QUEUED, text, **facts)
        text = f"{self._command} waits as a job, and no RQ worker works on queue {job.queue}"
        do = [f"{job.start}  # starts one"]
        do += [job.start_by_rq] if job.start_by_rq else []
        return Cause(kind=CauseKind.NO_RQ_WORKER, text=text, do=tuple(do), facts=facts)

    # --- its service

    def _handler(self, process: str = "") -> Handler | None:
        """The handler that runs for it, in this process if one is named: the one that began last."""
        me = (self._state.saga_id, self._number, self._command)
        mine = [one for one in self._service.handlers if (one.saga_id, one.step, one.command) == me]
        mine = [one for one in mine if process in ("", one.process)]
        return max(mine, key=lambda handler: handler.since_ms, default=None)

    def _nobody(self) -> Cause | None:
        cause = nobody(self._service, self._names, self._now_ms)
        if cause is None:
            return None
        if not cause.facts.get("near"):
            goes_back = self._state.cancelling is not None
            return replace(cause, do=(*cause.do, *self.cancel())) if goes_back else cause
        now = " --now" if self._state.may_be_cancelled_now else ""
        do = f"sagastream cancel {self._state.saga_id}{now} --reason TEXT"
        do += "  # abandon it if it is parked then; begin another with the right name"
        return replace(cause, do=(do,))

    def _lacks_it(self) -> Cause | None:
        return no_command(self._service, self._command)

    # --- words

    def _cause(self, kind: CauseKind, text: str, **facts: Any) -> Cause:
        """A cause about which there is nothing to do."""
        return Cause(kind=kind, text=text, facts=facts)

    def _failed(self) -> str | None:
        """How its attempt before this one ended."""
        step = self._step
        if step.current_attempt < 2 or step.current_error is None:
            return None
        return f"attempt {step.current_attempt - 1} of {step.attempts} failed: {quote(step.current_error)}"

    def _deaths(self) -> int:
        """How many processes did not live to answer it, as far as they count that: each that it was taken over from."""
        place = self._place
        holder = self._service.process(place.holder)
        is_dead = place.where is Whereabouts.HELD and (holder is None or not (holder.is_alive and holder.is_at_work))
        return place.takeovers + (place.takeovers > 0 and is_dead and place.job is None and not place.handed_back)

    def _log(self) -> str:
        """Where it is told how its attempts ended. Between two attempts nobody knows whether it runs on RQ: a service
        does not publish that."""
        if (job := self._place.job) is not None:
            return f"look at the log of the RQ workers of queue {job.queue}  # it says how each attempt ended"
        on_rq = "if the step runs on RQ, the log of its RQ worker does"
        return f"look at the log of service {self._service.name}  # it says how each attempt ended; {on_rq}"

    def _for(self, before: str, since_ms: int | None, after: str = "") -> str:
        return "" if since_ms is None else f"{before} {spoken(self._now_ms - since_ms)}{after}"

    def _may_kill(self) -> str:
        return "; the processes that take it may die of it" if self._place.deliveries >= _MANY_DELIVERIES else ""

    def _deliveries(self) -> str:
        return f" (delivered {self._place.deliveries} times)" if self._place.deliveries > 1 else ""
