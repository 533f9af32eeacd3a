"""The story of a graph in the core. Its steps are said as a client says them, in JSON."""

from collections.abc import Sequence
from typing import Any, Final, Self

from msgspec.structs import replace

from sagastream.core.begin_parsing import parse_begin
from sagastream.core.messages import Begin, Intervene, Signal, Verb
from sagastream.core.notices import Notice, done_body, parked_body
from sagastream.core.pauses import NOTHING_PAUSED, Paused
from sagastream.core.sending import Published
from support.stories import BEGUN_MS, Story

DAY_MS: Final = 86_400_000

#: What undoes each step of these stories.
UNDONE_BY: Final[Published] = {"s": {name: f"Un{name}" for name in "ABCDEF"}}


def do(step_id: str, *, after: Sequence[str | int] | None = None, **members: Any) -> dict[str, Any]:
    """The step with this id, whose transaction is the same in capitals: a service publishes what undoes it."""
    step: dict[str, Any] = {"id": step_id, "transaction": step_id.upper(), "service": "s"}
    return step | ({} if after is None else {"after": list(after)}) | members


def graph_of(*steps: dict[str, Any], **members: Any) -> Begin:
    """A saga_begin as it comes over the wire, with these steps. It has an input, unless the members say otherwise."""
    body = {"saga_id": "saga42", "format": 2, "input": {}, "steps": list(steps)} | members
    body = {name: value for name, value in body.items() if value is not None}
    return parse_begin(body, request_id="me-1", plain=True)


class GraphStory(Story):
    """A graph, and what happens to it."""

    # --- what happens

    def when_begun_again(self, begin: Begin) -> Self:
        return self._when(replace(begin, request_id="you-2"))

    def when_signalled(
        self,
        name: str,
        payload: bytes = b"null",
        *,
        declined: str | None = None,
        request_id: str | None = "op-1",
        actor: str | None = None,
        added_ms: int | None = None,
    ) -> Self:
        """A signal comes. `added_ms`: when it was added to its stream, by which it is in time or not."""
        event = Signal(
            saga_id="saga42",
            name=name,
            payload=payload,
            declined=declined,
            actor=actor,
            request_id=request_id,
            added_ms=added_ms,
        )
        return self._when(event)

    def when_asked_of(
        self, step: int | str, verb: Verb, *, request_id: str | None = "op-1", parked_at: str | None = None
    ) -> Self:
        """An operator asks for something that is about this step."""
        asked = Intervene(
            verb=verb, saga_id="saga42", reason="as agreed", step=step, parked_at=parked_at, request_id=request_id
        )
        return self._when(asked)

    # --- what it leads to

    def expect_all_sent(self, *sent: str) -> Self:
        """Exactly these commands, in this order: type and number of the step, such as `UnB 2`."""
        assert tuple(f"{command.type} {command.step}" for command in self.decision.commands) == sent
        for command in self.decision.commands:
            step = self.saga.steps[command.step - 1]
            assert step.due_ms == self.now_ms + step.definition.timeout_ms
            assert (command.attempt, command.compensating) == (step.current_attempt, step.being_undone)
        return self

    def expect_phases(self, *phases: str) -> Self:
        assert tuple(step.phase for step in self.saga.steps) == phases
        return self

    def expect_params(self, *params: bytes) -> Self:
        """The params of the commands that are sent, in this order."""
        assert tuple(command.params for command in self.decision.commands) == params
        return self

    def expect_at(self, number: int, *, undone: Sequence[int] = ()) -> Self:
        """The current step, and the steps whose undo was begun."""
        assert (self.saga.current_step, self.saga.compensating_steps) == (number, tuple(undone))
        return self

    def expect_step_parked(self, number: int, reason: str) -> Self:
        """This step is parked now, and that is reported."""
        assert self.saga.steps[number - 1].parked == reason
        body = parked_body("saga42", self.saga.status, reason)
        told = Notice(kind="parked", saga_id="saga42", request_id="me-1", body=body)
        assert told in self.decision.notices
        return self

    def expect_signal_done(self, to: str = "op-1") -> Self:
        told = Notice(kind="done", saga_id="saga42", request_id=to, body=done_body("signal", "saga42"))
        assert self.decision.notices[:1] == (told,)
        return self

    def expect_aborted(self, reason: str) -> Self:
        self.expect_status("ABORTED", reason).expect_nothing_sent()
        assert self.decision.notices[-1].kind == "outcome"
        assert self.saga.active_steps == []
        return self


def given_graph(
    *steps: dict[str, Any],
    published: Published = UNDONE_BY,
    journal_bytes: int = 0,
    paused: Paused = NOTHING_PAUSED,
    **members: Any,
) -> GraphStory:
    """A graph with these steps that has just begun. `paused`: what is; `members`: of its saga_begin."""
    return GraphStory(graph_of(*steps, **members), published, jitter=1.0, journal_bytes=journal_bytes, paused=paused)


__all__ = ["BEGUN_MS", "DAY_MS", "GraphStory", "Verb", "do", "given_graph", "graph_of"]
