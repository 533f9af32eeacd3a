"""The graph of a saga as text and as a Mermaid flowchart."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from sagastream_bridge.definitions import mermaid
from sagastream_bridge.definitions.drawing import Form, Node, direct, lines


def graph(*after: Sequence[int]) -> list[Node]:
    """Steps named a, b, c …, each after those of these numbers."""
    return [Node(number, chr(96 + number), tuple(one)) for number, one in enumerate(after, 1)]


def drawn(*after: Sequence[int]) -> list[str]:
    return list(lines(graph(*after)))


def test_a_chain_is_a_list() -> None:
    assert drawn([], [1], [2]) == ["1  a", "2  b", "3  c"]


def test_a_fan_out_and_its_fan_in() -> None:
    assert drawn([], [1], [1], [1], [2, 3, 4]) == [
        "●       1  a",
        "├─┬─╮",
        "● │ │   2  b",
        "│ ● │   3  c",
        "│ │ ●   4  d",
        "├─┴─╯",
        "●       5  e",
    ]


def test_two_pairs_in_sequence_meet_in_one_line() -> None:
    assert drawn([], [], [1, 2], [1, 2]) == ["╭─╮", "● │   1  a", "│ ●   2  b", "├─┤", "● │   3  c", "  ●   4  d"]


def test_a_line_passes_what_it_does_not_meet() -> None:
    assert drawn([], [1], [1], [2], [2, 3]) == [
        "●       1  a",
        "├─╮",
        "● │     2  b",
        "├─│─╮",
        "│ ● │   3  c",
        "● │ │   4  d",
        "  ├─╯",
        "  ●     5  e",
    ]


def test_what_is_redundant_is_not_drawn() -> None:
    assert drawn([], [1], [1, 2]) == drawn([], [1], [2])


def test_a_pivot_and_a_wait_have_marks_of_their_own() -> None:
    nodes = graph([], [1], [1])
    nodes[1:] = [nodes[1]._replace(form=Form.WAIT), nodes[2]._replace(form=Form.PIVOT)]
    assert [line[:3] for line in lines(nodes)] == ["●  ", "├─╮", "○ │", "  ◆"]


def test_notes_stand_in_a_column_and_are_never_cut() -> None:
    nodes = [Node(1, "short", (), "COMPLETED"), Node(2, "a label that is much too long for this", (1,), "OUT")]
    assert list(lines(nodes, 30, paint=lambda note: f"<{note}>")) == [
        "1  short             <COMPLETED>",
        "2  a label that is…  <OUT>",
    ]


def test_more_lanes_than_there_is_room_for_are_said_in_words() -> None:
    nodes = graph(*[[]] * 3, [1, 2, 3])
    assert list(lines(nodes, 12)) == ["╭─┬─╮", "● │ │   1  a", "│ ● │   2  b", "│ │ ●   3  c", "├─┴─╯", "●       4  d"]
    nodes = graph(*[[]] * 5, [1, 2, 3, 4, 5])
    assert list(lines(nodes, 17))[::4] == ["1  a", "5  e, at once"]
    assert list(lines(nodes, 17))[5] == "6  f, after 1, 2…"


@st.composite
def graphs(draw: st.DrawFn) -> list[Node]:
    count = draw(st.integers(1, 10))
    return graph(*(sorted(draw(st.sets(st.integers(1, number)))) if number else [] for number in range(count)))


def followed(text: Sequence[str]) -> dict[int, frozenset[int]]:
    """Which steps each step comes directly after, by the lines of a drawing alone."""
    leads: dict[int, frozenset[int]] = {}  # by column: the steps from which its lane comes
    found: dict[int, frozenset[int]] = {}
    for line in text:
        if "●" in line:
            at = line.index("●")
            found[len(found) + 1] = leads.get(at, frozenset())
            leads[at] = frozenset({len(found)})
            continue
        met = [at for at in range(0, len(line), 2) if line[at] not in "│─ "]
        came = frozenset[int]().union(*(leads[at] for at in met if line[at] in "├┤┼┴╯╰" and at in leads))
        leads |= {at: came for at in met if line[at] in "├┤┼┬╭╮"}
    return found


@given(graphs())
def test_the_lanes_lead_to_each_step_from_those_that_it_comes_directly_after(nodes: list[Node]) -> None:
    text = list(lines(nodes))
    if "●" in text[0] or "●" in text[-1]:
        assert followed(text) == direct(nodes)
    else:
        assert direct(nodes) == {number: frozenset({number - 1} - {0}) for number in range(1, len(nodes) + 1)}
        assert len(text) == len(nodes)


@given(graphs())
def test_what_a_step_comes_directly_after_says_all_that_it_comes_after(nodes: list[Node]) -> None:
    def all_above(before: dict[int, frozenset[int]]) -> dict[int, frozenset[int]]:
        above: dict[int, frozenset[int]] = {}
        for number, some in before.items():
            above[number] = some.union(*(above[one] for one in some))
        return above

    assert all_above(direct(nodes)) == all_above({node.number: frozenset(node.after) for node in nodes})


def test_a_flowchart() -> None:
    nodes = [Node(1, "out", ()), Node(2, "pay", (), "OUT", Form.PIVOT), Node(3, "in", (1, 2), form=Form.WAIT)]
    assert list(mermaid.lines(nodes)) == [
        "flowchart TD",
        '    s1["1: out"]',
        '    s2{{"2: pay<br>OUT"}}',
        '    s3(["3: in"])',
        "    s1 --> s3",
        "    s2 --> s3",
    ]


def test_a_label_is_only_text_to_mermaid() -> None:
    label = mermaid.escaped('"]; click s1 <script>`%% #quot;\n</b>\x1b')
    assert label.isascii()
    assert not set(label) & set('"]<>`%\x1b\n')
    assert label.startswith("#34;#93;#59; click s1 #60;script#62;#96;")
