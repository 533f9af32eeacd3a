"""What a service is checked with, what a check makes of its outcome, and how that looks to a person."""

import unicodedata
from typing import Any, NoReturn, cast

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastream.errors import MalformedMessage
from sagastream_bridge.conformance import cases, command_checks, report, service_checks
from sagastream_bridge.conformance.effects import Effects
from sagastream_bridge.conformance.exchange import CheckError
from sagastream_bridge.conformance.promises import Check, Finding, Verdict
from sagastream_bridge.conformance.trial import Broken, Case, NotChecked, Trial

CHECKS = (*command_checks.CHECKS.all, *service_checks.CHECKS.all)


class _NoTrial:
    """Enough of a trial for a check that does nothing."""

    case = Case(command="Do", params=b"1")


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


@pytest.mark.parametrize(("named", "undo"), [("Other", "Other"), ("", None), (None, "Undo")])
def test_a_compensation_that_is_named_comes_before_the_published_one(named: str | None, undo: str | None) -> None:
    assert cases.one("Do", "1", None, named, {"Do": "Undo"}).compensation == undo


@pytest.mark.parametrize(
    ("published", "says"),
    [({}, "--command must name it: the service publishes none"), ({"B": None, "A": None}, "name one of A, B")],
)
def test_a_command_must_be_named_where_it_is_not_plain(published: dict[str, str | None], says: str) -> None:
    with pytest.raises(MalformedMessage, match=says):
        cases.one(None, "1", None, None, published)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"{", "not JSON"),
        (b"[]", "must be a JSON object"),
        (b"{}", "must be a JSON object"),
        (b'{"Do": 1}', "Do: params are missing"),
        (b'{"Do": {}}', "Do: params are missing"),
        (b'{"Do": {"params": 1, "x": 1}}', "Do has an unknown member 'x'"),
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
        ("echo 1; exit 7", "exit code 7"),
    ],
)
def test_a_probe_that_tells_no_number_is_an_error(shell: str, says: str) -> None:
    with pytest.raises(CheckError, match=says):
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
    assert list(map(click.unstyle, report.rows(a_finding(Verdict.BROKEN), 4))) == [
        "broken       late                            Do",
        "             promise   It is so.",
        "             expected  this",
        "             came      that",
        "             read      page",
    ]
    assert list(map(click.unstyle, report.rows(a_finding(Verdict.KEPT), 4))) == [
        "kept         late                            Do"
    ]


@given(NASTY, NASTY, st.sampled_from(Verdict))
def test_nothing_that_a_service_says_acts_on_a_terminal(expected: str, came: str, verdict: Verdict) -> None:
    found = a_finding(verdict, expected, came)
    for line in (report.line(found), *map(click.unstyle, report.rows(found, 2))):
        assert [c for c in line if unicodedata.category(c) in HARMFUL] == []


def test_the_summary_counts_what_there_is() -> None:
    assert report.summary("till", {"kept": 3, "broken": 1, "not checked": 0}) == (
        "service till: 3 kept, 1 broken, 0 not checked"
    )


def test_the_warning_says_whether_it_is_undone() -> None:
    undone = Case(command="Do", params=b"1", compensation="Undo")
    final = Case(command="Fly", params=b"1")
    assert "Do, Fly, more than" in report.warning("till", [undone, final], "redis://x")
    assert "undone again where it has a compensation" in report.warning("till", [undone], "redis://x")
    assert "NOT undone" in report.warning("till", [final], "redis://x")
