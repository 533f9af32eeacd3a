"""The phases of a step, and every change from one to another."""

from sagastream.core.phases import (
    ACTIVE,
    AWAITS,
    BACKING_OFF,
    DONE,
    IN_FLIGHT,
    LEFT_ALONE,
    STEP,
    TO_UNDO,
    UNDO,
    Phase,
)

#: These are only noted.
NOTED = ("done too late", "undone too late")
#: No change leads on from these, except that a late answer is noted.
LAST = {Phase.BYPASSED, Phase.FAILED, Phase.SKIPPED, Phase.COMPENSATED, Phase.UNDO_SKIPPED}


def edges() -> list[tuple[Phase, str, Phase]]:
    return [(before, happening, after) for (before, happening), after in STEP.items()]


def test_every_phase_can_be_reached_and_all_but_the_last_lead_on() -> None:
    reached, new = set(), {Phase.WAITING}
    while new:
        reached |= new
        new = {after for before, _, after in edges() if before in reached} - reached
    assert reached == set(Phase)
    assert {before for before, happening, _ in edges() if happening not in NOTED} == set(Phase) - LAST


def test_what_is_heard_too_late_moves_nothing_and_happens_to_no_step_that_is_awaited_or_completed() -> None:
    told = {before: after for before, happening, after in edges() if happening == "done too late"}
    assert all(before is after for before, after in told.items())
    never = {Phase.WAITING, Phase.BYPASSED, Phase.COMPLETED, Phase.FAILED}
    assert set(told) == (set(Phase) - ACTIVE - never) | UNDO


def test_an_undo_that_is_heard_of_too_late_moves_nothing_and_happens_to_a_step_whose_undo_was_left() -> None:
    told = {before: after for before, happening, after in edges() if happening == "undone too late"}
    assert all(before is after for before, after in told.items())
    assert set(told) == {after for before, _, after in edges() if before is Phase.UNDO_PARKED} - UNDO - {
        Phase.COMPENSATED
    }


def test_nothing_that_surely_has_no_effect_is_undone() -> None:
    begun = {before for before, happening, after in edges() if after in UNDO and before not in UNDO}
    assert begun == {Phase.COMPLETED, Phase.IN_DOUBT}
    assert begun | UNDO == TO_UNDO


def test_a_step_that_is_being_undone_never_goes_forward_again() -> None:
    back = UNDO | {Phase.COMPENSATED, Phase.UNDO_SKIPPED}
    assert {after for before, _, after in edges() if before in back} == back | {Phase.COMPLETED, Phase.IN_DOUBT}
    forward = {Phase.WAITING, Phase.OUT, Phase.BACKING_OFF, Phase.PARKED, *AWAITS}
    assert {before for before, _, after in edges() if after in forward} <= forward


def test_a_step_is_bypassed_before_anything_happens_to_it_and_nothing_happens_to_it_after_that() -> None:
    assert [edge for edge in edges() if Phase.BYPASSED in edge] == [(Phase.WAITING, "bypassed", Phase.BYPASSED)]


def test_a_step_that_sends_nothing_never_has_a_command_out() -> None:
    after = {after for before, _, after in edges() if before is Phase.AWAITING}
    assert after == {Phase.COMPLETED, Phase.FAILED, Phase.PARKED}
    assert [before for before, _, after in edges() if after is Phase.AWAITING] == [Phase.WAITING]


def test_a_retry_is_awaited_after_a_command_has_failed_and_leaves_its_outcome_open() -> None:
    """Its service has recorded no failure, so another delivery may still do it: it is never certain that it failed."""
    assert [before for before, _, after in edges() if after is Phase.RETRY_AWAITED] == [Phase.OUT]
    after = {after for before, _, after in edges() if before is Phase.RETRY_AWAITED}
    assert after == {Phase.OUT, Phase.BACKING_OFF, Phase.COMPLETED, Phase.IN_DOUBT, Phase.PARKED}


def test_only_a_command_that_is_out_can_fail_and_only_a_parked_step_is_skipped() -> None:
    failing = {before for before, happening, _ in edges() if happening in ("attempt failed", "undo attempt failed")}
    assert failing == IN_FLIGHT
    skipped = {before for before, _, after in edges() if after in LEFT_ALONE and before not in LEFT_ALONE}
    assert skipped == {Phase.PARKED, Phase.UNDO_PARKED}


def test_the_sets_of_phases_share_what_they_should() -> None:
    assert not IN_FLIGHT & BACKING_OFF
    assert not AWAITS & (IN_FLIGHT | BACKING_OFF | UNDO)
    assert {Phase.PARKED, Phase.UNDO_PARKED} == ACTIVE - IN_FLIGHT - BACKING_OFF - AWAITS
    assert UNDO < ACTIVE
    assert not DONE & ACTIVE
    assert {Phase.UNDO_SKIPPED} == LEFT_ALONE - DONE
