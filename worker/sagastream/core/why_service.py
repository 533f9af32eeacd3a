"""What is wrong with the service that should answer a command: nobody runs it, it lacks the command, it hangs. Pure."""

from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches
from typing import Any, Final

from sagastream.core.causes import GRACE_S, Cause, CauseKind, Evidence, Handler, ServiceFacts
from sagastream.core.durations import spoken
from sagastream.core.steps import AS_PUBLISHED, StepDefinition

#: How a process of a service is started, and where to look if that does not help.
START: Final = "sagastream service MODULE:NAME  # starts one"
LOG: Final = "; if it ends at once, its log says why"


def nobody(service: ServiceFacts, names: Collection[str], now_ms: int) -> Cause | None:
    """If no process of a service is alive: that. `names`: of all services that have a process, or publish commands."""
    if service.alive:
        return None
    text = f"no process of service {service.name} is listening"
    if service.processes:
        last = min(service.processes, key=lambda process: process.silent_ms)
        text += f": {last.name} was last heard {spoken(last.silent_ms)} ago; dead or hung"
        facts: dict[str, Any] = {"process": last.name, "last_heard_ms": now_ms - last.silent_ms}
        return Cause(kind=CauseKind.NO_SERVICE, text=text, do=(START + LOG,), facts=facts)
    if service.ever_was:
        return Cause(kind=CauseKind.NO_SERVICE, text=text, do=(START + LOG,))
    near = get_close_matches(service.name, sorted({*names} - {service.name}))
    text += f", and none ever was{misspelt(near)}"
    return Cause(kind=CauseKind.NO_SERVICE, text=text, do=(START,), facts={"near": near})


def no_command(service: ServiceFacts, command: str) -> Cause | None:
    """If a service, or each process of it, does not have the command: that."""
    if service.published is not None and command not in service.published:
        near = get_close_matches(command, sorted(service.published))
        text = f"service {service.name} has no command {command}{misspelt(near)}"
        return Cause(kind=CauseKind.NO_COMMAND, text=text, facts={"near": near})
    if any(process.commands is None or command in process.commands for process in service.alive):
        return None
    names = sorted(process.name for process in service.alive)
    text = f"service {service.name} publishes {command}, and no process at work has it; at work: {_first(names)}"
    do = (f"start a release of service {service.name} that has {command}",)
    return Cause(kind=CauseKind.NO_COMMAND, text=text, do=do, facts={"processes": names})


def nobody_has(name: str, command: str | None, evidence: Evidence) -> str:
    """If there never was a service of this name, or it has no such command, as far as is known: that; otherwise
    nothing. `command`: None: any. `evidence`: about that service."""
    facts = evidence.of(name)
    if not facts.ever_was:
        if name in evidence.names:
            return ""
        cause = nobody(facts, evidence.names, evidence.now_ms)
        return "" if cause is None else cause.text
    if command is None or facts.published is None or command in facts.published:
        return ""
    near = get_close_matches(command, sorted(facts.published), 1)
    return f"service {name} publishes no command {command}{misspelt(near)}"


def unheard_of(steps: Iterable[StepDefinition], evidence: Evidence) -> list[str]:
    """What these steps name that no service has, as far as is known: misspelt services and commands. `evidence`: about
    their services."""
    named = [
        (step.service, command)
        for step in steps
        if step.shape.sends
        for command in (step.transaction, step.compensation)
        if command and command != AS_PUBLISHED
    ]
    return list(dict.fromkeys(filter(None, (nobody_has(*one, evidence) for one in named))))


def hangs(handler: Handler, now_ms: int) -> Cause:
    """That a handler should have ended."""
    past = ""
    if handler.not_after_ms is not None:
        past = f", {spoken(now_ms - handler.not_after_ms)} past its deadline"
    elif handler.timeout_ms is not None:
        past = f", longer than the {handler.timeout_ms / 1000:g} s for which its answer is waited for"
    text = f"the handler of {handler.command}, step {handler.step}, hangs: it has run for "
    text += f"{spoken(now_ms - handler.since_ms)} in process {handler.process}{past}"
    facts = {"process": handler.process, "since_ms": handler.since_ms, "not_after_ms": handler.not_after_ms}
    return Cause(kind=CauseKind.HANGS, text=text, do=_end_process(handler.process), facts=facts)


def all_hang(service: ServiceFacts, now_ms: int, process: str = "") -> Cause | None:
    """If handlers that should have ended take all processes of a service, or this one: that."""
    names = {process} if process else {one.name for one in service.alive}
    past = [one for one in service.handlers if one.process in names and one.overdue]
    if not past or not names <= service.hung:
        return None
    one = min(past, key=lambda handler: handler.since_ms)
    text = f"handlers hang: {one.command} of saga {one.saga_id} has run for "
    text += f"{spoken(now_ms - one.since_ms)} in process {one.process}"
    facts = {"process": one.process, "saga_id": one.saga_id, "command": one.command, "since_ms": one.since_ms}
    return Cause(kind=CauseKind.HANGS, text=text, do=_end_process(one.process), facts=facts)


def busy_with(service: ServiceFacts, now_ms: int, processes: Collection[str] | None = None) -> str:
    """What a service, or these processes of it, have been running for longest; the end of a sentence."""
    running = [one for one in service.handlers if processes is None or one.process in processes]
    if not running:
        return ""
    one = min(running, key=lambda handler: handler.since_ms)
    return f"; {one.command} of saga {one.saga_id} has run for {spoken(now_ms - one.since_ms)}"


def misspelt(near: Sequence[str]) -> str:
    return f"; is it a misspelling of {' or '.join(near)}?" if near else ""


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _end_process(name: str) -> tuple[str, ...]:
    """How to be rid of a handler that hangs. `name`: of its process: host, pid and a random part."""
    host, _, pid = name.rpartition("-")[0].rpartition("-")
    end = f"kill {pid}  # on {host}" if pid.isdigit() else f"end process {name}"
    when = f"it ends within {GRACE_S:g} s, and others take over what it holds"
    return (f"{end}; {when}. With hard_timeout_ms it ends by itself",)
