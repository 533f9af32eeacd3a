"""What a dashboard draws, counts and offers, without a store."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence

import pytest

from sagastream.core.causes import Cause, CauseKind
from sagastream.core.filtering import Filter
from sagastream.core.history import history
from sagastream.core.history_events import HistoryKind
from sagastream.core.journal import JOURNAL_BYTES
from sagastream.core.phases import Phase
from sagastream.core.saga import SagaState
from sagastream.errors import MalformedMessage
from sagastream_bridge.dashboard import charts, graph_drawing, timeline
from sagastream_bridge.dashboard.finding import Search, WrongSearch
from sagastream_bridge.dashboard.offers import offers
from sagastream_bridge.dashboard.rates import KEPT, STRETCH_MS, Rates, What
from sagastream_bridge.dashboard.recent import of
from sagastream_bridge.dashboard.wording import (
    EVENT_TONES,
    FOLDER,
    PHASE_TONES,
    Lines,
    command,
    environment,
    pretty,
    size,
)
from sagastream_bridge.definitions.drawing import Form, Node
from support.graph_stories import Verb, do, given_graph
from support.stories import BEGUN_MS, CHARGE, RESERVE, given_saga

SVG = "{http://www.w3.org/2000/svg}"


def parsed(svg: str) -> ET.Element:
    """A drawing is well-formed, whatever stands in it."""
    return ET.fromstring(svg)


def texts(svg: str) -> list[str]:
    return ["".join(one.itertext()) for one in parsed(svg).iter("text")]


# --- rates


def test_what_happened_is_counted_by_stretches_of_time() -> None:
    rates, now = Rates(), 1_000 * STRETCH_MS
    rates.count([(now, What.COMPLETED), (now + 1, What.COMPLETED), (now - STRETCH_MS, What.PARKED)])
    stretches = rates.stretches(now)
    assert len(stretches) == KEPT
    assert stretches[-1].counts == {"completed": 2, "aborted": 0, "parked": 0}
    assert stretches[-2].counts["parked"] == 1
    assert sum(one.total for one in stretches) == 3
    assert rates.a_minute(now) == {
        "completed": 0,
        "aborted": 0,
        "parked": 1,
    }  # the stretch that goes on is no part of it


def test_what_is_too_old_is_forgotten() -> None:
    rates = Rates()
    rates.count([(0, What.ABORTED)])
    rates.count([(KEPT * STRETCH_MS, What.COMPLETED)])
    assert rates.stretches((KEPT - 1) * STRETCH_MS)[0].total == 0
    assert len(rates._counts) == 1


@pytest.mark.parametrize(("most", "top"), [(0, 0.1), (0.1, 0.1), (0.7, 1), (3, 5), (12, 20), (999, 1000)])
def test_the_top_of_an_axis_is_a_round_number(most: float, top: float) -> None:
    assert charts.top(most) == top


def test_a_chart_tells_in_words_what_it_shows() -> None:
    rates, now = Rates(), 100_000 * STRETCH_MS
    rates.count([(now, What.COMPLETED), (now, What.PARKED)])
    drawn = parsed(charts.rates(rates.stretches(now), charts.WIDE))
    assert drawn.get("aria-label") == "The last 15 minutes: 1 completed, 0 aborted, 1 parked"
    assert [one.get("class") for one in drawn.iter("rect")] == ["bar-completed", "bar-parked"]


# --- graphs


def paths(nodes: Sequence[Node]) -> list[str]:
    drawn = parsed(graph_drawing.svg(nodes, {}, "it"))
    return [str(one.get("d")) for one in drawn.iter("path") if one.get("class") == "lane"]


def test_a_chain_is_one_lane_without_loose_ends() -> None:
    nodes = [Node(1, "a", ()), Node(2, "b", (1,)), Node(3, "c", (2,))]
    assert paths(nodes) == ["M14 15v15", "M14 30v15", "M14 45v15", "M14 60v15"]


def test_two_branches_have_lanes_that_meet_again() -> None:
    nodes = [Node(1, "a", ()), Node(2, "b", (1,)), Node(3, "c", (1,)), Node(4, "d", (2, 3))]
    drawn = parsed(graph_drawing.svg(nodes, {2: "bad"}, "it"))
    assert [one.get("cx") for one in drawn.iter("circle")] == ["14", "14", "32", "14"]
    assert [one.get("class") for one in drawn.iter("g")] == [
        "node tone-idle",
        "node tone-bad",
        "node tone-idle",
        "node tone-idle",
    ]
    assert drawn.get("aria-label") == "it: 4 steps; they are listed below"


def test_what_stands_in_a_graph_is_text_and_nothing_else() -> None:
    hostile = '"><script>alert(1)</script>'
    svg = graph_drawing.svg([Node(1, hostile, (), hostile, Form.PIVOT)], {1: hostile}, hostile)
    assert not list(parsed(svg).iter("script"))
    assert hostile in texts(svg)


def a_saga() -> SagaState:
    """Two steps are done, of which one is being undone; the third has failed."""
    story = given_graph(do("a"), do("b"), do("c")).when("A_ok", 1).when("B_ok", 2).when("C_failed", 3)
    return story.saga


def test_a_timeline_has_a_bar_for_each_command() -> None:
    state = a_saga()
    drawn = parsed(timeline.svg(state, history(state), BEGUN_MS + 60_000))
    tones = [one.get("class") for one in drawn.iter("g")]
    assert tones == ["bar tone-ok", "bar tone-ok", "bar tone-back goes-on", "bar tone-bad"]


def test_an_undo_has_a_line_of_its_own_in_a_timeline() -> None:
    """A red bar of an undo that has failed would hide that the step was done."""
    steps = do("a", compensation_attempts=1), do("b")
    story = given_graph(*steps, journal_bytes=JOURNAL_BYTES).when("A_ok", 1).when("B_failed", 2)
    story.when("UnA_failed", 1, after_ms=86_400_000).when_asked(Verb.SKIP)
    assert story.saga.ended
    drawn = timeline.svg(story.saga, history(story.saga), story.now_ms)
    bars = [(bar.get("class"), [rect.get("y") for rect in bar.iter("rect")]) for bar in parsed(drawn).iter("g")]
    assert bars == [("bar tone-ok", ["29"]), ("bar tone-bad", ["53"]), ("bar tone-bad", ["77"])]
    assert [one for one in texts(drawn) if "·" in one or "undo" in one] == ["a · A", "undo: UnA", "b · B"]


@pytest.mark.parametrize(
    ("span_ms", "marks"),
    [
        (1, ["+0", "+1 ms"]),
        (318, ["+0", "+100 ms", "+200 ms", "+300 ms"]),
        (8_500, ["+0", "+2 s", "+4 s", "+6 s", "+8 s"]),
        (62_000, ["+0", "+15 s", "+30 s", "+45 s", "+1 m"]),
        (50 * 60_000, ["+0", "+10 m", "+20 m", "+30 m", "+40 m", "+50 m"]),
        (90 * 86_400_000, ["+0", "+20 d", "+40 d", "+60 d", "+80 d"]),
    ],
)
def test_the_marks_of_a_timeline_are_round_numbers(span_ms: int, marks: list[str]) -> None:
    story = given_graph(do("a", timeout_ms=86_400_000)).when("A_ok", 1, after_ms=span_ms)
    assert [one for one in texts(timeline.svg(story.saga, history(story.saga), BEGUN_MS)) if one[0] == "+"] == marks


def test_a_cause_does_not_repeat_the_word_for_its_kind() -> None:
    for text, said in {
        "running: Ship has run for 8 s": "Ship has run for 8 s",
        "step ship: running: Ship has run for 8 s": "step ship: Ship has run for 8 s",
        "running for 8 s: Ship": "for 8 s: Ship",
        "step running: no answer": "step running: no answer",
        "Ship is not running: it hangs": "Ship is not running: it hangs",
    }.items():
        template = environment({"version": ""}).from_string("{{ one | kind }}|{{ one | beside_kind }}")
        assert template.render(one=Cause(kind=CauseKind.RUNNING, text=text)) == f"running|{said}"


def test_a_timeline_names_steps_that_have_names() -> None:
    state = a_saga()
    named = texts(timeline.svg(state, history(state), BEGUN_MS + 60_000))
    assert [one for one in named if "·" in one] == ["a · A", "b · B", "c · C"]
    plain = given_saga(RESERVE).saga
    assert "ReserveInventory" in texts(timeline.svg(plain, history(plain), BEGUN_MS + 60_000))


def test_a_timeline_shows_for_how_long_a_step_was_held() -> None:
    story = given_saga(RESERVE, CHARGE, journal_bytes=JOURNAL_BYTES, paused=frozenset({"inventory"}))
    story.when_resumed().when_paused("payment").when("ReserveInventory_ok", 1)
    drawn = parsed(timeline.svg(story.saga, history(story.saga), BEGUN_MS + 60_000))
    assert [one.get("class") for one in drawn.iter("g")] == ["bar tone-idle", "bar tone-ok", "bar tone-idle goes-on"]
    titles = [one.text or "" for one in drawn.iter() if one.tag.endswith("title")]
    assert titles[0] == "ReserveInventory held: it is paused"
    assert titles[2].startswith("ChargePayment held: it is paused; it has taken 58 s so far")


def test_a_held_saga_offers_to_resume_each_pause() -> None:
    state = a_saga()
    do_ = ("sagastream resume depot --reason TEXT  # sends", "sagastream resume depot Unpack --reason TEXT  # sends")
    found = offers(state, [Cause(kind=CauseKind.PAUSED, text="", do=do_)])
    assert [(one.title, one.service, one.command) for one in found] == [
        ("Resume depot", "depot", ""),
        ("Resume Unpack of depot", "depot", "Unpack"),
    ]
    assert len({one.key for one in found}) == 2


def test_a_saga_that_has_sent_nothing_has_no_timeline() -> None:
    later = given_graph(do("a"), start_at_ms=BEGUN_MS + 10_000).saga
    assert timeline.svg(later, history(later), BEGUN_MS) == ""


# --- offers


def test_a_page_offers_what_the_core_advises() -> None:
    state = a_saga()
    do = (
        "sagastream retry saga42 --step b --reason TEXT --parked-at 2/compensation/1  # send UnB again",
        "sagastream abandon saga42 --now --reason TEXT --parked-at 2/compensation/1  # end ABORTED as it is",
        "sagastream signal saga42 approve --payload JSON  # goes on",
        "sagastream signal saga42 approve --decline TEXT  # fails",
        "sagastream worker  # starts one",
        "sagastream retry another --reason TEXT  # not this saga",
        "look at the log of 'service",
    )
    found = offers(state, [Cause(kind=CauseKind.PARKED, text="", do=do)])
    assert [(one.title, one.step, one.parked_at, one.now, one.meaning) for one in found] == [
        ("Retry", "b", "2/compensation/1", False, "send UnB again"),
        ("Abandon", "", "2/compensation/1", True, "end ABORTED as it is"),
        ("Send approve", "", "", False, "goes on"),
        ("Decline approve", "", "", False, "fails"),
    ]
    assert len({one.key for one in found}) == 4


def test_a_saga_that_may_be_cancelled_can_be_though_nobody_advises_it() -> None:
    state = given_graph(do("a")).saga
    assert [(offer.title, offer.line) for offer in offers(state, ())] == [
        ("Cancel", "sagastream cancel saga42 --reason TEXT"),
        ("Cancel now", "sagastream cancel saga42 --now --reason TEXT"),
    ]


# --- what a page is asked for


def test_a_search_reads_what_a_page_is_asked_for() -> None:
    asked = {
        "status": "parked",
        "older": "90s",
        "newer": "1d",
        "at": " s/A ",
        "parked": "B",
        "told": "x",
        "error": "",
        "cursor": "c",
    }
    search = Search.of(asked | {"where": "customer=c42 shop=3"})
    assert search.wanted == Filter(
        status="PARKED",
        older_ms=90_000,
        newer_ms=86_400_000,
        at="s/A",
        parked="B",
        where=(("customer", "c42"), ("shop", "3")),
    )
    assert search.query("next") == (
        "where=customer%3Dc42+shop%3D3&status=parked&at=s%2FA&parked=B&older=90s&newer=1d&cursor=next"
    )
    assert Search.of(dict(search.given)).wanted == search.wanted


@pytest.mark.parametrize(
    "query",
    [{"status": "x"}, {"older": "soon"}, {"newer": "-1h"}, {"older": "1"}, {"older": "٣h"}, {"where": "customer"}],
)
def test_a_search_that_makes_no_sense_says_why(query: dict[str, str]) -> None:
    with pytest.raises((WrongSearch, MalformedMessage)) as wrong:
        Search.of(query)
    assert str(wrong.value)


# --- a sample of sagas


def test_a_sample_says_how_long_commands_take_and_what_fails() -> None:
    found = of([a_saga()])
    commands = {one.command: one for one in found.commands["s"]}
    assert found.looked_at == 1
    assert (commands["A"].count, commands["A"].failed) == (1, 0)
    assert (commands["C"].failed, commands["C"].again) == (1, 0)
    assert of([]).commands == {}


def test_what_nobody_answered_is_no_answer_in_a_sample() -> None:
    cancelled = given_graph(do("a"), do("b")).when("A_ok", 1).when_asked(Verb.CANCEL, now=True)
    timed_out = given_graph(do("a", attempts=1)).when_due()
    goes_on = given_graph(do("a", attempts=2)).when_due()
    seen = {
        (name, one.command): (one.count, one.failed, one.given_up)
        for name, story in (("cancelled", cancelled), ("timed out", timed_out), ("goes on", goes_on))
        for one in of([story.saga]).commands["s"]
    }
    assert seen == {
        ("cancelled", "A"): (1, 0, 0),
        ("cancelled", "B"): (0, 0, 1),
        ("timed out", "A"): (0, 0, 1),
        ("goes on", "A"): (0, 0, 0),
    }


# --- words


def test_each_phase_and_each_event_has_a_tone() -> None:
    assert PHASE_TONES.keys() == {*Phase}
    assert EVENT_TONES.keys() == {*HistoryKind}


def test_what_is_read_stands_out_from_its_ground_in_both_schemes() -> None:
    style = (FOLDER / "static" / "dashboard.css").read_text()
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", part)) for part in style.split("@media", 2)[:2])
    assert light.keys() == dark.keys()
    pairs = [(tone, f"{tone}-soft") for tone in ("ok", "live", "back", "bad", "gone", "idle")]
    pairs += [
        (text, ground) for text in ("text", "muted", "bad", "ok", "back") for ground in ("page", "panel", "raised")
    ]
    pairs += [("accent-text", "accent"), ("panel", "bad"), ("accent", "page")]
    for colours in (light, dark):
        for text, ground in pairs:
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)


def contrast(one: str, other: str) -> float:
    """How far two colours are apart, as WCAG 2 has it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_all_that_a_template_puts_out_is_escaped_for_html_and_for_terminals() -> None:
    template = environment({"version": ""}).from_string("{{ a }}|{{ b | pretty }}|{{ c | command }}|{{ none_of_it }}")
    hostile = "<b>\x1b[31m\u202e\n"
    said = template.render(
        a=hostile, b=b'{"<i>": "\\u202e\\u001b"}', c=f"sagastream {hostile}  # {hostile}", none_of_it=None
    )
    assert "<b>" not in said
    assert "<i>" not in said
    assert "\x1b" not in said
    assert "\u202e" not in said
    assert said.startswith("&lt;b&gt;\\x1b[31m\\u202e\\n|")


def test_json_is_shown_on_several_lines_and_not_too_much_of_it() -> None:
    assert pretty(b'{"a":[1,"\xc3\xbc"]}') == Lines('{\n  "a": [\n    1,\n    "ü"\n  ]\n}')
    long = pretty(b'"' + b"a" * 50_000 + b'"')
    assert len(long) < 9_000
    assert "characters more" in long


def test_advice_is_a_command_to_copy_or_a_sentence() -> None:
    assert command("sagastream worker  # starts one") == (
        '<code class="command" data-copy>sagastream worker</code><span class="remark">starts one</span>'
    )
    assert "<code" not in command("set appendonly yes")


@pytest.mark.parametrize(("count", "told"), [(0, "0 bytes"), (2048, "2 KiB"), (3 << 20, "3 MiB"), (5 << 30, "5.0 GiB")])
def test_a_size_is_short(count: int, told: str) -> None:
    assert size(count) == told
