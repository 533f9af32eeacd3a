"""What docs/protocol.md says, compared with the code: keys, fields, messages, rules, numbers."""

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from sagastream import scripts
from sagastream.broker import leases
from sagastream.broker.entries import REPLAYED, Entry
from sagastream.core import service_rules
from sagastream.core.begin_parsing import parse_begin
from sagastream.core.commands import Command, Reply, failed, ok, reply_to
from sagastream.core.messages import ID_PATTERN, Begin
from sagastream.core.parsing import read_command, read_reply, read_request
from sagastream.core.service_actions import RUN, Undo
from sagastream.core.service_rules import MAX_TAKEOVERS, MAX_UNDOS, TRIES
from sagastream.core.steps import MAX_STEPS
from sagastream.core.strict_json import MAX_BYTES, MAX_DEPTH, MAX_OBJECTS, MAX_PAYLOAD_BYTES, MAX_VALUES, encode
from sagastream.service import declaration
from sagastream.store import keys
from sagastream.store.published import MAX_SERVICES
from support.stores import ONLY
from support.values import TRACEPARENT

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs" / "protocol.md").read_text()
SAMPLE = ROOT / "stubs" / "node-notification"

CHARGE = Command(
    service="till",
    type="ChargeCard",
    saga_id="o-1",
    step=1,
    params=b'{"amount":5}',
    begun_ms=1767225600000,
    not_after_ms=1767225660000,
)
REFUND = Command(
    service="till",
    type="RefundCard",
    saga_id="o-1",
    step=1,
    params=b'{"amount":5}',
    result=b'{"payment_id":"p1"}',
    compensating=True,
    begun_ms=1767225600000,
    retried=True,
)


def tables(section: str) -> list[list[list[str]]]:
    """The tables of the section with this heading: rows of cells, without the head."""
    found = re.search(rf"\n#+ {re.escape(section)}\n(.*?)(?=\n##|\Z)", DOC, re.DOTALL)
    assert found is not None, section
    blocks = re.findall(r"(?:^\|.*\n)+", found[1] + "\n", re.MULTILINE)
    return [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()[2:]] for block in blocks
    ]


def first_column(table: list[list[str]]) -> list[str]:
    return [row[0].strip("`") for row in table]


def shown(fields: dict[str, Any]) -> list[str]:
    """The fields of an entry as the page shows them."""
    width = max(map(len, fields))
    return [
        f"{name:{width}}  {value.decode() if isinstance(value, bytes) else value}" for name, value in fields.items()
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("transaction", CHARGE),
        ("compensation", REFUND),
        ("done", reply_to(CHARGE, ok("ChargeCard"), result=b'{"payment_id":"p1"}')),
        ("rejected", reply_to(CHARGE, failed("ChargeCard"), error=b'"insufficient_funds"')),
        ("unknown", reply_to(CHARGE, failed("ChargeCard"), error=b'"the bank did not answer"', unknown=True)),
        ("undone", reply_to(REFUND, ok("RefundCard"))),
    ],
)
def test_the_messages_are_written_as_the_page_shows_them(name: str, message: Command | Reply) -> None:
    found = re.search(rf"```text {name}\n(.*?)\n```", DOC, re.DOTALL)
    assert found is not None
    assert found[1].splitlines() == shown(message.fields())
    # … and what is shown is read as what was written.
    pairs = [re.split(r" {2,}", line, maxsplit=1) for line in found[1].splitlines()]
    fields = {field.encode(): value.encode() for field, value in pairs}
    assert (read_command("till", fields, 0) if isinstance(message, Command) else read_reply(fields)) == message


def test_the_table_of_keys_is_the_catalogue() -> None:
    catalogue = [
        [part.replace("<h>", "<hour>") for part in re.split(r" {2,}", line.strip())[:3]]
        for line in (keys.__doc__ or "").splitlines()
        if line.startswith("    saga:")
    ]
    [table] = tables("Keys")
    assert [[row[0].strip("`"), *row[1:3]] for row in table] == catalogue
    groups = {row[0].strip("`"): row[3].strip("`") for row in table if row[3]}
    assert groups == {
        ONLY.requests: keys.ORCHESTRATOR_GROUP,
        ONLY.interventions: keys.ORCHESTRATOR_GROUP,
        ONLY.replies("<service>"): keys.ORCHESTRATOR_GROUP,
        ONLY.commands("<service>"): "<service>",
    }


def test_the_fields_and_members_of_commands_are_all_there() -> None:
    entry, body = tables("Fields of a command")
    whole: dict[str, Any] = {}
    members: dict[str, Any] = {}
    of_a_graph = replace(REFUND, undo=b"{}", input=b"{}", definition="order", traceparent=TRACEPARENT, tracestate="a=1")
    for command in (replace(CHARGE, compensation="Undo", retried=True), of_a_graph):
        whole |= command.fields()
        members |= json.loads(command.body())
    assert sorted(first_column(entry)) == sorted([*whole, REPLAYED.decode(), "format", "unrecorded_ms"])
    assert sorted(first_column(body)) == sorted(members)


def test_the_fields_and_members_of_replies_are_all_there() -> None:
    entry, body = tables("Fields of a reply")
    reply = Reply(
        type="Do_ok",
        saga_id="s",
        step=1,
        result=b"1",
        error=b"1",
        unknown=True,
        attempt=1,
        process="p",
        traceparent=TRACEPARENT,
        tracestate="a=1",
    )
    assert sorted(first_column(entry)) == sorted(reply.fields())
    assert sorted(first_column(body)) == sorted(json.loads(reply.body()))


def test_the_fields_of_what_is_set_aside_are_all_there() -> None:
    [table] = tables("Fields of what is set aside")
    aside = Entry(stream="s", id=b"1-1", fields={b"input": b"x" * 5000}).quarantined("why", is_command=True)
    assert first_column(table) == [name.replace("input", "<name>") for name in aside]


def test_the_fields_of_a_request_are_all_there_and_its_example_is_one() -> None:
    [table] = tables("Beginning a saga")
    body = {"saga_id": "s", "steps": [{"transaction": "T", "service": "s"}]}
    begin = parse_begin(body, request_id="r", echo=True, traceparent=TRACEPARENT, tracestate="a=1")
    assert sorted(first_column(table)) == sorted(begin.fields())
    found = re.search(r"XADD saga:\{0\}:requests '\*' body '(.*?)'\n", DOC, re.DOTALL)
    assert found is not None
    assert isinstance(read_request({b"body": found[1].encode()}), Begin)


def test_the_fields_of_the_records_are_named_as_the_code_names_them() -> None:
    [table] = tables("Fields of the records")
    filled = {"<key>": CHARGE.key, "<type>": CHARGE.type, "<transaction key>": REFUND.transaction_key}
    names = {re.sub(r"<[a-z ]+>", lambda hole: filled.get(hole[0], "…"), name) for name in first_column(table)}
    assert names == {CHARGE.record, REFUND.tombstone, f"{CHARGE.record}/takeovers", f"{CHARGE.record}/undos/…"}


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("tombstone", [False, True])
@pytest.mark.parametrize("record", ["none", "ok", "failed"])
def test_the_table_of_what_to_do_is_what_the_code_does(record: str, tombstone: bool, again: bool) -> None:
    [table] = tables("After recall.lua")
    rows = {(row[0].strip("`"), row[1], row[2]): row[3] for row in table}
    assert len(rows) == len(list(product("abc", "ab", "ab")))
    written = None if record == "none" else f"{record} ".encode()
    step = service_rules.delivered(CHARGE, record=written, tombstone=tombstone, again=again)
    what = "handle" if step is RUN else "undo, answer" if isinstance(step, Undo) else "answer"
    said = {False: "no", True: "yes"}
    assert rows[record, said[tombstone], said[again]] == what
    assert service_rules.delivered(REFUND, record=None, tombstone=True, again=again) is RUN


def test_the_kinds_of_an_answer_are_as_the_page_says() -> None:
    [table] = tables("After the handler")
    done, refused, unknown = (row[1] for row in table)
    assert done == f"`{service_rules.kind(CHARGE, reply_to(CHARGE, ok('ChargeCard')))}`"
    kinds = [
        service_rules.kind(command, reply_to(command, failed("ChargeCard")))
        for command in (CHARGE, replace(CHARGE, retried=True))
    ]
    assert refused == f"`{kinds[0]}`; with the field `retried` `{kinds[1]}`"
    assert unknown == f"`{service_rules.kind(CHARGE, reply_to(CHARGE, failed('ChargeCard'), unknown=True))}`"
    refusal = service_rules.refusal(CHARGE).error or b""
    assert f"`{json.loads(refusal)}`" in DOC.replace("\n  ", " ")


def test_the_numbers_are_those_of_the_code() -> None:
    [table] = tables("Numbers")
    [longest] = re.findall(r"\{1,(\d+)\}", ID_PATTERN.pattern)
    assert [int(row[1]) for row in table] == [
        int(longest),
        MAX_SERVICES,
        MAX_STEPS,
        MAX_BYTES,
        MAX_PAYLOAD_BYTES,
        MAX_DEPTH - 3,
        MAX_VALUES,
        MAX_OBJECTS,
        64,
        keys.DONE_KEPT_S,
        declaration.LEASE_MS,
        MAX_TAKEOVERS,
        MAX_UNDOS,
        TRIES,
        leases._GONE_MS,
        keys.EVENTS_KEPT,
    ]


def test_what_nobody_reads_does_no_harm() -> None:
    """The page allows more members and fields: a reply that has them is read all the same."""
    body = encode({"type": "Do_ok", "saga_id": "s", "step": 1, "more": 1})
    assert read_reply({b"body": body, b"more": b"1"}) == Reply(type="Do_ok", saga_id="s", step=1)


# --- the sample in JavaScript


@pytest.mark.parametrize("path", sorted(SAMPLE.glob("sagastream/scripts/*.lua")), ids=lambda path: path.name)
def test_the_scripts_of_the_sample_are_copies(path: Path) -> None:
    original = Path(str(scripts.__file__)).with_name(path.name)
    assert path.read_text() == original.read_text(), f"cp {original} {path}"


def test_every_script_that_the_page_names_comes_with_the_sample() -> None:
    named = set(re.findall(r"^    (\w+\.lua) ", DOC, re.MULTILINE))
    assert named == {path.name for path in SAMPLE.glob("sagastream/scripts/*.lua")} != set()


def test_the_samples_lock_file_names_no_registry() -> None:
    lock = json.loads((SAMPLE / "package-lock.json").read_text())
    assert all("integrity" in package for name, package in lock["packages"].items() if name)
    assert "resolved" not in (SAMPLE / "package-lock.json").read_text()
