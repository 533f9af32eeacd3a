"""Answers, and entries that are set aside, as answer.lua takes them."""

from collections.abc import Mapping, Sequence

from msgspec import Struct

from sagastream.broker.entries import Entry
from sagastream.core import service_rules
from sagastream.core.messages import Fields
from sagastream.core.service_actions import Answer
from sagastream.service.delivery import Delivery
from sagastream.store.keys import DONE_KEPT_S, Partition


class Quarantined(Struct, frozen=True):
    """An entry that is not a command, or that a person has to decide on."""

    entry: Entry
    reason: str


#: What is to be sent: an answer, or an entry that is set aside.
Ready = tuple[Delivery, Answer] | Quarantined


def entry_of(one: Ready) -> Entry:
    """The entry that is done with once this is sent."""
    return one.entry if isinstance(one, Quarantined) else one[0].entry


def size_of(one: Ready) -> int:
    """About how many bytes it has."""
    return one.entry.size if isinstance(one, Quarantined) else len(one[1].reply.payload or b"")


def packed(
    ready: Sequence[Ready], partitions: Mapping[str, Partition], service: str, *, holder: str, process: str
) -> tuple[list[str], list[str | bytes | int]]:
    """The keys and the arguments of a call; the header of answer.lua describes them.

    Args:
        partitions: all that the process answers, by the stream of their commands.
        holder: the consumer that holds the commands.
        process: its name in the answers.
    """
    keys: dict[str, int] = {}  # each with its place
    for commands in partitions if len(partitions) == 1 else {entry_of(one).stream for one in ready}:
        partition = partitions[commands]
        for key in (commands, partition.replies(service), partition.quarantine_of(service)):
            keys[key] = len(keys) + 1
    args: list[str | bytes | int] = [service, DONE_KEPT_S, holder]
    for one in ready:
        if isinstance(one, Quarantined):
            fields: Fields | dict[str, str | bytes | int] = one.entry.quarantined(one.reason, is_command=True)
            args += (one.entry.id, keys[one.entry.stream] + 2, 0, "", "", "", "final", "", 2 * len(fields))
        else:
            delivery, answer = one
            reply = answer.reply
            fields = reply.fields()
            if service_rules.names_process(delivery.command, reply):
                fields["process"] = process
            done = keys.setdefault(delivery.done, len(keys) + 1)
            tombstone = "" if delivery.command.compensating else delivery.tombstone
            entry = delivery.entry
            args += (entry.id, keys[entry.stream] + 1, done, delivery.record, tombstone, delivery.seen)
            args += (answer.kind, reply.payload or "", 2 * len(fields))
        for pair in fields.items():
            args += pair
    return list(keys), args
