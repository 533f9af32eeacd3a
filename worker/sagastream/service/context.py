"""What a handler is called with."""

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from msgspec import Struct

#: A handler: (params, context) -> any JSON value, or a coroutine of one. A compensation gets the params of the step
#: that it undoes.
Handler = Callable[[Any, "Context"], Any]


class Context(Struct, frozen=True, kw_only=True):
    """What a handler is told of its command besides the params."""

    saga_id: str
    step: int  # counts from 1
    key: str  # the idempotency key. A compensation finds what it undoes under the next one, not under this
    transaction_key: str  # for a compensation, the key of what it undoes; else the same as `key`
    attempt: int  # how often the orchestrator has sent this command, this time included
    #: In UTC, by the broker's clock: after it nobody waits for the answer. None: there is no deadline.
    deadline: datetime | None = None
    result: Any = None  # for a compensation, what the step returned, if that is known
    undo: Any = None  # for a compensation, what the step's `compensation_params` say; None: it has none
    input: Any = None  # the input of the saga; None: it has none
    definition: str | None = None  # the name of the definition that the saga was made from; None: it was made from none
    retried: bool = False  # a Reject is not final: the orchestrator sends the command again, under the same key
    clock: Callable[[], float] = time.time  # the time in seconds since the epoch, by the broker's clock

    @property
    def remaining_s(self) -> float | None:
        """For how many seconds the answer is still waited for, at least 0; None: there is no deadline.

        It goes by the broker's clock, as the deadline does, so it is right even if the clock of this machine is not.
        """
        return None if self.deadline is None else max(0.0, self.deadline.timestamp() - self.clock())
