"""Where the commands of a round trip go on a cluster: to the node that has the slot of their keys.

A command without a key goes where its neighbours go: a script is loaded where it is called next, and a WAIT asks the
node that was written to. What a node says of itself (INFO, CLUSTER MYID) is told by the node of the key before, or by
any node if there is none. A command whose keys are in several slots is asked in parts, if its answers can be put
together: a reading of streams, or a count of keys. Any other is refused by the server.
"""

from collections.abc import Sequence
from enum import Enum
from typing import Any, Final

from redis.exceptions import RedisError

from sagastream.broker.cluster_map import slot_of
from sagastream.broker.failures import is_denied, is_outage
from sagastream.broker.wire import Words

#: Commands without a key that go where the next command with one goes, …
_BEFORE: Final = frozenset({"MULTI", "SCRIPT"})
#: … and those that go where the one before went.
_AFTER: Final = frozenset({"EXEC", "DISCARD", "WAIT", "WAITAOF", "TIME", "ASKING", "INFO", "CLUSTER"})
#: Others without a key. Any node can answer them for itself.
_ANYWHERE: Final = frozenset(
    [
        "ACL",
        "AUTH",
        "BGREWRITEAOF",
        "BGSAVE",
        "CLIENT",
        "COMMAND",
        "CONFIG",
        "DBSIZE",
        "ECHO",
        "FLUSHALL",
        "FLUSHDB",
        "FUNCTION",
        "HELLO",
        "KEYS",
        "LASTSAVE",
        "LATENCY",
        "MODULE",
        "PING",
        "PUBLISH",
        "RANDOMKEY",
        "READONLY",
        "ROLE",
        "SAVE",
        "SELECT",
        "SLOWLOG",
        "UNWATCH",
    ]
)
#: Commands whose key follows the name of a subcommand.
_AFTER_SUBCOMMAND: Final = frozenset({"XGROUP", "XINFO", "OBJECT", "MEMORY"})
_SCRIPTS: Final = frozenset({"EVAL", "EVALSHA", "EVAL_RO", "EVALSHA_RO", "FCALL", "FCALL_RO"})
#: Commands that read streams.
READINGS: Final = frozenset({"XREAD", "XREADGROUP"})
#: Commands that count those of their keys of which something is so.
_COUNTS: Final = frozenset({"EXISTS", "DEL", "UNLINK", "TOUCH"})


class Where(Enum):
    """Where a command without a key goes."""

    BEFORE = 1  # where the next command with a key goes
    AFTER = 2  # where the command before went
    ANYWHERE = 3


class Part:
    """What one node is asked: a command, or a part of one. And what has come of it."""

    __slots__ = ("answer", "is_answered", "is_in_transaction", "may_go_elsewhere", "moves", "slot", "words")

    def __init__(self, words: Words, slot: int | None, *, is_in_transaction: bool = False) -> None:
        """`slot`: None: any node can answer it."""
        self.words = words
        self.slot = slot
        self.is_in_transaction = is_in_transaction
        #: Whether any other node can answer it as well, if this one is away.
        self.may_go_elsewhere = slot is None or words[0] == "TIME"
        self.moves = 0  # how often it was told that the slot is elsewhere
        self.is_answered = False
        self.answer: Any = None

    def ends(self, answer: Any) -> None:
        self.answer, self.is_answered = answer, True


class Command:
    """A command of a round trip, and the parts in which it is asked."""

    __slots__ = ("name", "parts", "reading")

    def __init__(self, name: str, parts: list[Part], *, reading: "Reading | None" = None) -> None:
        self.name = name
        self.parts = parts
        #: A reading of streams in several slots; None: it is none.
        self.reading = reading

    def answer(self) -> Any:
        """The answer of the whole. Errors are returned. If a part of a reading has an error, what the others have read
        is the answer: the entries are this reader's by now."""
        parts = self.parts
        if len(parts) == 1:
            return parts[0].answer
        if self.reading is not None:
            return self.reading.merged([part.answer for part in parts])
        errors = [part.answer for part in parts if isinstance(part.answer, RedisError)]
        return errors[0] if errors else sum(part.answer for part in parts)


class Reading:
    """A reading of streams that are in several slots."""

    def __init__(self, words: Words) -> None:
        names = [_text(word).upper() for word in words]
        at = names.index("STREAMS")
        self.options: list[Any] = list(words[:at])
        #: For how long it waits if there is nothing, in ms; None: not at all.
        self.block_ms: int | None = None
        if "BLOCK" in names[:at]:
            place = names.index("BLOCK")
            self.block_ms = int(words[place + 1])
            del self.options[place : place + 2]
        rest = words[at + 1 :]
        half = len(rest) // 2
        #: By slot: the streams in it, and after which entries each is read.
        self.by_slot: dict[int, tuple[list[Any], list[Any]]] = {}
        for stream, after in zip(rest[:half], rest[half:], strict=True):
            streams, afters = self.by_slot.setdefault(slot_of(stream), ([], []))
            streams.append(stream)
            afters.append(after)
        #: Who reads, if what it gets is its own from then on: the group and the consumer; None: it only looks.
        self.consumer: tuple[Any, Any] | None = None
        if names[0] == "XREADGROUP" and all(after in (">", b">") for after in rest[half:]):
            self.consumer = (words[2], words[3])

    def words(self, slot: int, *, block_ms: int | None = None) -> Words:
        """The reading of the streams in this slot."""
        streams, afters = self.by_slot[slot]
        block = [] if block_ms is None else ["BLOCK", block_ms]
        return [*self.options, *block, "STREAMS", *streams, *afters]

    @staticmethod
    def merged(answers: Sequence[Any]) -> Any:
        found = [stream for answer in answers if isinstance(answer, list) for stream in answer]
        if found:
            return found
        errors = [answer for answer in answers if isinstance(answer, RedisError)]
        # What a server refuses waits for somebody; an outage of a node passes by itself, and others may have more. So
        # they may if one node denies this user to read.
        refused = [error for error in errors if not (is_outage(error) or is_denied(error))]
        if errors and (refused or len(errors) == len(answers)):
            return (refused or errors)[0]
        return None


def routed(commands: Sequence[Words]) -> list[Command]:
    """These commands, with the slots that they go to."""
    found: list[Command] = []
    waiting: list[Part] = []  # those that go where the next one goes
    slot: int | None = None  # of the last command with a key
    is_in_transaction = False
    for words in map(_apart, commands):
        name = _text(words[0]).upper()
        key = _key(name, words)
        if key is Where.BEFORE:
            is_in_transaction = is_in_transaction or name == "MULTI"
            part = Part(words, None, is_in_transaction=is_in_transaction)
            waiting.append(part)
            found.append(Command(name, [part]))
            continue
        if isinstance(key, Where) and is_in_transaction and waiting:
            waiting.append(Part(words, None, is_in_transaction=True))
            found.append(Command(name, [waiting[-1]]))
            continue
        if isinstance(key, Where):
            at = slot if key is Where.AFTER or is_in_transaction else None
            found.append(Command(name, [Part(words, at, is_in_transaction=is_in_transaction)]))
            is_in_transaction = is_in_transaction and name not in ("EXEC", "DISCARD")
            continue
        command = _in_parts(name, words, key, is_in_transaction=is_in_transaction)
        slot = command.parts[-1].slot
        for part in waiting:
            part.slot, part.may_go_elsewhere = slot, False
        waiting.clear()
        found.append(command)
    return found


def _apart(words: Words) -> Words:
    """The words of a command. redis-py has both words of some names in one."""
    first = words[0]
    return (*first.split(" "), *words[1:]) if isinstance(first, str) and " " in first else words


def _in_parts(name: str, words: Words, key: Any, *, is_in_transaction: bool) -> Command:
    if not is_in_transaction:
        if name in READINGS:
            reading = Reading(words)
            if len(reading.by_slot) > 1:
                parts = [Part(reading.words(slot), slot) for slot in reading.by_slot]
                return Command(name, parts, reading=reading)
        elif name in _COUNTS and len(words) > 2:
            by_slot: dict[int, list[Any]] = {}
            for one in words[1:]:
                by_slot.setdefault(slot_of(one), []).append(one)
            return Command(name, [Part((name, *keys), slot) for slot, keys in by_slot.items()])
    return Command(name, [Part(words, slot_of(key), is_in_transaction=is_in_transaction)])


def _key(name: str, words: Words) -> Any:
    """The first key of a command; or, if it has none, where it goes."""
    if name in _SCRIPTS:
        return words[3] if int(words[2]) else Where.ANYWHERE
    if name in READINGS:
        return words[[_text(word).upper() for word in words].index("STREAMS") + 1]
    if name in _AFTER_SUBCOMMAND:
        return words[2] if len(words) > 2 else Where.ANYWHERE
    if name == "SCAN":
        return _tagged(words) or Where.ANYWHERE
    if name in _BEFORE:
        return Where.BEFORE
    if name in _AFTER:
        return Where.AFTER
    return Where.ANYWHERE if name in _ANYWHERE or len(words) < 2 else words[1]


def _tagged(words: Words) -> str | None:
    """The pattern of a SCAN, if all keys that it fits are in one slot: it has a hash tag without a sign of a
    pattern, and none before that."""
    names = [_text(word) for word in words]
    for option, value in zip(names[2::2], names[3::2], strict=False):
        if option.upper() == "MATCH":
            beginning, brace, rest = value.partition("{")
            tag, end, _ = rest.partition("}")
            if brace and end and tag and not set("*?[\\") & set(beginning + tag):
                return value
    return None


def _text(word: Any) -> str:
    return word.decode(errors="replace") if isinstance(word, bytes) else str(word)
