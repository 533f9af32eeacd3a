"""Why a saga waits: every cause of the closed list, from the evidence that leads to it."""

from typing import Any

import pytest
from msgspec.structs import replace

from sagastream.core.causes import (
    Cause,
    CauseKind,
    Evidence,
    Handler,
    Job,
    Place,
    Reader,
    ServiceFacts,
    Unopened,
    Whereabouts,
)
from sagastream.core.durations import spoken
from sagastream.core.pauses import Pause
from sagastream.core.phases import Phase
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.step_state import HELD_MS, Step
from sagastream.core.steps import Shape, StepDefinition, StepKind
from sagastream.core.why import headline, why, why_absent
from sagastream.core.why_service import unheard_of
from sagastream.core.why_waits import pauses_nothing

NOW_MS = 1_700_000_000_000
PID = "web1-4711-5f0c2a9e"


def a_step(**members: Any) -> Step:
    definition = StepDefinition(transaction="Charge", service="payment", params=b"{}", **members.pop("definition", {}))
    return Step(definition=definition, **({"attempt": 1, "sent_ms": NOW_MS - 9_000} | members))


def a_saga(*steps: Step, **members: Any) -> SagaState:
    current = members.pop("current_step", 1)
    return SagaState(
        **(
            {"saga_id": "s1", "status": SagaStatus.PENDING, "current_step": current, "steps": steps}
            | {"begun_ms": NOW_MS - 60_000, "updated_ms": NOW_MS - 9_000}
            | members
        )
    )


OUT = a_saga(a_step(phase=Phase.OUT, due_ms=NOW_MS + 51_000))
OVERDUE = a_saga(a_step(phase=Phase.OUT, due_ms=NOW_MS - 60_000))
BACKING_OFF = a_saga(a_step(phase=Phase.BACKING_OFF, due_ms=NOW_MS + 4_000, attempt=2, error=b'"RuntimeError: boom"'))
HELD_BACK = a_saga(a_step(phase=Phase.BACKING_OFF, due_ms=HELD_MS, attempt=0, sent_ms=None))
PARKED = a_saga(a_step(phase=Phase.PARKED, parked="failed"))
PAUSE = Pause(service="payment", reason="the bank is away", actor="ann", since_ms=NOW_MS - 120_000)

WORKER = Reader(name="worker-1-aa", is_alive=True, silent_ms=300)
ALIVE = Reader(name=PID, is_alive=True, silent_ms=400)
DEAD = Reader(name="web2-815-77", is_alive=False, silent_ms=40_000)
COMMANDS = frozenset({"Charge", "Refund"})


def at_work(*processes: Reader, **members: Any) -> Evidence:
    """A store with a worker, and these processes of the service."""
    facts = ServiceFacts(name="payment", processes=processes, **({"published": COMMANDS} | members))
    return Evidence(now_ms=NOW_MS, workers=(WORKER,), services={"payment": facts}, names=frozenset({"payment"}))


def runs(saga_id: str = "s1", *, for_ms: int = 5_000, left_ms: int | None = 55_000, process: str = PID) -> Handler:
    not_after_ms = None if left_ms is None else NOW_MS + left_ms
    since_ms = NOW_MS - for_ms
    overdue = left_ms is not None and left_ms < 0
    return Handler(
        process=process,
        saga_id=saga_id,
        step=1,
        command="Charge",
        since_ms=since_ms,
        not_after_ms=not_after_ms,
        overdue=overdue,
    )


HANGING = runs("other", for_ms=90_000, left_ms=-30_000)
UNREAD = Place(where=Whereabouts.UNREAD, added_ms=NOW_MS - 9_000, before=3)
HELD = Place(where=Whereabouts.HELD, added_ms=NOW_MS - 9_000, holder=PID, held_ms=500, deliveries=1)
SEALED = Unopened(process=PID, saga_id="s1", step=1, command="Charge", why="there is no key k")

#: What is so -> the causes: of each its kind, and words that its text or its remedy must have.
CASES: dict[str, tuple[tuple[Any, ...], list[tuple[CauseKind, list[str]]]]] = {
    "it has ended": ((a_saga(a_step(phase=Phase.COMPLETED), status=SagaStatus.COMPLETED), at_work()), []),
    "queued": (
        (OUT, at_work(ALIVE), UNREAD),
        [(CauseKind.QUEUED, ["queued for 9 s", "commands before it: 3", "payment at work: 1"])],
    ),
    "queued, too far to count": (
        (OUT, at_work(ALIVE), replace(UNREAD, before=1000, are_more=True)),
        [(CauseKind.QUEUED, ["commands before it: more than 1000"])],
    ),
    "queued behind what hangs": (
        (OUT, at_work(ALIVE, handlers=(HANGING,), hung=frozenset({PID})), UNREAD),
        [(CauseKind.HANGS, ["Charge of saga other has run for 90 s", "queued for 9 s", "kill 4711  # on web1"])],
    ),
    "queued, and one of two slots hangs": (
        (OUT, at_work(ALIVE, handlers=(HANGING,)), UNREAD),
        [(CauseKind.QUEUED, ["commands before it: 3"])],
    ),
    "queued, and of two processes one hangs": (
        (OUT, at_work(ALIVE, replace(ALIVE, name="b"), handlers=(HANGING,), hung=frozenset({PID})), UNREAD),
        [(CauseKind.QUEUED, ["at work: 2"])],
    ),
    "running": (
        (OUT, at_work(ALIVE, handlers=(runs(),)), HELD),
        [(CauseKind.RUNNING, [f"running: Charge has run for 5 s in process {PID}", "its deadline comes in 55 s"])],
    ),
    "running, as is known without a look": (
        (OUT, at_work(ALIVE, handlers=(runs(left_ms=None),))),
        [(CauseKind.RUNNING, ["has run for 5 s"])],
    ),
    "running a third time": (
        (a_saga(a_step(phase=Phase.OUT, attempt=3)), at_work(ALIVE, handlers=(runs(),)), HELD),
        [(CauseKind.RUNNING, ["attempt 3 of 3"])],
    ),
    "held, and no more is told": (
        (OUT, at_work(ALIVE), HELD),
        [(CauseKind.RUNNING, [f"process {PID} has Charge, and was heard 0 s ago"])],
    ),
    "held by a process that is silent, though not for long": (
        (OUT, at_work(replace(ALIVE, is_at_work=False, silent_ms=8_000)), replace(HELD, deliveries=3)),
        [(CauseKind.RUNNING, ["(delivered 3 times), and was heard 8 s ago: it may be dead or hung", "may die of it"])],
    ),
    "held behind what hangs": (
        (OUT, at_work(ALIVE, handlers=(HANGING,), hung=frozenset({PID})), HELD),
        [(CauseKind.HANGS, ["has not begun it", "of saga other"])],
    ),
    "its handler hangs": (
        (OUT, at_work(ALIVE, handlers=(runs(for_ms=90_000, left_ms=-30_000),)), HELD),
        [(CauseKind.HANGS, ["the handler of Charge, step 1, hangs", "30 s past its deadline", "kill 4711  # on web1"])],
    ),
    "an earlier attempt hangs in another process": (
        (
            OUT,
            at_work(ALIVE, replace(ALIVE, name="b"), handlers=(runs(for_ms=90_000, left_ms=-30_000, process="b"),)),
            HELD,
        ),
        [(CauseKind.RUNNING, [f"process {PID} has Charge"]), (CauseKind.HANGS, ["in process b"])],
    ),
    "its attempt has failed, and its handler hangs": (
        (BACKING_OFF, at_work(ALIVE, handlers=(runs(for_ms=90_000, left_ms=-30_000),))),
        [(CauseKind.BACKING_OFF, ["sent again in 4 s"]), (CauseKind.HANGS, ["30 s past its deadline"])],
    ),
    "its process is dead": (
        (OUT, at_work(DEAD, ALIVE), replace(HELD, holder=DEAD.name)),
        [
            (
                CauseKind.PROCESS_DEAD,
                [f"process {DEAD.name} has Charge, and was last heard 40 s ago", "another process takes it over"],
            )
        ],
    ),
    "its process is dead while its handler was running": (
        (OUT, at_work(DEAD, ALIVE, handlers=(runs(process=DEAD.name),))),
        [(CauseKind.PROCESS_DEAD, ["was last heard 40 s ago"])],
    ),
    "its process is forgotten, and was not the first": (
        (OUT, at_work(), replace(HELD, holder="gone", deliveries=4)),
        [(CauseKind.PROCESS_DEAD, ["delivered 4 times", "may die of it", "is not heard any more", "is listening"])],
    ),
    "its process is dead, and the only other one hangs": (
        (OUT, at_work(DEAD, ALIVE, handlers=(HANGING,), hung=frozenset({PID})), replace(HELD, holder=DEAD.name)),
        [
            (
                CauseKind.HANGS,
                ["was last heard 40 s ago", "takes it over, since handlers hang", "saga other", "kill 4711"],
            )
        ],
    ),
    "its process is dead, and the others are busy": (
        (
            OUT,
            at_work(DEAD, ALIVE, handlers=(runs("other"),)),
            replace(HELD, holder=DEAD.name, held_ms=40_000),
        ),
        [
            (
                CauseKind.PROCESS_DEAD,
                ["by default after 30 s; it was last renewed 40 s ago", "Charge of saga other has run"],
            )
        ],
    ),
    "running in a process that is silent": (
        (OUT, at_work(replace(ALIVE, is_at_work=False, silent_ms=8_000), handlers=(runs(),)), HELD),
        [(CauseKind.RUNNING, ["running: Charge", "its process was last heard 8 s ago: it may be dead or hung"])],
    ),
    "it kills its processes, and one has it now": (
        (OUT, at_work(ALIVE), replace(HELD, takeovers=2)),
        [
            (
                CauseKind.KILLS,
                ["Charge seems to have killed 2 processes", "sagastream cancel s1 --now", "log of service payment"],
            )
        ],
    ),
    "it kills its processes, and the last one is dead": (
        (OUT, at_work(DEAD), replace(HELD, takeovers=2, holder=DEAD.name)),
        [(CauseKind.KILLS, ["Charge seems to have killed 3 processes", "is listening", "sagastream service"])],
    ),
    "its jobs kill their processes": (
        (OUT, at_work(ALIVE), replace(HELD, takeovers=2, job=Job(queue="parcels", status="started"))),
        [(CauseKind.KILLS, ["killed 2 processes", "look at the log of the RQ workers of queue parcels  # it says"])],
    ),
    "it has been taken over once": (
        (OUT, at_work(ALIVE), replace(HELD, takeovers=1)),
        [(CauseKind.RUNNING, [f"process {PID} has Charge, and was heard 0 s ago"])],
    ),
    "it killed its processes at the attempt before": (
        (
            a_saga(a_step(phase=Phase.OUT, attempt=2, error=b'"5 processes took Charge"')),
            at_work(ALIVE),
            replace(UNREAD, takeovers=5),
        ),
        [(CauseKind.KILLS, ["killed 5 processes", "attempt 1 of 3 failed: 5 processes took Charge", "queued for"])],
    ),
    "its last attempt failed, and it is queued": (
        (a_saga(a_step(phase=Phase.OUT, attempt=2, error=b'"boom"')), at_work(ALIVE), UNREAD),
        [(CauseKind.QUEUED, ["commands before it: 3", "attempt 1 of 3 failed: boom"])],
    ),
    "its attempts fail": (
        (BACKING_OFF, at_work(ALIVE)),
        [
            (
                CauseKind.BACKING_OFF,
                [
                    "RuntimeError: boom",
                    "the log of service payment  # it says how each attempt ended; if the step runs on RQ",
                    "sagastream cancel s1 --now",
                ],
            )
        ],
    ),
    "its attempt has failed, and its service does not run": (
        (BACKING_OFF, at_work(DEAD)),
        [
            (CauseKind.NO_SERVICE, [f"{DEAD.name} was last heard 40 s ago"]),
            (CauseKind.BACKING_OFF, ["sent again in 4 s"]),
        ],
    ),
    "its attempt has failed, and its service is misspelt": (
        (BACKING_OFF, replace(at_work(published=None), names=frozenset({"payments"}))),
        [(CauseKind.NO_SERVICE, ["of payments?", "sagastream cancel s1"]), (CauseKind.BACKING_OFF, [])],
    ),
    "its attempt has failed, and its service has no such command": (
        (BACKING_OFF, at_work(ALIVE, published=frozenset({"Chrage"}))),
        [(CauseKind.NO_COMMAND, ["misspelling of Chrage"]), (CauseKind.BACKING_OFF, [])],
    ),
    "its attempt has failed, and its service hangs": (
        (BACKING_OFF, at_work(ALIVE, handlers=(HANGING,), hung=frozenset({PID}))),
        [
            (CauseKind.BACKING_OFF, []),
            (CauseKind.HANGS, ["of saga other", "kill 4711  # on web1; it ends within 25 s"]),
        ],
    ),
    "an undo without a deadline hangs": (
        (OUT, at_work(ALIVE, handlers=(replace(runs(left_ms=None), timeout_ms=2_500, overdue=True),)), HELD),
        [(CauseKind.HANGS, ["hangs: it has run for 5 s", "longer than the 2.5 s for which its answer is waited for"])],
    ),
    "parked, and its handler still hangs": (
        (PARKED, at_work(ALIVE, handlers=(runs(for_ms=90_000, left_ms=-30_000),))),
        [(CauseKind.PARKED, []), (CauseKind.HANGS, ["30 s past its deadline"])],
    ),
    "parked, and its handler ran in a process that is dead": (
        (PARKED, at_work(DEAD, handlers=(runs(for_ms=90_000, left_ms=-30_000, process=DEAD.name),))),
        [(CauseKind.PARKED, [])],
    ),
    "handed back": (
        (OUT, at_work(ALIVE), replace(HELD, handed_back=True)),
        [(CauseKind.HANDED_BACK, ["handed Charge back", "within 2 s"])],
    ),
    "handed back, and a process cannot open it": (
        (OUT, at_work(ALIVE, unopened=(SEALED,)), replace(HELD, handed_back=True)),
        [(CauseKind.CANNOT_OPEN, ["cannot open Charge: there is no key k", "waits for a process that can"])],
    ),
    "out, and a process cannot open it": (
        (OUT, at_work(ALIVE, unopened=(SEALED,)), Place()),
        [(CauseKind.CANNOT_OPEN, [ALIVE.name])],
    ),
    "handed back, and a process that is dead could not open it": (
        (OUT, at_work(ALIVE, unopened=(replace(SEALED, process=DEAD.name),)), replace(HELD, handed_back=True)),
        [(CauseKind.HANDED_BACK, [])],
    ),
    "handed back, and a process cannot open another": (
        (OUT, at_work(ALIVE, unopened=(replace(SEALED, step=2),)), replace(HELD, handed_back=True)),
        [(CauseKind.HANDED_BACK, [])],
    ),
    "handed back, and nobody has it": (
        (OUT, at_work(replace(ALIVE, commands=frozenset({"Old"}))), replace(HELD, handed_back=True)),
        [(CauseKind.NO_COMMAND, ["service payment publishes Charge, and no process at work has it", PID, "a release"])],
    ),
    "queued, and a process has just died": (
        (OUT, at_work(ALIVE, replace(ALIVE, name="b", is_at_work=False)), UNREAD),
        [(CauseKind.QUEUED, ["payment at work: 1, and 1 not heard for some seconds"])],
    ),
    "one of two releases has it": (
        (
            OUT,
            at_work(replace(ALIVE, commands=frozenset({"Old"})), replace(ALIVE, name="b", commands=COMMANDS)),
            UNREAD,
        ),
        [(CauseKind.QUEUED, [])],
    ),
    "the command is misspelt": (
        (OUT, at_work(ALIVE, published=frozenset({"Chrage", "Refund"})), UNREAD),
        [(CauseKind.NO_COMMAND, ["service payment has no command Charge; is it a misspelling of Chrage?"])],
    ),
    "the service is misspelt": (
        (OUT, replace(at_work(published=None), names=frozenset({"payments", "shipping"})), UNREAD),
        [(CauseKind.NO_SERVICE, ["payment is listening, and none ever was", "of payments?", "sagastream cancel s1"])],
    ),
    "the service does not run": (
        (OUT, at_work(), UNREAD),
        [(CauseKind.NO_SERVICE, ["no process of service payment is listening", "sagastream service MODULE:NAME"])],
    ),
    "the service is not heard": (
        (OUT, at_work(DEAD)),
        [(CauseKind.NO_SERVICE, [f"{DEAD.name} was last heard 40 s ago; dead or hung", "its log says why"])],
    ),
    "an RQ queue has no worker": (
        (
            OUT,
            at_work(ALIVE),
            replace(HELD, job=Job(queue="q", status="queued", before=0, start="rq worker q", start_by_rq="rq  # so")),
        ),
        [(CauseKind.NO_RQ_WORKER, ["no RQ worker works on queue q", "rq worker q  # starts one", "rq  # so"])],
    ),
    "queued in RQ": (
        (OUT, at_work(ALIVE), replace(HELD, job=Job(queue="q", status="queued", before=7, workers=2))),
        [(CauseKind.QUEUED, ["jobs before it in queue q: 7", "RQ workers at work: 2"])],
    ),
    "running in RQ": (
        (OUT, at_work(ALIVE), replace(HELD, job=Job(queue="q", status="started", worker="w9"))),
        [(CauseKind.RUNNING, ["a job of queue q: started by RQ worker w9"])],
    ),
    "not opened in RQ": (
        (OUT, at_work(ALIVE), replace(HELD, job=Job(queue="q", status="finished", worker="w9", unopened="no key k"))),
        [(CauseKind.CANNOT_OPEN, ["RQ worker w9 cannot open Charge: no key k", "start an RQ worker of queue q with"])],
    ),
    "answered": (
        (OUT, at_work(ALIVE), Place(where=Whereabouts.GONE, replies=12)),
        [(CauseKind.ANSWERED, ["Charge was answered", "wait for a worker: 12"])],
    ),
    "deleted": (
        (OUT, at_work(ALIVE), Place(where=Whereabouts.GONE)),
        [(CauseKind.LOST, ["not in the stream of service payment any more", "counts as not answered in 51 s"])],
    ),
    "passed over": (
        (OUT, at_work(ALIVE), Place(where=Whereabouts.SKIPPED)),
        [(CauseKind.LOST, ["nobody will read it", "sagastream doctor --repair  # puts it back"])],
    ),
    "sent": ((OUT, at_work(ALIVE)), [(CauseKind.SENT, ["service payment has not answered Charge, sent 9 s ago"])]),
    "late": ((OVERDUE, at_work(ALIVE)), [(CauseKind.LATE, ["should have seen to it 60 s ago", "sagastream doctor"])]),
    "late, after a failure": (
        (replace(BACKING_OFF, steps=(replace(BACKING_OFF.step, due_ms=NOW_MS - 11_000),)), at_work(ALIVE)),
        [(CauseKind.LATE, ["RuntimeError: boom", "should have seen to it 11 s ago"])],
    ),
    "backing off": (
        (BACKING_OFF, at_work(ALIVE)),
        [(CauseKind.BACKING_OFF, ["sent again in 4 s, since attempt 2 of 3 of Charge failed: RuntimeError: boom"])],
    ),
    "paused": (
        (HELD_BACK, replace(at_work(ALIVE), pauses=(PAUSE,))),
        [
            (
                CauseKind.PAUSED,
                [
                    "service payment",
                    "for 2 m",
                    "ann",
                    "the bank is away",
                    "Charge is sent once it is resumed",
                    "sagastream resume payment --reason TEXT",
                ],
            )
        ],
    ),
    "paused twice": (
        (HELD_BACK, replace(at_work(ALIVE), pauses=(PAUSE, replace(PAUSE, command="Charge")))),
        [
            (
                CauseKind.PAUSED,
                [
                    "once all of that is resumed",
                    "resume payment --reason TEXT  # it is sent once each of these lines was entered: both are needed",
                    "resume payment Charge --reason TEXT  # it is sent once each of these lines was entered",
                ],
            )
        ],
    ),
    "resumed a moment ago": (
        (HELD_BACK, at_work(ALIVE)),
        [(CauseKind.PAUSED, ["Charge was held, and is no longer paused: a worker sends it within some seconds"])],
    ),
    "no worker": (
        (OUT, replace(at_work(ALIVE), workers=()), UNREAD),
        [(CauseKind.NO_WORKER, ["no worker is running", "sagastream worker"]), (CauseKind.QUEUED, [])],
    ),
    "a dead worker": (
        (BACKING_OFF, replace(at_work(ALIVE), workers=(DEAD,))),
        [(CauseKind.NO_WORKER, [f"{DEAD.name} was last heard 40 s ago; dead or hung"]), (CauseKind.BACKING_OFF, [])],
    ),
    "a dead worker beside one that lives": (
        (BACKING_OFF, replace(at_work(ALIVE), workers=(DEAD, WORKER))),
        [(CauseKind.BACKING_OFF, [])],
    ),
    "a full broker": (
        (OUT, replace(at_work(), broker=(Cause(kind=CauseKind.BROKER_FULL, text="full"),), workers=())),
        [(CauseKind.BROKER_FULL, ["full"])],
    ),
    "parked, whatever else is so": (
        (
            a_saga(a_step(phase=Phase.PARKED, parked="failed", definition={"kind": StepKind.PIVOT}), a_step()),
            replace(at_work(), broker=(Cause(kind=CauseKind.BROKER_FULL, text="full"),), workers=()),
        ),
        [
            (
                CauseKind.PARKED,
                [
                    "failed",
                    "retry s1 --reason TEXT --parked-at 1/transaction/1  # send Charge again, at most 3 times",
                    "skip s1 --reason TEXT --parked-at 1/transaction/1  # go on with step 2 as if step 1 were done",
                    "sagastream abandon s1 --reason TEXT --parked-at 1/transaction/1  # end ABORTED as it is",
                    "cancel s1 --reason TEXT --parked-at 1/transaction/1  # go back as if step 1 were not done",
                ],
            )
        ],
    ),
    "parked, and there never was its service": (
        (PARKED, replace(at_work(), services={}, names=frozenset({"payments"}))),
        [
            (CauseKind.PARKED, []),
            (CauseKind.NO_SERVICE, ["payment is listening, and none ever was; is it a misspelling of payments?"]),
        ],
    ),
    "cancelled, and nobody runs the service of what is out": (
        (replace(OUT, cancelling="no"), at_work()),
        [(CauseKind.NO_SERVICE, ["no process of service payment", "sagastream service", "cancel s1 --now"])],
    ),
    "parked at an undo that nobody knows": (
        (
            a_saga(
                a_step(phase=Phase.COMPLETED),
                a_step(phase=Phase.UNDO_PARKED, parked="nobody knows"),
                status=SagaStatus.COMPENSATING,
                current_step=2,
            ),
            at_work(),
        ),
        [
            (
                CauseKind.PARKED,
                [
                    "s1 --reason TEXT --parked-at 2/compensation/0  # look again for what undoes it, at most 10 times",
                    "skip s1 --reason TEXT --parked-at 2/compensation/0  # go on as if step 2 were undone",
                    "what these steps did stays: 1, 2",
                ],
            )
        ],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_evidence_leads_to_the_cause_and_to_what_helps(case: str) -> None:
    given, wanted = CASES[case]
    state, evidence, *place = given
    causes = why(state, evidence, dict.fromkeys((state.current_step,), *place) if place else None)
    assert [cause.kind for cause in causes] == [kind for kind, _ in wanted], causes
    for cause, (_, parts) in zip(causes, wanted, strict=True):
        for part in parts:
            assert part in "\n".join((cause.text, *cause.do)), cause


def test_every_cause_of_the_list_has_a_case() -> None:
    covered = {kind for _, wanted in CASES.values() for kind, _ in wanted}
    # Those of the broker are found by who gathers the evidence; see tests/functional/test_why.py.
    elsewhere = {CauseKind.BROKER_DISK, CauseKind.BROKER_READ_ONLY, CauseKind.BROKER_REPLICAS}
    of_graphs = {
        CauseKind.SETTLES,
        CauseKind.AWAITS_SIGNAL,
        CauseKind.AWAITS_RETRY,
        CauseKind.PAUSES,
        CauseKind.NOT_STARTED,
    }  # see test_why_graph.py
    assert covered == set(CauseKind) - elsewhere - of_graphs


def test_a_parked_saga_past_its_pivot_cannot_be_cancelled_and_its_end_is_said() -> None:
    pivot = a_step(phase=Phase.COMPLETED, definition={"kind": StepKind.PIVOT})
    last = a_step(phase=Phase.PARKED, parked="failed", definition={"kind": StepKind.RETRIABLE, "attempts": 10})
    (cause,) = why(a_saga(pivot, last, current_step=2), at_work())
    assert [line.split()[1] for line in cause.do] == ["retry", "skip", "abandon"]
    assert "skip s1 --reason TEXT --parked-at 2/transaction/1  # end COMPLETED as if step 2 were done" in cause.do[1]
    assert cause.do[2].endswith("what these steps did stays: 1")


def test_of_a_saga_that_is_not_there_the_requests_are_told() -> None:
    assert why_absent(at_work(), 0) == ()
    assert headline(why(PARKED, at_work())) == "parked: failed"
    assert headline(why_absent(at_work(), 7)) == "requests that no worker has read: 7"
    nobody = headline(why_absent(replace(at_work(), workers=()), 1))
    assert nobody == "no worker is running; requests that no worker has read: 1"


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (-5, "0 s"),
        (499, "0 s"),
        (500, "0 s"),  # to the even number
        (999, "1 s"),
        (119_400, "119 s"),
        (119_999, "2 m"),
        (7_199_400, "2 h"),
        (24 * 3_600_000 - 10, "24 h"),
        (23.4 * 3_600_000, "23 h"),
        (172_800_000, "2 d"),
        (365 * 86_400_000 - 1, "365 d"),
    ],
)
def test_durations_are_rounded_and_told_in_the_unit_that_suits_them(ms: float, text: str) -> None:
    assert spoken(ms) == text


@pytest.mark.parametrize(
    ("service", "command", "told"),
    [
        ("payment", None, ""),
        ("payment", "Charge", ""),
        ("payment", "Chrage", "service payment publishes no command Chrage; is it a misspelling of Charge?"),
        (
            "paymnt",
            None,
            "no process of service paymnt is listening, and none ever was; is it a misspelling of payment?",
        ),
        ("paymnt", "Charge", "no process of service paymnt is listening, and none ever was; is it a misspelling of"),
    ],
)
def test_a_pause_of_what_no_service_has_is_told(service: str, command: str | None, told: str) -> None:
    said = pauses_nothing(Pause(service=service, command=command), at_work())
    assert said.startswith(told)
    assert bool(said) is bool(told)


def test_a_pause_of_what_has_not_published_anything_yet_may_hold() -> None:
    one = Pause(service="payment", command="Any")
    assert pauses_nothing(one, replace(at_work(), services={})) == ""
    reader = Reader(name=PID, is_alive=True, silent_ms=1)
    assert pauses_nothing(one, at_work(reader, published=None)) == ""


def test_a_begin_is_told_once_of_each_thing_that_no_service_has() -> None:
    def names(transaction: str, service: str, **members: Any) -> StepDefinition:
        return StepDefinition(transaction=transaction, service=service, params=b"{}", **members)

    pause = StepDefinition(transaction="", service="", params=b"null", shape=Shape(sends=False, wait_ms=5))
    good = (names("Charge", "payment"), names("Charge", "payment", compensation="Refund"), pause)
    assert unheard_of(good, at_work()) == []
    bad = (names("Charge", "paymnt"), names("Refund", "paymnt"), names("Charge", "payment", compensation="Refnud"))
    assert unheard_of((*good, *bad), at_work()) == [
        "no process of service paymnt is listening, and none ever was; is it a misspelling of payment?",
        "service payment publishes no command Refnud; is it a misspelling of Refund?",
    ]
