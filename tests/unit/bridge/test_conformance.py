"""The checks of a service, what they make of an outcome, and how that looks to a person."""

import unicodedata
from typing import Any, NoReturn, cast

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastream.errors import MalformedMessage
from sagastream_bridge.conformance import cases, command_checks, report, service_checks
from sagastream_bridge.conformance.effects import Effects
from sagastream_bridge.conformance.exchange import Unfit
from sagastream_bridge.conformance.promises import Check, Finding, Verdict
from sagastream_bridge.conformance.trial import Broken, Case, NotChecked, Trial

CHECKS = (*command_checks.CHECKS.all, *service_checks.CHECKS.all)


class _NoTrial:
    """As much of a trial as a check needs that does nothing."""

    case = Case(command="Do", params=b"1")
    is_uncounted = False


TRIAL = cast("Trial", _NoTrial())


def a_check(run: Any) -> Check:
    return Check(name="x", promise="It does.", run=run, section="the-messages")


def raising(error: Exception) -> Any:
    def run(_: Trial) -> NoReturn:
        raise error

    return run


# --- checks


def test_a_check_that_returns_found_the_promise_kept() -> None:
    found = a_check(lambda _: "this").put_to(TRIAL)
    assert (found.verdict, found.command, found.came) == (Verdict.KEPT, "Do", "this")
    assert found.read_on == "docs/protocol.md#the-messages"


def test_what_would_have_been_counted_is_kept_as_far_as_replies_show() -> None:
    uncounted = _NoTrial()
    uncounted.is_uncounted = True
    found = a_check(lambda _: "this").put_to(cast("Trial", uncounted))
    assert (found.verdict, found.only) == (Verdict.KEPT, "as far as its replies show")
    assert report.line(found) == "kept: x, Do: only as far as its replies show"


def test_a_broken_promise_has_what_was_expected_and_what_came() -> None:
    found = a_check(raising(Broken("this", "that"))).put_to(TRIAL)
    assert (found.verdict, found.expected, found.came) == (Verdict.BROKEN, "this", "that")


def test_what_was_not_checked_has_the_reason() -> None:
    found = a_check(raising(NotChecked("no params"))).put_to(TRIAL)
    assert (found.verdict, found.expected, found.came) == (Verdict.NOT_CHECKED, "", "no params")


def test_every_check_has_a_name_of_its_own_and_rests_on_earlier_ones() -> None:
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    for place, check in enumerate(CHECKS):
        assert set(check.needs) <= set(names[:place]), check.name


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_every_promise_is_one_sentence(check: Check) -> None:
    assert check.promise[0].isupper()
    assert check.promise.endswith(".")
    assert ". " not in check.promise
    assert check.section


# --- cases


def test_of_a_service_with_one_command_that_is_tried() -> None:
    found = cases.one(None, '{"a":1}', None, None, {"Do": "Undo"})
    assert found == Case(command="Do", params=b'{"a":1}', compensation="Undo")


def test_params_that_are_not_given_are_null() -> None:
    assert cases.one("Do", None, "[]", None, {"Do": None, "Fly": None}) == Case(
        command="Do", params=b"null", rejected_params=b"[]"
    )


@pytest.mark.parametrize(
    ("named", "published", "undo"),
    [("Undo", None, "Undo"), ("Undo", "Undo", "Undo"), ("", "Undo", None), (None, "Undo", "Undo")],
)
def test_a_compensation_is_published_or_named(named: str | None, published: str | None, undo: str | None) -> None:
    assert cases.one("Do", "1", None, named, {"Do": published}).compensation == undo


@pytest.mark.parametrize(
    ("command", "compensation", "says"),
    [
        ("Dew", None, "the service publishes no command Dew, but Do, Fly"),
        ("Do", "Undew", "Do is undone by Undo, as the service publishes it, not by Undew"),
    ],
)
def test_a_name_that_the_service_does_not_publish_is_refused(command: str, compensation: str | None, says: str) -> None:
    with pytest.raises(MalformedMessage, match=says):
        cases.one(command, "1", None, compensation, {"Do": "Undo", "Fly": None})


def test_a_command_must_be_named_where_it_is_not_plain() -> None:
    with pytest.raises(MalformedMessage, match="--command must name one of A, B"):
        cases.one(None, "1", None, None, {"B": None, "A": None})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"{", "not JSON"),
        (b"[]", "must be a JSON object"),
        (b"{}", "must be a JSON object"),
        (b'{"Do": 1}', "Do: params are missing"),
        (b'{"Do": {}}', "Do: params are missing"),
        (b'{"Do": {"params": 1, "x": 1}}', "Do has an unknown member 'x'"),
        (b'{"Do": {"parms": 1}}', "Do has an unknown member 'parms'"),
        (b'{"D o": {"params": 1}}', "'D o' cannot be the name of a command"),
        (b'{"Do": {"params": 1, "compensation": 7}}', "Do: compensation must be a name, or null"),
    ],
)
def test_cases_that_make_no_sense_are_refused(text: bytes, says: str) -> None:
    with pytest.raises(MalformedMessage, match=says):
        cases.read(text, {})


def test_an_option_that_is_no_json_is_named() -> None:
    with pytest.raises(MalformedMessage, match=r"^--rejected-params: not JSON: "):
        cases.one("Do", "1", "{", None, {})


# --- effects


def test_the_probe_is_told_the_saga() -> None:
    assert Effects('test "$SAGA_ID" = s1 && echo " 7 "').count("s1") == 7


@pytest.mark.parametrize(
    ("shell", "says"),
    [
        ("echo many", "must print one whole number; it printed 'many'"),
        ("true", "it printed ''"),
        ("printf '\\033[2J'", r"it printed '\\x1b\[2J'"),
        ("printf '\\377'", "it printed"),
        ("echo 0; exit 1", "ended with exit code 1 and said '0'; a command that counts ends with 0: add `; true`"),
    ],
)
def test_a_probe_that_tells_no_number_is_an_error(shell: str, says: str) -> None:
    with pytest.raises(Unfit, match=says):
        Effects(shell).count("s1")


# --- how it looks

NASTY = st.text(st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp"]) | st.sampled_from("[2J31m;ab"), max_size=12)
HARMFUL = ("Cc", "Cf", "Cs", "Zl", "Zp")


def a_finding(verdict: Verdict, expected: str = "this", came: str = "that") -> Finding:
    return Finding(
        check="late", command="Do", promise="It is so.", verdict=verdict, expected=expected, came=came, read_on="page"
    )


def test_lines_say_what_there_is_to_know() -> None:
    assert report.line(a_finding(Verdict.KEPT)) == "kept: late, Do"
    assert report.line(a_finding(Verdict.NOT_CHECKED)) == "not checked: late, Do: because that"
    assert (
        report.line(a_finding(Verdict.BROKEN))
        == "broken: late, Do: promise It is so.; expected this; came that; read page"
    )


def test_rows_stand_below_each_other() -> None:
    assert list(map(click.unstyle, report.rows(a_finding(Verdict.BROKEN), 4, 80))) == [
        "broken       late                            Do",
        "             promise   It is so.",
        "             expected  this",
        "             came      that",
        "             read      page",
    ]
    assert list(map(click.unstyle, report.rows(a_finding(Verdict.KEPT), 4, 80))) == [
        "kept         late                            Do"
    ]


def test_what_is_too_long_for_the_terminal_goes_on_below_where_it_began() -> None:
    found = a_finding(Verdict.NOT_CHECKED, came="one two three " * 10)
    _, first, *more = report.rows(found, 2, 60)
    assert first == " " * 13 + "because   one two three one two three one two"
    assert more[0] == " " * 23 + "three one two three one two three"
    assert {len(row) < 60 for row in (first, *more)} == {True}


def test_what_was_not_checked_for_one_reason_is_told_together() -> None:
    kept, silent = a_finding(Verdict.KEPT), a_finding(Verdict.NOT_CHECKED, came="it is silent")
    other = a_finding(Verdict.NOT_CHECKED, came="no params")
    groups = list(report.grouped([kept, kept, other, silent, silent, silent, kept]))
    assert groups == [[kept], [kept], [other], [silent] * 3, [kept]]
    assert report.line(report.as_one(groups[3])) == "not checked: late and 2 more, Do: because it is silent"
    assert report.as_one(groups[2]) == other


@given(NASTY, NASTY, st.sampled_from(Verdict))
def test_nothing_that_a_service_says_acts_on_a_terminal(expected: str, came: str, verdict: Verdict) -> None:
    found = a_finding(verdict, expected, came)
    for line in (report.line(found), *map(click.unstyle, report.rows(found, 2, 80))):
        assert [c for c in line if unicodedata.category(c) in HARMFUL] == []


def test_the_summary_counts_what_there_is() -> None:
    assert report.summary("till", {"kept": 3, "broken": 1, "not checked": 0}) == (
        "service till: 3 kept, 1 broken, 0 not checked"
    )


def test_the_warning_says_whether_it_is_undone() -> None:
    undone = Case(command="Do", params=b"1", compensation="Undo")
    final = Case(command="Fly", params=b"1")
    assert "commands (Do, Fly) to the service till at redis://x" in report.warning("till", [undone, final], "redis://x")
    assert "does them for real and undoes them if it can" in report.warning("till", [undone], "redis://x")
    assert "does them for real and does NOT undo them" in report.warning("till", [final], "redis://x")
