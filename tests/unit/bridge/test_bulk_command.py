"""What the command line says of many sagas before it asks the broker; and how bulks are shown."""

import json

import pytest
from click.testing import CliRunner

from sagastream.core.bulks import Ask, Bulk, BulkResult, BulkState
from sagastream.core.filtering import Filter
from sagastream.core.messages import Verb
from sagastream.store.bulks import told
from sagastream.store.operations import Operation
from sagastream_bridge.commands.main import cli
from sagastream_bridge.inspection import bulk_views

BULK = Bulk(
    bulk_id="0123456789ab",
    verb=Verb.ABANDON,
    filter=Filter(where=(("customer", "c\x1b[2J"),), parked="bank/Pay"),
    reason="<b>\x1b[2J",
    actor="a\nb",
    now=True,
    state=BulkState.RUNNING,
    begun_ms=1_000,
    updated_ms=61_000,
    total=10,
    found=5,
    asked=5,
    done=1,
    refused=2,
    open=(Ask(saga_id="s1"), Ask(saga_id="s2")),
)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("retry",), "name a saga, or say with a search which ones are meant"),
        (("retry", "s1", "--status", "parked"), "not both"),
        (("retry", "--status", "completed", "--yes"), "a saga that has ended, COMPLETED, takes no retry"),
        (("cancel", "--status", "compensating", "--yes"), "is undone already, and takes no cancel"),
        (("skip", "--status", "parked", "--step", "2"), "--parked-at and --step are for one saga"),
        (("cancel", "s1", "--yes"), "--yes and --rate are for many sagas"),
        (("cancel", "s1", "--rate", "5"), "--yes and --rate are for many sagas"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_does_not_go_together_is_wrong_usage(arguments: tuple[str, ...], told: str) -> None:
    done = CliRunner().invoke(cli, [*arguments, "--reason", "r"])
    assert (done.exit_code, told in done.output) == (2, True), done.output
    assert done.output.startswith("Error: ")  # the usage says nothing of what goes together


@pytest.mark.parametrize(
    "line",
    [
        "skip s1 --parked-at 1/compensation/0 --reason",
        "cancel s1 --now --reason",
        "pause till --reason",
        "erase s1 --reason",
        "bulk b1 --pause --reason",
        "quarantine drop 1-1 --reason",
        "drop-commands till --reason",
        "signal s1 approve --decline",
    ],
)
def test_a_line_that_was_copied_as_it_is_printed_does_nothing(line: str) -> None:
    """It would be done, and nobody could tell later why."""
    done = CliRunner().invoke(cli, [*line.split(), "TEXT"])
    option = line.rpartition(" ")[2]
    assert (done.exit_code, done.output) == (2, f"Error: {option}: write your own words in place of TEXT\n")


def test_a_verb_about_a_bulk_needs_its_id() -> None:
    done = CliRunner().invoke(cli, ["bulk", "--stop"])
    assert (done.exit_code, "--stop needs the ID of a bulk" in done.output) == (2, True)


def test_an_empty_reason_is_named_as_the_option() -> None:
    done = CliRunner().invoke(cli, ["retry", "--status", "parked", "--reason", " "])
    assert (done.exit_code, "--reason must be a text" in done.output) == (2, True)


def test_a_search_is_told_after_what_is_searched() -> None:
    assert told(Filter(parked="bank/Pay")) == "status PARKED, parked at bank/Pay"
    wanted = Filter(status="PARKED", older_ms=5_400_000, newer_ms=172_800_000, where=(("customer", "c42"),))
    assert told(wanted) == "customer=c42, status PARKED, older 90m, newer 2d"
    assert told(Filter(older_ms=1_500)) == "older 1500ms"


def test_a_bulk_is_shown_without_what_a_terminal_could_act_on() -> None:
    refused = [BulkResult(saga_id=f"s{number}", refused=f"not \x1b{number}") for number in range(5)]
    rows = [bulk_views.row(BULK, 121_000), *bulk_views.lines(BULK, refused, 2, 121_000)]
    progress = "1 taken, 2 refused, 2 not answered yet; 5 found of 10 or more"
    assert rows == [
        rf"0123456789ab  RUNNING    2 m  abandon: {progress} by a\nb: <b>\x1b[2J",
        "bulk     0123456789ab  RUNNING",
        r"asks     abandon now of sagas with customer=c\x1b[2J, status PARKED, parked at bank/Pay",
        r"reason   <b>\x1b[2J",
        r"by       a\nb",
        "begun    1970-01-01T00:00:01.000Z  (2 m ago)",
        f"so far   {progress}; at most 200 a second",
        "moved    1970-01-01T00:01:01.000Z  (60 s ago)",
        "refused, the newest 2 of 5:",
        r"  s3  not \x1b3",
        r"  s4  not \x1b4",
    ]
    turns = [
        Operation(verb="bulk pause", what=BULK.bulk_id, at_ms=5_000, actor="b\x1b", reason="too\nfast"),
        Operation(verb="bulk resume", what=BULK.bulk_id, at_ms=9_000),
    ]
    assert list(bulk_views.lines(BULK, (), 2, 121_000, turns))[5:7] == [
        r"paused   1970-01-01T00:00:05.000Z  by b\x1b: too\nfast",
        "resumed  1970-01-01T00:00:09.000Z  by somebody",
    ]
    assert json.loads(bulk_views.as_json(BULK, turns))["turns"] == [
        {"verb": "pause", "at": "1970-01-01T00:00:05.000Z", "actor": "b\x1b", "reason": "too\nfast"},
        {"verb": "resume", "at": "1970-01-01T00:00:09.000Z", "actor": "", "reason": ""},
    ]
    parked = [f"p{number}\x1b" for number in range(6)]
    assert list(bulk_views.lines(BULK, (), 2, 121_000, parked_now=parked))[6] == (
        r"parked   6 of those that took it are parked now: p0\x1b, p1\x1b, p2\x1b, p3\x1b, p4\x1b …"
    )
    assert json.loads(bulk_views.as_json(BULK, turns, parked))["parked_now"] == 6
    said = json.loads(bulk_views.as_json(BULK))
    assert said["filter"] == {"where": {"customer": "c\x1b[2J"}, "parked": "bank/Pay"}
    assert (said["state"], said["verb"], said["open"], said["ended_at"]) == ("RUNNING", "abandon", ["s1", "s2"], None)
    assert "\x1b" not in bulk_views.as_json(BULK) + bulk_views.result_as_json(refused[0])
