"""The commands that ask something of a saga that is there: cancel, retry, skip, abandon, signal."""

import re
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from sagastream_bridge.commands import bulk
from sagastream_bridge.commands.context import WrongUsage, actor_option, opened, own_words, reason_option
from sagastream_bridge.commands.given import finite, json_or_file
from sagastream_bridge.commands.searching import search_options, taken
from sagastream_bridge.commands.terminal import safe, say

if TYPE_CHECKING:
    from collections.abc import Callable

    from sagastream.client.blocking import SagaClient
    from sagastream.core.causes import Cause
    from sagastream.core.saga import SagaState

#: The help text of each of an operator's verbs.
_VERBS: Final = {
    "cancel": "Cancel a saga: it goes back when the commands that are out are answered, but not after its pivot. With "
    "--now it goes back at once: what is out may have been done, and is undone too.",
    "retry": "Let a parked saga try again what it is parked at. Exit code 3 if it is parked again at once.",
    "skip": "Let a parked saga go on as if the step or compensation that it is parked at were done.",
    "abandon": "Let a parked saga end as it is, ABORTED; what was not undone stays.",
}


#: What the help of each says of many sagas.
_MANY: Final = (
    "In place of ID, a search says which sagas are meant, as for `sagastream list`. It shows how many there are, and "
    "ten of them, and asks. Workers then do it, one saga after the other: `sagastream bulk`."
)

#: How members of a request are named in errors, and their options.
_OPTIONS: Final = (
    (r"^(?:the request: )?actor must", "--actor must"),
    (r"^(?:the request: )?reason must", "--reason must"),
    (r"^(?:the request: )?step must", "--step must"),
    (r"^decline must", "--decline must"),
    (r"^the signal: name must", "NAME must"),
    (r"^the signal: saga_id must", "ID must"),
    (r"say with step which one is meant$", "say with --step which one is meant"),
    (r"abandon it with now,", "abandon it with --now,"),
    (r"^(?:the request: )?parked_at must", "--parked-at must"),
    (r"cancel with parked_at (\S+), without now$", r"cancel with --parked-at \1, without --now"),
    (r"cancel with parked_at (\S+)$", r"cancel with --parked-at \1"),
)


_NOW: Final = {
    "cancel": "Do not wait for the answers to the commands that are out.",
    "abandon": "Even while commands of other steps are out: they may be done all the same.",
}
_STEP: Final = "The number or id of the step that is meant, if several are parked."

timeout_option = click.option(
    "--timeout",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0, 86400),
    callback=finite,
    metavar="SECONDS",
    help="How long to wait for a worker to do it. If none does, one will do it later.",
)


def _verb(verb: str, help_text: str) -> click.Command:
    @click.command(verb, help=f"{help_text}\n\n{_MANY}")
    @click.argument("saga_id", metavar="[ID]", required=False)
    @reason_option("Why. It stays with the saga, for others to read.")
    @actor_option("it stays with the saga too")
    @click.option(
        "--parked-at",
        metavar="PLACE",
        help="Where you saw it parked, as `sagastream show` prints it. If it has moved since, nothing is done."
        + (" With it, a cancel says that the step was not done." if verb == "cancel" else ""),
    )
    @timeout_option
    @search_options
    @click.option("--rate", type=click.IntRange(1, 2000), help="Ask at most this many a second.  [default: 200]")
    @click.option("--yes", is_flag=True, help="Of many: do not ask whether they are meant.")
    def command(
        *, saga_id: str | None, reason: str, actor: str, timeout: float, rate: int | None, yes: bool, **options: Any
    ) -> None:
        if _is_of_many(saga_id, search := taken(options), options, rate=rate, yes=yes):
            now = options.get("now", False)
            return bulk.begin(verb, reason, actor, rate=rate or 200, yes=yes, now=now, search=search)
        assert saga_id is not None

        def ask(client: "SagaClient") -> "SagaState":
            state: SagaState = getattr(client, verb)(saga_id, reason, timeout, actor=actor, **options)
            return state

        return asked(saga_id, verb, ask, step=options.get("step"))

    more = []
    if verb in ("cancel", "abandon"):
        more.append(click.option("--now", is_flag=True, help=_NOW[verb]))
    if verb != "cancel":
        more.append(click.option("--step", metavar="STEP", callback=_number_or_id, help=_STEP))
    for option in more:
        command = option(command)
    return command


def _is_of_many(
    saga_id: str | None, search: dict[str, Any], options: dict[str, Any], *, rate: int | None, yes: bool
) -> bool:
    """Whether a verb is for the sagas of a search, and not for the one of this id. Raises WrongUsage if that is not
    clear, or if an option does not go with it."""
    searches = any(value not in (None, ()) for value in search.values())
    if searches == (saga_id is not None):
        text = "name a saga, or say with a search which ones are meant, such as --where"
        raise WrongUsage(f"{text}; not both" if searches else text)
    if searches and (options.get("parked_at") or options.get("step")):
        raise WrongUsage("--parked-at and --step are for one saga; for many: --parked COMMAND")
    if not searches and (yes or rate is not None):
        raise WrongUsage("--yes and --rate are for many sagas")
    return searches


def asked(saga_id: str, verb: str, ask: "Callable[[SagaClient], SagaState]", *, step: int | str | None = None) -> None:
    """Send a request about a saga by `ask`, and tell how the saga is then. Exits with code 3 if it is parked; if the
    request names a step, only if it is parked at that step."""
    import redis

    from sagastream.broker.failures import is_refusal, told
    from sagastream.errors import MalformedMessage, RequestRefused, UnknownSaga

    with opened(create=False) as broker:
        from sagastream.client.blocking import SagaClient
        from sagastream.store import layout

        client = SagaClient(broker)
        layout.check(broker)
        try:
            state = ask(client)
        except MalformedMessage as error:
            raise WrongUsage(safe(in_options(str(error)))) from None
        except RequestRefused as error:
            where = f" in the store {broker.store}" if isinstance(error, UnknownSaga) else ""
            raise click.ClickException(safe(in_options(str(error)) + where)) from None
        except TimeoutError as error:
            raise click.ClickException(safe(str(error))) from None
        except redis.RedisError as error:
            if is_refusal(error):
                raise
            arrived = f"the {verb} of saga {saga_id} may have arrived: look with sagastream show {saga_id}"
            raise click.ClickException(safe(f"{told(error)}; {arrived}")) from None
        keeps = _what_keeps(client, state)
    parked = [number for number in state.parked_steps if step is None or number == state.number_of(step)]
    then = state.reason
    if not state.ended:
        then = f"parked: {state.steps[parked[0] - 1].parked}" if parked else f"waits for {state.waiting_for}"
    click.echo(safe(f"{state.saga_id} {state.status}" + (f": {then}" if then else "")))
    if parked:
        click.echo(f"sagastream show {state.saga_id}  # says what you can do", err=True)
    for cause in keeps:
        say(f"note: {cause.text}", err=True)
        for line in cause.do:
            click.echo(f"      {safe(line)}", err=True)
    sys.exit(3 if parked else 0)


def _what_keeps(client: "SagaClient", state: "SagaState") -> "list[Cause]":
    """Why a saga that goes on may not come far by itself: the causes about which somebody can do something."""
    import redis

    from sagastream.core.causes import CauseKind
    from sagastream.errors import SagastreamError

    if state.ended or state.parked:
        return []
    try:
        causes = client.why(state.saga_id)
    except (redis.RedisError, SagastreamError):  # what was asked is done
        return []
    usual = (CauseKind.AWAITS_SIGNAL, CauseKind.AWAITS_RETRY, CauseKind.PARKED)
    return [cause for cause in causes if cause.do and cause.kind not in usual]


def _number_or_id(_context: click.Context, _option: click.Parameter, value: str | None) -> int | str | None:
    return int(value) if value is not None and value.isascii() and value.isdecimal() else value


@click.command()
@click.argument("saga_id", metavar="ID")
@click.argument("name")
@click.option(
    "--payload", metavar="JSON|@FILE", help="The result of the step that waits; any JSON value  [default: null]"
)
@click.option(
    "--decline",
    metavar="TEXT",
    callback=own_words,
    help="In place of a payload: why the step fails; it stays with the saga.",
)
@actor_option("it stays with the saga too")
@timeout_option
def signal(saga_id: str, name: str, payload: str | None, actor: str, **options: Any) -> None:
    """Send the signal NAME to a saga: one of its steps waits for it, or will wait for it."""
    value = None if payload is None else json_or_file(payload, "--payload")

    def ask(client: "SagaClient") -> "SagaState":
        return client.signal(saga_id, name, value, options["timeout"], decline=options["decline"], actor=actor)

    asked(saga_id, "signal", ask)


def in_options(text: str) -> str:
    """A text that names members of a request, with the names of their options instead."""
    for named, option in _OPTIONS:
        text = re.sub(named, option, text)
    return text


#: All of them.
COMMANDS: Final = (*(_verb(verb, text) for verb, text in _VERBS.items()), signal)
