"""Why a saga waits that is a graph: each active step says its own."""

from typing import Any

from sagastream.core.causes import Cause, CauseKind, Place, Whereabouts
from sagastream.core.saga import SagaStatus
from sagastream.core.why import MOST_TOLD, headline, why
from support.graphs import NOW_MS, PIVOT, TRAVEL, Played, at_work


def kinds(causes: tuple[Cause, ...]) -> list[CauseKind]:
    return [cause.kind for cause in causes]


def test_each_step_that_is_out_says_why_and_which_it_is() -> None:
    saga = Played().saga
    place = Place(where=Whereabouts.UNREAD, added_ms=NOW_MS - 9_000, before=3)
    causes = why(saga, at_work("hotels"), {2: place})
    assert kinds(causes) == [CauseKind.NO_SERVICE, CauseKind.QUEUED]
    assert causes[0].text.startswith("step flight: no process of service flights is listening")
    assert causes[1].text.startswith("step hotel: queued for 9 s: commands before it: 3")
    assert [cause.facts["steps"] for cause in causes] == [[1], [2]]


def test_of_very_many_the_others_are_only_named() -> None:
    many: list[dict[str, Any]] = [
        {"transaction": "Do", "service": "hotels", "params": {}, "compensation": None, "after": []} for _ in range(13)
    ]
    causes = why(Played(*many).saga, at_work("hotels"))
    assert len(causes) == MOST_TOLD + 1
    assert causes[-1].text == "so do more steps: 11, 12, 13"
    assert causes[-1].facts["steps"] == [11, 12, 13]


def test_a_wait_names_its_signal_and_both_commands() -> None:
    played = Played().ok(1, {"id": "f1"}).ok(2).due(3_600_000)
    (cause,) = why(played.saga, at_work(now_ms=played.now_ms))
    assert cause.kind is CauseKind.AWAITS_SIGNAL
    assert cause.text == (
        "it waits for the signal approve; if none comes within 23 h, step 4 (approval) fails, and the saga goes back"
    )
    assert cause.do == (
        "sagastream signal trip-1 approve --payload JSON  # goes on, with that as the result of step 4 (approval)",
        "sagastream signal trip-1 approve --decline TEXT  # step 4 (approval) fails, and the saga goes back",
    )
    assert cause.facts == {"signal": "approve", "until_ms": NOW_MS + 86_400_000, "steps": [4]}


def test_a_wait_that_goes_on_without_its_signal_and_one_behind_the_pivot_say_so() -> None:
    goes_on: dict[str, Any] = {"wait": "extra", "timeout_ms": 1000, "on_timeout": "continue"}
    (first,) = why(Played(goes_on, PIVOT).saga, at_work())
    assert "if none comes within 1 s, it goes on without" in first.text
    (second,) = why(Played(PIVOT, {"wait": "extra", "timeout_ms": 1000}).ok(1).saga, at_work())
    assert "step 2 is parked" in second.text
    assert "step 2 is parked" in second.do[1]


def test_a_pause_says_how_long_it_takes() -> None:
    played = Played().ok(1, {"id": "f1"}).ok(2).signal("approve").ok(5)
    (cause,) = why(played.saga, at_work())
    assert (cause.kind, cause.text, cause.do) == (CauseKind.PAUSES, "it pauses for 60 s more", ())


def test_before_its_start_a_saga_says_when_that_is_and_that_nobody_would_begin_it() -> None:
    saga = Played(start_at_ms=NOW_MS + 7_200_000).saga
    (cause,) = why(saga, at_work())
    assert (cause.kind, cause.text) == (CauseKind.NOT_STARTED, "it begins in 2 h, as was asked for")
    assert kinds(why(saga, at_work(workers=()))) == [CauseKind.NO_WORKER, CauseKind.NOT_STARTED]
    assert kinds(why(saga, at_work(now_ms=NOW_MS + 7_300_000))) == [CauseKind.LATE]


def test_a_step_that_waits_for_a_retry_says_what_failed_and_both_commands() -> None:
    charge: dict[str, Any] = {"transaction": "Charge", "service": "payments", "params": {}, "compensation": None}
    played = Played(charge | {"retry_on": "topped_up", "retry_within_ms": 60_000}).failed(1, "no money")
    (cause,) = why(played.saga, at_work())
    assert cause.kind is CauseKind.AWAITS_RETRY
    assert cause.text.startswith("Charge failed: no money; it is sent again when the signal topped_up comes")
    assert cause.do == (
        "sagastream signal trip-1 topped_up  # sends it again, at most 20 times",
        "sagastream signal trip-1 topped_up --decline TEXT  # it has failed for good",
    )


def test_a_wait_whose_time_has_come_long_ago_is_late() -> None:
    played = Played().ok(1, {"id": "f1"}).ok(2)
    (cause,) = why(played.saga, at_work(now_ms=NOW_MS + 86_420_000))
    assert cause.kind is CauseKind.LATE
    assert "a worker should have seen to it 20 s ago" in cause.text


def test_a_saga_that_settles_says_for_which_answers_it_waits() -> None:
    played = Played().failed(1, "full")
    assert played.saga.cancelling is not None
    causes = why(played.saga, at_work("hotels"))
    assert kinds(causes) == [CauseKind.SETTLES, CauseKind.SENT]
    assert "it goes back as soon as what is out is answered or times out: step hotel" in causes[0].text
    assert causes[0].do[0].startswith("sagastream cancel trip-1 --now --reason TEXT")


def test_a_step_that_is_parked_beside_another_that_is_out_says_so_last_and_names_abandon_now() -> None:
    behind: list[dict[str, Any]] = [
        {"id": name, "transaction": name, "service": "mail", "params": {}, "kind": "retriable", "attempts": 1}
        | {"after": [1]}
        for name in ("Tell", "Write")
    ]
    played = Played(PIVOT, *behind).ok(1).failed(2, "bounced")
    causes = why(played.saga, at_work("mail"))
    assert kinds(causes) == [CauseKind.SENT, CauseKind.PARKED]
    retry, skip, abandon = causes[1].do
    assert retry.startswith("sagastream retry trip-1 --reason TEXT --parked-at 2/transaction/1  # send Tell again")
    assert skip.endswith("# go on as if step 2 (Tell) were done")
    assert abandon.startswith("sagastream abandon trip-1 --now --reason TEXT --parked-at 2/transaction/1")
    assert "these may be done all the same: 3" in abandon
    played.failed(3, "no ink")
    both = why(played.saga, at_work("mail"))
    assert kinds(both) == [CauseKind.PARKED, CauseKind.PARKED]
    assert both[0].do[0].startswith("sagastream retry trip-1 --step Tell --reason TEXT --parked-at 2/transaction/1")
    assert both[1].do[1].startswith("sagastream skip trip-1 --step Write --reason TEXT --parked-at 3/transaction/1")
    assert "--now" not in both[1].do[2]
    assert headline(both).count("bounced") == 1


def test_skipping_the_last_parked_step_ends_the_saga() -> None:
    wait: dict[str, Any] = {"wait": "sign", "timeout_ms": 1000}
    played = Played(PIVOT, wait).ok(1).signal("sign", decline="no")
    (cause,) = why(played.saga, at_work())
    assert cause.do[0].endswith("# wait for sign again")
    assert cause.do[1].endswith("# end COMPLETED as if step 2 were done")


TELL: dict[str, Any] = {"transaction": "Tell", "service": "mail", "kind": "retriable"}


def verbs(cause: Cause) -> list[str]:
    return [line.split()[1] for line in cause.do]


def test_a_step_that_cannot_be_begun_is_not_begun_by_a_retry() -> None:
    played = Played(PIVOT, TELL | {"params": {"$ref": "/steps/1/result/id"}}).ok(1, {})
    cause, nobody = why(played.saga, at_work())
    assert (cause.kind, nobody.kind) == (CauseKind.PARKED, CauseKind.NO_SERVICE)
    assert verbs(cause) == ["skip", "abandon"]
    assert cause.do[0].endswith(
        "# end COMPLETED as if step 2 were done; a retry would not help, since what it asks for stays missing"
    )


def test_a_wait_that_could_not_be_begun_since_it_was_declined_is_begun_again_by_retry() -> None:
    played = Played(PIVOT, {"wait": "sign", "timeout_ms": 1000}).signal("sign", decline="no").ok(1, {})
    (cause,) = why(played.saga, at_work())
    assert cause.do[0].endswith("# wait for sign again")


def test_an_undo_that_cannot_be_told_what_it_asks_for_is_not_helped_by_a_retry() -> None:
    do = {"service": "hotels", "params": {}, "compensation": "Undo", "attempts": 1}
    told = {"transaction": "A", "compensation_params": {"$ref": "/input/nope"}} | do
    played = Played(told, {"transaction": "B"} | do).ok(1).failed(2)
    (cause,) = why(played.saga, at_work())
    assert verbs(cause) == ["skip", "abandon"]
    assert "# go on as if step 1 were undone; a retry would not help" in cause.do[0]


def test_who_skips_a_step_is_told_which_steps_need_its_result() -> None:
    sign: dict[str, Any] = {"id": "sign", "wait": "sign", "timeout_ms": 1000}
    needs = TELL | {"id": "needs", "params": {"by": {"$ref": "/steps/sign/result/by"}}}
    also = TELL | {"params": {"by": {"$ref": "/steps/2/result/by"}}, "after": ["sign"]}
    asks = {"params": {"by": {"$ref": "/steps/sign/result/by", "default": None}}, "after": ["sign"]}
    when = {"when": {"exists": {"$ref": "/steps/sign/result/by"}}}
    played = Played(PIVOT, sign, needs, also, TELL | asks | when).ok(1, {}).signal("sign", decline="no")
    (cause,) = why(played.saga, at_work())
    assert verbs(cause) == ["retry", "skip", "abandon"]
    assert cause.do[1].endswith(
        "# go on as if step 2 (sign) were done; then these cannot begin, since they ask for its result: 3 (needs), 4"
    )


def test_while_several_steps_are_undone_each_says_why() -> None:
    played = Played(*TRAVEL[:2]).ok(1, {"id": "f1"}).ok(2, {"id": "h1"})
    assert played.saga.status is SagaStatus.COMPLETED
    played = Played().ok(1, {"id": "f1"}).ok(2, {"id": "h1"}).signal("approve", decline="too dear")
    causes = why(played.saga, at_work("flights"))
    assert played.commands[-2:] == ["CancelHotel", "CancelFlight"]
    assert causes[0].text.startswith("step flight: service flights has not answered CancelFlight")
    assert causes[1].text.startswith("step hotel: no process of service hotels is listening")


def test_a_broker_that_takes_no_writes_is_said_once_and_what_is_parked_besides() -> None:
    full = Cause(kind=CauseKind.BROKER_FULL, text="the broker is full")
    assert why(Played().saga, at_work(broker=(full,))) == (full,)


def test_what_would_stay_after_an_abandon_is_not_what_was_undone() -> None:
    do = {"service": "hotels", "params": {}, "compensation": "Undo", "attempts": 1, "compensation_attempts": 1}
    steps: list[dict[str, Any]] = [{"transaction": name, **do} for name in ("A", "B")]
    played = Played(steps[0], {"wait_ms": 1000}, steps[1]).ok(1).due().due()  # nobody knows whether step 3 was done …
    played.ok(3).failed(1)  # … it is undone; step 1 is not
    assert [str(step.phase) for step in played.saga.steps] == ["UNDO_PARKED", "COMPLETED", "COMPENSATED"]
    (cause,) = why(played.saga, at_work("hotels"))
    (abandon,) = [line for line in cause.do if "abandon" in line]
    assert abandon.endswith("# end ABORTED as it is; what these steps did stays: 1")
