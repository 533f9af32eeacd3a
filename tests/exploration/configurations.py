"""What is explored: which sagas, and what goes wrong."""

from typing import Any, Final

from msgspec.structs import replace

from exploration.bugs import Bug
from exploration.world import Config, Handler
from sagastream.core.messages import Verb
from sagastream.core.steps import StepDefinition, StepKind


def step(**options: Any) -> StepDefinition:
    few = {"attempts": 1, "compensation_attempts": 1}
    return StepDefinition(transaction="Do", service="work", params=b"1", **(few | options))


PIVOT: Final = step(kind=StepKind.PIVOT, compensation=None)
RETRIABLE: Final = step(kind=StepKind.RETRIABLE)
ALL_VERBS: Final = tuple(Verb)


# --- graphs, as a saga_begin says them


def do(step_id: str, after: list[str] | None = None, **members: Any) -> dict[str, Any]:
    begin: dict[str, Any] = {"id": step_id, "transaction": "Do", "service": "work"}
    begin |= {"attempts": 1, "compensation_attempts": 1} | ({} if after is None else {"after": after})
    return begin | members


_PIVOT: Final[dict[str, Any]] = {"kind": "pivot", "compensation": None}
_LAST: Final[dict[str, Any]] = {"kind": "retriable"}
_WAIT: Final[dict[str, Any]] = {"id": "w", "wait": "go", "timeout_ms": 1000}
_RETRIED: Final[dict[str, Any]] = {"retry_on": "go", "retry_within_ms": 1000}
_NEVER: Final[dict[str, Any]] = {"when": {"eq": [1, 2]}}
DIAMOND: Final = (do("a"), do("b"), do("c", ["a"]), do("d", ["b", "c"]))
BOTH: Final = (do("a", []), do("b", []))
PAIRS: Final = (*BOTH, do("c", ["a", "b"]), do("d", ["a", "b"]))
CHAINS: Final = (do("a", []), do("b"), do("c", []), do("d"))
NARROW: Final = (*BOTH, do("p", ["a", "b"], **_PIVOT))
FAN: Final = (do("a", []), do("b", []), do("c", []), do("p", ["a", "b", "c"], **_PIVOT))
BESIDE_A_WAIT: Final = (do("a", []), _WAIT | {"after": []}, do("c", ["a", "w"]))
BYPASSED: Final = (do("a"), do("b", **_NEVER), do("c", ["a"]), do("d", ["b", "c"]))
ALONE: Final[dict[str, Any]] = {"workers": 1, "processes": 1}

#: Visited with every run of the tests.
USUAL: Final = [
    Config(name="one step, whatever its handlers come to", steps=(step(attempts=2),), outcomes=("orbas",), undo="orba"),
    Config(name="one step, no faults but time, undone in two attempts",
           steps=(step(attempts=2, compensation_attempts=2),), outcomes=("o",)),
    Config(name="one step, lost messages", steps=(step(attempts=2),), outcomes=("or",), loss=2),
    Config(name="one step, messages twice", steps=(step(attempts=1),), outcomes=("orb",), undo="ob", duplication=1),
    Config(name="one step, processes die", steps=(step(),), outcomes=("orbas",), undo="ob", service_crashes=2),
    Config(name="one step, processes die and are slow", steps=(step(attempts=1),), outcomes=("orbas",),
           service_crashes=1, zombies=1),
    Config(name="one step, workers die and are slow", steps=(step(),), outcomes=("or",), processes=1,
           worker_crashes=2, zombies=2),
    Config(name="one step, its failure tried again, slow", steps=(step(attempts=2, retry_failed=True),),
           outcomes=("or",), zombies=1, workers=1),
    Config(name="one step, its failure tried again, cancelled", steps=(step(attempts=2, retry_failed=True),),
           outcomes=("or",), verbs=(Verb.CANCEL,), requests=1, resend=1),
    Config(name="one step, its failure tried again, cancelled, messages twice", workers=1,
           steps=(step(attempts=2, retry_failed=True),), outcomes=("or",), verbs=(Verb.CANCEL,), requests=1,
           duplication=1),
    Config(name="one step, its failure tried again, cancelled, slow", workers=1,
           steps=(step(attempts=2, retry_failed=True),), outcomes=("or",), verbs=(Verb.CANCEL,), requests=1, zombies=1),
    Config(name="one step with books of its own", steps=(step(),), outcomes=("ob",), handler=Handler.BOOKS,
           orphans_die=True, zombies=1, service_crashes=1),
    Config(name="one step that relies on the runtime alone", steps=(step(attempts=2),), outcomes=("ors",),
           handler=Handler.NAIVE, processes=1, loss=1, duplication=1),
    Config(name="two steps, the second fails", steps=(step(), step()), outcomes=("o", "or"), worker_crashes=1),
    Config(name="two steps, entries in batches", steps=(step(), step()), outcomes=("o", "or"), batch=2, duplication=1,
           workers=1, processes=1),
    Config(name="two steps, cancelled or past its deadline", steps=(step(), step()), outcomes=("o", "or"), workers=1,
           verbs=(Verb.CANCEL,), requests=1, deadline=True),
    Config(name="two steps, cancelled now", steps=(step(), step()), outcomes=("o", "orb"), workers=1,
           verbs=(Verb.CANCEL,), now=True, requests=1, resend=1),
    Config(name="one step, cancelled, then now", steps=(step(attempts=2),), outcomes=("or",), processes=1,
           verbs=(Verb.CANCEL,), now=True, requests=2, workers=1),
    Config(name="one step, cancelled now, slow", steps=(step(attempts=2),), outcomes=("or",), verbs=(Verb.CANCEL,),
           now=True, requests=1, zombies=1, workers=1),
    Config(name="two steps, a hard deadline, or cancelled", steps=(step(), step()), outcomes=("o", "or"), workers=1,
           verbs=(Verb.CANCEL,), now=True, requests=1, deadline=True, hard=True),
    Config(name="a pivot, a hard deadline, operators", steps=(step(), replace(PIVOT, attempts=2)), processes=1,
           outcomes=("o", "orb"), verbs=ALL_VERBS, now=True, requests=1, workers=1, deadline=True, hard=True),
    Config(name="two steps, operators", steps=(step(), step()), outcomes=("o", "or"), undo="or", verbs=ALL_VERBS,
           requests=1, resend=1, workers=1, processes=1),
    Config(name="a pivot, cancelled", steps=(step(), replace(PIVOT, attempts=2)), outcomes=("o", "orb"),
           verbs=(Verb.CANCEL,), requests=1, workers=1),
    Config(name="three steps, undone, operators who say what they saw", steps=(step(), step(), step()), undo="or",
           outcomes=("o", "o", "r"), verbs=(Verb.RETRY, Verb.SKIP, Verb.ABANDON), seen=True, requests=1, workers=1,
           processes=1),
    Config(name="a pivot, operators who say what they saw", steps=(step(), PIVOT), outcomes=("o", "ob"), seen=True,
           verbs=ALL_VERBS, now=True, requests=2, workers=1, processes=1),
    Config(name="a pivot, tried again", steps=(replace(PIVOT, attempts=2, retry_failed=True),), outcomes=("orb",),
           verbs=ALL_VERBS, requests=1, workers=1),
    Config(name="two retriable steps, skipped", steps=(RETRIABLE, RETRIABLE), outcomes=("r", "or"), verbs=(Verb.SKIP,),
           requests=1, resend=1, processes=1),
    Config(name="a retriable step, abandoned, slow", steps=(PIVOT, RETRIABLE), outcomes=("o", "orb"), zombies=1,
           verbs=(Verb.ABANDON,), requests=1, workers=1),
    Config(name="three steps of every kind", steps=(step(), PIVOT, RETRIABLE), outcomes=("or", "orb", "or"),
           worker_crashes=1, service_crashes=1, loss=1),
    Config(name="two steps, paused, resumed, paused", steps=(step(attempts=2), step()), outcomes=("o", "or"), pauses=3,
           workers=1, processes=1),
    Config(name="one step, paused and resumed, slow", steps=(step(attempts=2),), outcomes=("o",), pauses=2, zombies=1,
           processes=1),
    Config(name="one step, paused and resumed, workers die", steps=(step(),), outcomes=("or",), pauses=2,
           worker_crashes=1, processes=1),
    Config(name="a pivot, paused and resumed, cancelled or past a deadline", outcomes=("o", "ob"), pauses=2, workers=1,
           steps=(step(), replace(PIVOT, attempts=2)), verbs=(Verb.CANCEL,), now=True, requests=1, deadline=True,
           processes=1),
    Config(name="a retriable step, paused and resumed, operators", steps=(RETRIABLE,), outcomes=("orb",), pauses=2,
           verbs=ALL_VERBS, requests=1, workers=1, processes=1),
    Config(name="three steps, a second attempt each, one worker", steps=(step(attempts=2),) * 3,
           outcomes=("o", "o", "or"), workers=1, processes=1),
]  # fmt: skip

#: The same, of graphs.
GRAPHS: Final = [
    Config(name="a diamond, whatever its branches come to", graph=DIAMOND, outcomes=("o", "or", "or", "or"), **ALONE),
    Config(name="a diamond, cancelled or past its deadline", graph=DIAMOND, outcomes=("o", "o", "o", "or"),
           verbs=(Verb.CANCEL,), requests=1, deadline=True, **ALONE),
    Config(name="a diamond, lost messages", graph=DIAMOND, outcomes=("o", "o", "or", "o"), loss=1, **ALONE),
    Config(name="two pairs, one after the other", graph=PAIRS, outcomes=("o", "or", "o", "or"), **ALONE),
    Config(name="two chains", graph=CHAINS, outcomes=("or", "o", "o", "o"), **ALONE),
    Config(name="a fan-out of two into a pivot", graph=NARROW, outcomes=("or", "o", "or"), **ALONE),
    Config(name="two steps at once, slow workers", graph=BOTH, outcomes=("or", "o"), zombies=1, processes=1),
    Config(name="two steps at once, processes die", graph=BOTH, outcomes=("orb", "ora"), service_crashes=1, workers=1),
    Config(name="two steps at once, cancelled", graph=BOTH, outcomes=("o", "or"), verbs=(Verb.CANCEL,),
           now=True, requests=1, **ALONE),
    Config(name="two steps at once, a hard deadline", graph=BOTH, outcomes=("o", "or"), deadline=True, hard=True,
           workers=1),
    Config(name="two steps undone at once, operators who say what they saw", graph=(*BOTH, do("c", ["a", "b"])),
           outcomes=("o", "o", "r"), undo="or", verbs=(Verb.SKIP,), seen=True, requests=1, **ALONE),
    Config(name="a wait beside a step, signalled, declined, cancelled", graph=BESIDE_A_WAIT, outcomes=("or", "", "or"),
           signals=("go", "-go"), verbs=(Verb.CANCEL,), now=True, requests=1, resend=1, **ALONE),
    Config(name="a wait beside a step, workers die and are slow", graph=BESIDE_A_WAIT, outcomes=("or", "", "o"),
           signals=("go",), processes=1, worker_crashes=1, zombies=1),
    Config(name="a wait behind the pivot, operators", graph=(do("p", **_PIVOT), _WAIT, do("c", **_LAST)),
           outcomes=("o", "", "o"), signals=("go", "-go"), verbs=ALL_VERBS, requests=1, **ALONE),
    Config(name="a bypassed branch, slow", graph=BYPASSED, outcomes=("o", "", "or", "or"), zombies=1, workers=1),
    Config(name="a signalled retry, declined, cancelled", graph=(do("a"), do("b", **_RETRIED)), outcomes=("o", "or"),
           signals=("go", "-go"), verbs=(Verb.CANCEL,), requests=1, **ALONE),
    Config(name="a signalled retry, cancelled, slow", graph=(do("a", **_RETRIED),), outcomes=("or",), signals=("go",),
           verbs=(Verb.CANCEL,), requests=1, zombies=1, workers=1),
    Config(name="a pivot with a signalled retry", graph=(do("a"), do("p", **_PIVOT, **_RETRIED)), outcomes=("o", "or"),
           signals=("go",), verbs=(Verb.CANCEL, Verb.SKIP), now=True, requests=1, **ALONE),
    Config(name="two steps parked behind the pivot, operators", outcomes=("o", "or", "or"), verbs=ALL_VERBS, now=True,
           graph=(do("p", **_PIVOT), do("b", **_LAST), do("c", ["p"], **_LAST)), seen=True, requests=1, **ALONE),
    Config(name="two steps at once, paused and resumed, cancelled", graph=BOTH, outcomes=("o", "or"), pauses=2,
           verbs=(Verb.CANCEL,), requests=1, **ALONE),
    Config(name="a signalled retry, paused and resumed", graph=(do("a"), do("b", **_RETRIED)), outcomes=("o", "or"),
           signals=("go",), pauses=2, **ALONE),
    Config(name="a start, cancelled or past its deadline", graph=BOTH, outcomes=("o", "or"), starts_later=True,
           verbs=(Verb.CANCEL,), requests=1, deadline=True, **ALONE),
]  # fmt: skip

_TWO: Final = step(attempts=2, compensation_attempts=2)

#: Takes minutes and gigabytes.
LONG: Final = [
    Config(name="long: two attempts each way, whatever the handlers come to", steps=(_TWO,), outcomes=("orbas",),
           undo="orba"),
    Config(name="long: all of them die", steps=(_TWO,), outcomes=("orb",), undo="ob", worker_crashes=1,
           service_crashes=1),
    Config(name="long: messages lost and twice", steps=(_TWO,), outcomes=("or",), undo="ob", loss=1, duplication=1),
    Config(name="long: slow and dying processes", steps=(_TWO,), outcomes=("orb",), zombies=1, service_crashes=1),
    Config(name="long: slow, tried again", steps=(replace(_TWO, retry_failed=True),), outcomes=("or",), zombies=1),
    Config(name="long: two steps, two attempts", steps=(step(attempts=2), step(attempts=2)), outcomes=("o", "or")),
    Config(name="long: two steps, all of them die", steps=(step(), step()), outcomes=("orb", "ora"), zombies=1,
           worker_crashes=1, service_crashes=1, loss=1),
    Config(name="long: two steps, operators twice", steps=(step(), step()), outcomes=("o", "or"), undo="or",
           verbs=ALL_VERBS, requests=2, resend=1, workers=1, processes=1),
    Config(name="long: three steps, the last one fails", steps=(step(), step(), step()), outcomes=("o", "o", "or"),
           loss=1, duplication=1, worker_crashes=1),
    Config(name="long: a fan-out of three into a pivot", graph=FAN, outcomes=("o", "o", "o", "or"), **ALONE),
    Config(name="long: a fan-out of three into a pivot, one refused", graph=FAN, outcomes=("o", "o", "or", "o"),
           **ALONE),
    Config(name="long: two steps at once, slow processes", graph=BOTH, outcomes=("or", "o"), zombies=1, workers=1),
    Config(name="long: two steps at once, two attempts each", graph=(do("a", [], attempts=2), do("b", [], attempts=2)),
           outcomes=("or", "o"), **ALONE),
    Config(name="long: two steps at once, cancelled, then now", graph=BOTH, outcomes=("o", "or"), verbs=(Verb.CANCEL,),
           now=True, requests=2, **ALONE),
    Config(name="long: a diamond, slow", graph=DIAMOND, outcomes=("o", "or", "o", "or"), zombies=1, workers=1),
    Config(name="long: two pairs, cancelled", graph=PAIRS, outcomes=("o", "or", "o", "or"), verbs=(Verb.CANCEL,),
           now=True, requests=1, **ALONE),
    Config(name="long: a fan-out of three into a pivot and on", graph=(*FAN, do("r", **_LAST)),
           outcomes=("o", "o", "or", "or", "o"), **ALONE),
    Config(name="long: two steps undone at once, operators", graph=(*BOTH, do("c", ["a", "b"])), undo="or", now=True,
           outcomes=("o", "o", "r"), verbs=(Verb.RETRY, Verb.SKIP, Verb.ABANDON), requests=1, **ALONE),
    Config(name="long: three steps of every kind", steps=(step(), replace(PIVOT, attempts=2), RETRIABLE),
           outcomes=("or", "orb", "or"), verbs=ALL_VERBS, requests=1, loss=1, workers=1, processes=1),
]  # fmt: skip

#: Each mistake, and a run of events in which it shows.
PLANTED: Final = [
    (Bug.NO_VERSION, Config(name="slow workers", steps=(step(attempts=2),), outcomes=("o",), zombies=1)),
    (Bug.EARLY_ACKNOWLEDGEMENT, Config(name="a worker dies", steps=(step(),), outcomes=("o",), worker_crashes=1)),
    (Bug.NO_DEDUPE, Config(name="sent twice", steps=(step(attempts=2),), outcomes=("or",), processes=1)),
    (Bug.NO_DEDUPE, Config(name="a naive handler", steps=(step(attempts=2),), outcomes=("o",), processes=1,
                           handler=Handler.NAIVE, loss=1)),
    (Bug.NEW_FOR_EVER, Config(name="a naive handler", steps=(step(attempts=2),), outcomes=("o",), processes=1,
                              handler=Handler.NAIVE, loss=1)),
    (Bug.NO_TOMBSTONE, Config(name="undone before it comes", steps=(step(),), outcomes=("o",))),
    (Bug.ATTEMPT_IN_KEY, Config(name="sent twice", steps=(step(attempts=2),), outcomes=("o",))),
    (Bug.TIMER_APART, Config(name="a worker dies", steps=(step(),), outcomes=("o",), worker_crashes=1)),
    (Bug.NEVER_READ_AGAIN, Config(name="a worker dies", steps=(step(),), outcomes=("o",), worker_crashes=1)),
    (Bug.SENT_AGAIN_UNKNOWN, Config(name="skipped", steps=(RETRIABLE, RETRIABLE), outcomes=("r", "r"), workers=1,
                                    processes=1, verbs=(Verb.SKIP,), requests=1, resend=1)),
    (Bug.LATE_OK_APPLIED, Config(name="two steps", steps=(step(attempts=2), step()), outcomes=("o", "o"))),
    (Bug.RECORD_APART, Config(name="a process dies", steps=(step(attempts=2),), outcomes=("or",), service_crashes=1)),
    (Bug.OVERRULED_NOT_UNDONE, Config(name="undone while it runs", steps=(step(),), outcomes=("o",))),
    (Bug.FAILED_UNDO_ANSWERED, Config(name="the undo fails", steps=(step(),), outcomes=("o",), undo="ob",
                                      service_crashes=1)),
    (Bug.DELIVERED_AGAIN_NOT_UNDONE, Config(name="a process dies", steps=(step(),), outcomes=("o",), workers=1,
                                            service_crashes=1)),
    (Bug.LATE_NOT_IN_DOUBT, Config(name="a process dies", steps=(step(attempts=2),), outcomes=("ors",), workers=1,
                                   service_crashes=1)),
    (Bug.RAISED_IS_FAILED, Config(name="raises after its effect", steps=(step(),), outcomes=("oa",), workers=1)),
    (Bug.SENT_TOO_EARLY, Config(name="two steps", steps=(step(), step()), outcomes=("o", "o"), workers=1)),
    (Bug.UNDONE_TOO_EARLY, Config(name="three steps, the last one fails", steps=(step(), step(), step()), workers=1,
                                  processes=1, outcomes=("o", "o", "r"))),
    (Bug.FAILED_IS_UNDONE, Config(name="rejected", steps=(step(),), outcomes=("r",), workers=1)),
    (Bug.ANSWERED_AGAIN, Config(name="answered twice", steps=(step(attempts=2), step()), outcomes=("o", "o"),
                                workers=1, duplication=1)),
    (Bug.CUT_OFF_IS_NOT_DONE, Config(name="cancelled now", steps=(step(),), outcomes=("o",), workers=1, now=True,
                                     verbs=(Verb.CANCEL,), requests=1)),
    (Bug.CUT_OFF_IS_NOT_DONE, Config(name="a hard deadline", steps=(step(),), outcomes=("o",), workers=1,
                                     deadline=True, hard=True)),
    (Bug.CUT_OFF_PIVOT_IS_NOT_DONE, Config(name="a pivot cancelled now", steps=(PIVOT,), outcomes=("o",), workers=1,
                                           now=True, verbs=(Verb.CANCEL,), requests=1)),
    (Bug.NOW_AT_A_PARKED_STEP, Config(name="a pivot cancelled now", steps=(PIVOT,), outcomes=("o",), workers=1,
                                      now=True, verbs=(Verb.CANCEL,), requests=1)),
    (Bug.CANCEL_IS_NOT_DONE, Config(name="a pivot in doubt", steps=(PIVOT,), outcomes=("o",), workers=1,
                                    verbs=(Verb.CANCEL,), requests=1)),
    (Bug.CANCEL_IS_NOT_DONE, Config(name="a retriable step in doubt", steps=(RETRIABLE,), outcomes=("o",), workers=1,
                                    verbs=(Verb.CANCEL,), requests=1)),
    (Bug.ANY_PARKED_STATE, Config(name="the undo is parked, and done after all", steps=(step(), step(), step()),
                                  undo="or", outcomes=("o", "o", "r"), workers=1, processes=1, verbs=(Verb.SKIP,),
                                  seen=True, requests=1)),
    (Bug.NOW_AT_AN_UNDO, Config(name="cancelled now, too late", steps=(step(), step()), outcomes=("o", "r"),
                                workers=1, now=True, verbs=(Verb.CANCEL,), requests=1)),
    (Bug.HARD_IS_SOFT, Config(name="a hard deadline", steps=(step(),), outcomes=("o",), workers=1, deadline=True,
                              hard=True)),
    (Bug.LATE_UNDO_SET_ASIDE, Config(name="the undo is skipped", steps=(step(), step()), outcomes=("o", "or"),
                                     verbs=(Verb.SKIP,), requests=1, workers=1, processes=1)),
    (Bug.PAUSE_FORGOTTEN, Config(name="paused and resumed", steps=(step(),), outcomes=("o",), pauses=2, **ALONE)),
    (Bug.UNDO_IN_A_PAUSE, Config(name="paused", steps=(step(), step()), outcomes=("o", "r"), pauses=1, **ALONE)),
    (Bug.UNKNOWN_IS_FAILED, Config(name="not answered", steps=(step(),), outcomes=("o",))),
    (Bug.UNDONE_BEFORE_OTHERS, Config(name="a diamond", graph=DIAMOND, outcomes=("o", "o", "o", "r"), **ALONE)),
    (Bug.SENT_AFTER_A_FAILURE, Config(name="two chains", graph=CHAINS, outcomes=("r", "o", "o", "o"), **ALONE)),
    (Bug.SIBLING_FORGOTTEN, Config(name="two steps at once", graph=BOTH, outcomes=("r", "o"), **ALONE)),
    (Bug.LAST_FAILURE_COUNTS, Config(name="two steps at once, one fails, cancelled", graph=BOTH, outcomes=("r", "o"),
                                     verbs=(Verb.CANCEL,), requests=1, **ALONE)),
    (Bug.RESOLVED_ANEW, Config(name="a step is skipped, and done after all", outcomes=("o", "o", "o"), **ALONE,
                               graph=(do("p", **_PIVOT), do("a", **_LAST),
                                      do("b", **_LAST | {"attempts": 2},
                                         params={"$ref": "/steps/a/result", "default": 0})),
                               verbs=(Verb.SKIP,), requests=1)),
    (Bug.BYPASSED_IS_UNDONE, Config(name="a bypassed branch", graph=BYPASSED, outcomes=("o", "", "o", "r"), **ALONE)),
    (Bug.SIGNAL_LOST, Config(name="signalled before the wait", graph=(do("a"), _WAIT), outcomes=("o", ""),
                             signals=("go",), **ALONE)),
    (Bug.SIGNAL_DROPPED, Config(name="a pivot, cancelled, and a wait", graph=(do("p", **_PIVOT), _WAIT),
                                outcomes=("o", ""), signals=("go",), verbs=(Verb.CANCEL,), requests=1, **ALONE)),
    (Bug.BESIDE_THE_PIVOT, Config(name="a step beside the pivot", graph=(do("a", []), do("p", [], **_PIVOT)),
                                  outcomes=("r", "o"), **ALONE)),
    (Bug.RETRY_IS_NOT_IN_DOUBT, Config(name="a failure that might be retried, cancelled, slow", workers=1,
                                       graph=(do("a", **_RETRIED),), outcomes=("or",), verbs=(Verb.CANCEL,),
                                       requests=1, zombies=1)),
]  # fmt: skip
