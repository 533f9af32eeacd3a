"""The commands that pause and resume services: pause, resume, paused."""

import json
from typing import TYPE_CHECKING, Any, Final

import click

from sagastream_bridge.commands.ask import in_options
from sagastream_bridge.commands.context import opened, safe, user_at_host

if TYPE_CHECKING:
    from sagastream.store.pauses import Heard

#: Where the reason of each is shown.
_SHOWN: Final = {
    "pause": "It is shown wherever a saga waits for this, and by `sagastream operations`.",
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
    @click.option("--reason", required=True, metavar="TEXT", help=f"Why. {_SHOWN[verb]}")
    @click.option("--by", metavar="NAME", help="Who you are; shown with it  [default: your user@host]")
    def ask(service: str, command: str | None, reason: str, by: str | None) -> None:
        import redis

        from sagastream.errors import MalformedMessage, RequestRefused

        with opened() as broker:
            from sagastream.broker.exchange import run
            from sagastream.client.blocking import SagaClient
            from sagastream.client.evidence import survey
            from sagastream.core.why_out import nobody
            from sagastream.store import layout

            keys = layout.check(broker)
            actor = user_at_host() if by is None else by
            try:
                heard: Heard = getattr(SagaClient(broker), verb)(service, command, reason=reason, actor=actor)
            except MalformedMessage as error:
                raise click.UsageError(safe(in_options(str(error)))) from None
            except (RequestRefused, redis.exceptions.NoPermissionError) as error:
                raise click.ClickException(safe(str(error))) from None
            click.echo(safe(_told(verb, heard)))
            if verb == "pause":
                evidence = run(broker.client, survey(keys, [service]))
                facts = evidence.of(service)
                if not facts.ever_was and (cause := nobody(facts, evidence.names, evidence.now_ms)) is not None:
                    click.echo(safe(f"note: {cause.text}"), err=True)
                elif command is not None and facts.published is not None and command not in facts.published:
                    click.echo(safe(f"note: service {service} publishes no command {command}"), err=True)

    return ask


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
    """List what is paused, since when, by whom and why."""
    with opened(create=False) as broker:
        from sagastream.broker.exchange import run
        from sagastream.core.why_waits import pause_told
        from sagastream.store import layout, pauses, sagas
        from sagastream.store.columns import iso

        keys = layout.look(broker)
        found = run(broker.client, pauses.read(keys))
        _, now_ms = sagas.read(broker.client, keys, [])
        for one in found:
            said: dict[str, Any] = {"service": one.service, "command": one.command, "reason": one.reason}
            said |= {"actor": one.actor, "since": iso(one.since_ms) if one.since_ms else None}
            click.echo(json.dumps(said) if as_json else safe(pause_told(one, now_ms)))
        if not found and not as_json:
            click.echo("nothing is paused")


#: All of them.
COMMANDS: Final = (*(_verb(verb, text) for verb, text in _VERBS.items()), paused)
