"""The commands that pause and resume services: pause, resume, paused."""

import json
from typing import TYPE_CHECKING, Any, Final

import click

from sagastream_bridge.commands.ask import in_options
from sagastream_bridge.commands.context import WrongUsage, actor_option, opened, reason_option
from sagastream_bridge.commands.terminal import safe

if TYPE_CHECKING:
    from sagastream.core.pauses import Pause
    from sagastream.store.pauses import Heard

#: Where the reason of each is shown.
_SHOWN: Final = {
    "pause": "Sagas that wait for this show it, and so does `sagastream operations`.",
    "resume": "`sagastream operations` shows it.",
}
#: The help text of each.
_VERBS: Final = {
    "pause": "Pause SERVICE, or its COMMAND alone: nothing of it is sent until it is resumed, no retries and no "
    "compensations either. What is out is finished and answered. Deadlines of sagas still count.",
    "resume": "Resume SERVICE, or its COMMAND: workers send what was held. Name what was paused: `sagastream paused`.",
}


def _verb(verb: str, help_text: str) -> click.Command:
    @click.command(verb, help=help_text)
    @click.argument("service", metavar="SERVICE")
    @click.argument("command", metavar="[COMMAND]", required=False)
    @reason_option(f"Why. {_SHOWN[verb]}")
    @actor_option("it is shown with the reason")
    def ask(service: str, command: str | None, reason: str, actor: str) -> None:
        import redis

        from sagastream.errors import MalformedMessage, RequestRefused

        with opened() as broker:
            from sagastream.broker.exchange import run
            from sagastream.client.blocking import SagaClient
            from sagastream.client.evidence import survey
            from sagastream.core.why_waits import pause_told, pauses_nothing
            from sagastream.store import layout

            keys = layout.check(broker)
            try:
                heard: Heard = getattr(SagaClient(broker), verb)(service, command, reason=reason, actor=actor)
            except MalformedMessage as error:
                raise WrongUsage(safe(in_options(str(error)))) from None
            except (RequestRefused, redis.exceptions.NoPermissionError) as error:
                raise click.ClickException(safe(str(error))) from None
            click.echo(safe(_told(verb, heard)))
            evidence = run(broker.client, survey(keys, [service]))
            if heard.before is not None:
                click.echo(safe(f"note: {_again(heard.before, evidence.now_ms)}"), err=True)
            for one in heard.left:
                click.echo(safe(f"note: {pause_told(one, evidence.now_ms)}, and stays paused"), err=True)
                do = f"sagastream resume {one.words} --reason TEXT"
                click.echo(safe(f"      {do}  # sends that, too"), err=True)
            if verb == "pause" and (text := pauses_nothing(heard.pause, evidence)):
                click.echo(safe(f"warning: {text}"), err=True)
                do = f"sagastream resume {heard.pause.words} --reason TEXT"
                click.echo(safe(f"         {do}  # takes it back: it holds nothing now"), err=True)

    return ask


def _again(before: "Pause", now_ms: int) -> str:
    """Who had paused the same before."""
    from sagastream.core.why_waits import pause_told

    return f"{pause_told(before, now_ms)}; it stays paused since then, now with your name and reason"


def _told(verb: str, heard: "Heard") -> str:
    """What was done, and which workers know it."""
    done = f"{heard.pause.told} is paused" if verb == "pause" else f"{heard.pause.told} is resumed"
    if not (heard.known or heard.late or heard.ignorant):
        return f"{done}; no worker is running: those that start will know it"
    parts = [f"workers that know it: {len(heard.known)}"]
    if heard.late:
        parts.append(f"workers that have not read it yet: {', '.join(heard.late)}")
    if heard.ignorant:
        parts.append(f"workers of an earlier release, which send all the same: {', '.join(heard.ignorant)}")
    return f"{done}; {'; '.join(parts)}"


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def paused(as_json: bool) -> None:
    """List what is paused, since when, by whom and why, and what no service has. If somebody paused the same again,
    the time is that of the first pause, and name and reason are those of the last."""
    with opened(create=False) as broker:
        from sagastream.broker.exchange import run
        from sagastream.client.evidence import survey
        from sagastream.core.why_waits import pause_told, pauses_nothing
        from sagastream.store import layout, pauses
        from sagastream.store.columns import iso

        keys = layout.look(broker)
        found = run(broker.client, pauses.read(keys))
        evidence = run(broker.client, survey(keys, {one.service for one in found}))
        for one in found:
            said: dict[str, Any] = {"service": one.service, "command": one.command, "reason": one.reason}
            said |= {"actor": one.actor, "since_at": iso(one.since_ms) if one.since_ms else None}
            holds_nothing = pauses_nothing(one, evidence)
            said["holds_nothing"] = holds_nothing or None
            line = pause_told(one, evidence.now_ms) + (f"; it holds nothing: {holds_nothing}" if holds_nothing else "")
            click.echo(json.dumps(said) if as_json else safe(line))
        if not found and not as_json:
            click.echo("nothing is paused")


#: All of them.
COMMANDS: Final = (*(_verb(verb, text) for verb, text in _VERBS.items()), paused)
