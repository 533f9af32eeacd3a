"""A service without the library's runtime, as one in another language would be: a plain loop over redis-py.

Each subclass changes one thing. For most of them that is a fault, which `sagastream check-service` must find.
"""

import json
import threading
import time
from typing import Any, ClassVar

from sagastream import connect
from support.stores import KEYS, ONLY

Reply = dict[str, Any]

NAME = "raw"


class Raw:
    """A service that keeps every promise. It does `Do`, undoes it with `Undo`, and rejects the params "no"."""

    group: ClassVar[str] = NAME
    replies: ClassVar[str] = ONLY.replies(NAME)

    def __init__(self, url: str) -> None:
        self.standing: dict[Any, int] = {}  # its effects: those that were done and not undone
        self.redis = connect(url)
        self._stream = ONLY.commands(NAME)
        self._records: dict[Any, Reply] = {}
        self._undone: set[Any] = set()
        self._given = 0
        self._stop = threading.Event()
        self.redis.xgroup_create(self._stream, self.group, id="0", mkstream=True)
        self.publish()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.redis.close()

    def count(self, saga_id: str) -> int:
        """Its effects of a saga."""
        return sum(1 for key in list(self.standing) if key[0] == saga_id)

    # --- the loop

    def _run(self) -> None:
        while not self._stop.is_set():
            for entry_id, fields in self.abandoned():
                self.deal(entry_id, fields, again=True)
            news: Any = self.redis.xreadgroup(self.group, "one", {self._stream: ">"}, count=10, block=20)
            for entry_id, fields in news[0][1] if news else []:
                self.deal(entry_id, fields, again=False)

    def abandoned(self) -> list[Any]:
        claimed: Any = self.redis.xautoclaim(self._stream, self.group, "one", 10_000, "0-0", count=10)
        return list(claimed[1])

    def deal(self, entry_id: bytes, fields: dict[bytes, bytes], *, again: bool) -> None:
        try:
            body = json.loads(fields[b"body"][:1_000_000])
            attempt = int(fields.get(b"attempt", b"1"))
            body["saga_id"] + body["type"] + chr(body["step"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            self.malformed(entry_id, fields, error)
            return
        reply = dict(self.answer(body, fields, again=again))
        beside = {name: reply.pop(name) for name in ("unknown",) if name in reply}
        self.finish(entry_id, {"body": json.dumps(reply), "attempt": attempt} | beside)

    def malformed(self, entry_id: bytes, fields: dict[bytes, bytes], error: Exception) -> None:
        pipeline = self.redis.pipeline()
        aside: Any = {"reason": repr(error)[:100], "stream": self._stream, "entry_id": entry_id}
        pipeline.xadd(ONLY.quarantine_of(NAME), aside | {"body": fields.get(b"body", b"")})
        self.acknowledge(pipeline, entry_id)
        pipeline.execute()

    def finish(self, entry_id: bytes, reply: Any) -> None:
        pipeline = self.redis.pipeline()
        pipeline.xadd(self.replies, reply)
        self.acknowledge(pipeline, entry_id)
        pipeline.execute()

    def acknowledge(self, pipeline: Any, entry_id: bytes) -> None:
        pipeline.xack(self._stream, self.group, entry_id)
        pipeline.xdel(self._stream, entry_id)

    # --- what it answers

    def publish(self) -> None:
        self.redis.sadd(KEYS.services, NAME)
        self.redis.hset(KEYS.published(NAME), "Do", "Undo")

    def key(self, body: Any) -> Any:
        return body["saga_id"], body["step"]

    def recorded(self, record: Any, *, again: bool) -> Reply | None:
        return self._records.get(record)

    def answer(self, body: Any, fields: dict[bytes, bytes], *, again: bool) -> Reply:
        record = (*self.key(body), body["type"])
        if (reply := self.recorded(record, again=again)) is None:
            reply = self.fresh(body, fields)
            if self.is_final(reply):
                self._records[record] = reply
        return reply

    def is_final(self, reply: Reply) -> bool:
        return "unknown" not in reply

    def fresh(self, body: Any, fields: dict[bytes, bytes]) -> Reply:
        if body.get("compensating"):
            return self.undo(body) if body["type"] == "Undo" else self.stranger(body)
        if body["type"] != "Do":
            return self.stranger(body)
        if self.key(body) in self._undone:
            return self.reply(body, "failed", error="cancelled")
        if int(fields.get(b"not_after_ms", b"9999999999999")) < time.time() * 1000:
            return self.late(body)
        return self.do(body)

    def do(self, body: Any) -> Reply:
        if body["params"] == "no":
            return self.reply(body, "failed", error="no")
        self._given += 1
        self.standing[*self.key(body), self._given] = self._given
        return self.reply(body, "ok", result={"id": self._given})

    def undo(self, body: Any) -> Reply:
        self._undone.add(self.key(body))
        self.take_away(body)
        return self.reply(body, "ok")

    def take_away(self, body: Any) -> bool:
        found = [key for key in self.standing if key[:2] == self.key(body)]
        return bool([self.standing.pop(key) for key in found])

    def late(self, body: Any) -> Reply:
        return self.reply(body, "failed", error="too late") | {"unknown": 1}

    def stranger(self, body: Any) -> Reply:
        return self.reply(body, "failed", error="unknown command")

    def reply(self, body: Any, how: str, **payload: Any) -> Reply:
        return {"type": f"{body['type']}_{how}", "saga_id": body["saga_id"], "step": body["step"]} | payload


class DoesNotDedupe(Raw):
    def recorded(self, record: Any, *, again: bool) -> Reply | None:
        return None


class DoesItAgainWhereItTakesOver(Raw):
    def recorded(self, record: Any, *, again: bool) -> Reply | None:
        return None if again else super().recorded(record, again=again)


class SaysTheSameButDoesItAgain(Raw):
    def recorded(self, record: Any, *, again: bool) -> Reply | None:
        if (reply := super().recorded(record, again=again)) and "result" in reply:
            self._given += 1
            self.standing[*record[:2], self._given] = self._given
        return reply


class SaysAnotherResult(Raw):
    def recorded(self, record: Any, *, again: bool) -> Reply | None:
        if (reply := super().recorded(record, again=again)) and "result" in reply:
            self._given += 1
            return reply | {"result": {"id": self._given}}
        return reply


class KnowsSagasButNotSteps(Raw):
    def key(self, body: Any) -> Any:
        return body["saga_id"], 1


class TakesNothingOver(Raw):
    def abandoned(self) -> list[Any]:
        return []


class AcknowledgesFirst(Raw):
    def deal(self, entry_id: bytes, fields: dict[bytes, bytes], *, again: bool) -> None:
        self.redis.xack(self._stream, self.group, entry_id)
        super().deal(entry_id, fields, again=again)

    def do(self, body: Any) -> Reply:
        time.sleep(0.02)  # its work, in which it may die
        return super().do(body)


class DeletesNothing(Raw):
    def acknowledge(self, pipeline: Any, entry_id: bytes) -> None:
        pipeline.xack(self._stream, self.group, entry_id)


class AcknowledgesNothing(Raw):
    def abandoned(self) -> list[Any]:
        # Not with XAUTOCLAIM, which drops entries that were deleted.
        held: Any = self.redis.xpending_range(self._stream, self.group, "-", "+", 10, idle=10_000)
        return (
            self.redis.xclaim(self._stream, self.group, "one", 0, [one["message_id"] for one in held]) if held else []
        )

    def acknowledge(self, pipeline: Any, entry_id: bytes) -> None:
        pipeline.xdel(self._stream, entry_id)


class DiesOfWhatIsMalformed(Raw):
    def malformed(self, entry_id: bytes, fields: dict[bytes, bytes], error: Exception) -> None:
        self._stop.set()

    def finish(self, entry_id: bytes, reply: Any) -> None:
        if not self._stop.is_set():
            super().finish(entry_id, reply)


class IsHeldUpByWhatIsMalformed(Raw):
    def malformed(self, entry_id: bytes, fields: dict[bytes, bytes], error: Exception) -> None:
        self._stop.wait()


class DropsWhatIsMalformed(Raw):
    def malformed(self, entry_id: bytes, fields: dict[bytes, bytes], error: Exception) -> None:
        pipeline = self.redis.pipeline()
        self.acknowledge(pipeline, entry_id)
        pipeline.execute()


class LeavesWhatIsMalformedPending(Raw):
    def malformed(self, entry_id: bytes, fields: dict[bytes, bytes], error: Exception) -> None:
        pass


class RefusesWhatItDoesNotKnow(Raw):
    def deal(self, entry_id: bytes, fields: dict[bytes, bytes], *, again: bool) -> None:
        known = {b"body", b"attempt", b"begun_ms", b"not_after_ms", b"retried", b"params", b"result"}
        if b"body" in fields and (strange := fields.keys() - known):
            self.malformed(entry_id, fields, ValueError(strange))
        else:
            super().deal(entry_id, fields, again=again)


class IsNeverTooLate(Raw):
    def late(self, body: Any) -> Reply:
        return self.do(body)


class SaysThatNothingRemainsWhereItIsLate(Raw):
    def late(self, body: Any) -> Reply:
        return self.reply(body, "failed", error="too late")


class LeavesNoTombstone(Raw):
    def undo(self, body: Any) -> Reply:
        self.take_away(body)
        return self.reply(body, "ok")


class CannotUndoNothing(Raw):
    def undo(self, body: Any) -> Reply:
        self._undone.add(self.key(body))
        return self.reply(body, "ok") if self.take_away(body) else self.reply(body, "failed", error="not found")


class UndoesNothing(Raw):
    def take_away(self, body: Any) -> bool:
        return True


class DoesItAgainAndUndoesNothing(SaysTheSameButDoesItAgain, UndoesNothing):
    pass


class RejectsForNoReason(Raw):
    def reply(self, body: Any, how: str, **payload: Any) -> Reply:
        return super().reply(body, how, **{k: v for k, v in payload.items() if k != "error"})


class ForgetsRejections(Raw):
    def is_final(self, reply: Reply) -> bool:
        return super().is_final(reply) and "error" not in reply


class AnswersForAnotherSaga(Raw):
    def reply(self, body: Any, how: str, **payload: Any) -> Reply:
        return super().reply(body, how, **payload) | {"saga_id": "another"}


class AnswersForStepOne(Raw):
    def reply(self, body: Any, how: str, **payload: Any) -> Reply:
        return super().reply(body, how, **payload) | {"step": 1}


class AnswersWithTheNameAlone(Raw):
    def reply(self, body: Any, how: str, **payload: Any) -> Reply:
        return super().reply(body, how, **payload) | {"type": body["type"]}


class SaysMoreThanItShould(Raw):
    def do(self, body: Any) -> Reply:
        return super().do(body) | {"took_ms": 7}


class KeepsTheAttemptToItself(Raw):
    def finish(self, entry_id: bytes, reply: Any) -> None:
        super().finish(entry_id, {"body": reply["body"]} | {n: v for n, v in reply.items() if n == "unknown"})


class GivesCompensationsAResult(Raw):
    def undo(self, body: Any) -> Reply:
        return super().undo(body) | {"result": "undone"}


class KnowsEveryCommand(Raw):
    def stranger(self, body: Any) -> Reply:
        return self.reply(body, "ok")


class AnswersNoStranger(Raw):
    def finish(self, entry_id: bytes, reply: Any) -> None:
        if "unknown command" not in reply["body"]:
            super().finish(entry_id, reply)


class SaysNoResult(Raw):
    """This is not a fault: a service need not return a result."""

    def do(self, body: Any) -> Reply:
        return {name: value for name, value in super().do(body).items() if name != "result"}


class PublishesNothing(Raw):
    def publish(self) -> None:
        pass


class AnswersElsewhere(Raw):
    replies = "replies"


class HasAGroupOfAnotherName(Raw):
    group = "others"


class WritesWhatIsNoJson(Raw):
    def finish(self, entry_id: bytes, reply: Any) -> None:
        super().finish(entry_id, reply | {"body": reply["body"].replace('"', "'")})
