"""The books of the sample services, in Redis: how much there is of each thing, and who took what.

stubs:{<service>}:left     hash  thing -> how much is left of it; missing until somebody takes some
stubs:{<service>}:taken    hash  idempotency key -> <id> <thing> <amount>; "void": given back; "refused": for good
stubs:{<service>}:counter  string  the last number that was given out
"""

from functools import cache
from typing import Any

from sagastream import Context, Reject, connect, scripts


class Ledger:
    """One service's books. `prefix` begins its ids: r1, r2, …"""

    def __init__(self, service: str, prefix: str) -> None:
        self._keys = [f"stubs:{{{service}}}:{name}" for name in ("left", "taken", "counter")]
        self._prefix = prefix

    def take(self, context: Context, thing: str, amount: int, at_first: int, refusal: str) -> str:
        """Take `amount` of `thing`, of which there were `at_first`; returns the id of what was taken.

        Called again with the same key, it takes nothing more and returns the same id. Raises Reject(refusal) if too
        little is left, from then on each time, unless the orchestrator is going to send the command again; and
        Reject("cancelled") if this key was given back before.
        """
        if amount > at_first:  # also keeps numbers within what Lua can count
            raise Reject(refusal)
        answer = _script("take")(
            keys=self._keys, args=[context.key, thing, amount, at_first, self._prefix, int(not context.retried)]
        )
        if answer == b"void":
            raise Reject("cancelled")
        if not answer:
            raise Reject(refusal)
        return str(answer.decode())

    def give_back(self, key: str) -> None:
        """Undo the `take` with this key, once; if it has not happened yet, it never will."""
        _script("give_back")(keys=self._keys, args=[key])


@cache
def _script(name: str) -> Any:
    """A script. The connection is made when it is first needed."""
    return scripts.load(connect(), name, "sagastream_stubs.scripts")
