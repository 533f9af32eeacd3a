"""The command `sagastream check-service`."""

import shutil
import sys
import textwrap
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from sagastream_bridge.commands.context import WrongUsage, opened
from sagastream_bridge.commands.given import content, finite
from sagastream_bridge.commands.terminal import safe

if TYPE_CHECKING:
    from sagastream.broker.connection import Broker
    from sagastream_bridge.conformance.trial import Case


@click.command("check-service")
@click.argument("service")
@click.option("--command", metavar="NAME", help="The command to try; may be left out if the service has only one.")
@click.option("--params", metavar="JSON", help="Params with which the service does the command.  [default: null]")
@click.option("--rejected-params", metavar="JSON", help="Params for which it rejects the command.")
@click.option("--compensation", metavar="NAME", help="What undoes the command, if the service does not publish it.")
@click.option("--input", "saga_input", metavar="JSON", help="The input of the sagas that are tried: context.input.")
@click.option("--undo", metavar="JSON", help="What the compensation is told: context.undo.")
@click.option(
    "--cases",
    type=click.Path(allow_dash=True),
    metavar="FILE",
    help='Several commands: {"NAME": {"params": …, "rejected_params": …}, …}. - is standard input.',
)
@click.option(
    "--effects",
    metavar="COMMAND",
    help="A shell command that prints how many effects stand, of the saga in SAGA_ID or of all.",
)
@click.option(
    "--timeout",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0.1, 3600),
    callback=finite,
    metavar="SECONDS",
    help="How long an answer may take, also to a command that a dead reader held.",
)
@click.option("--yes", is_flag=True, help="Do not ask before it begins.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def check_service(service: str, effects: str | None, timeout: float, yes: bool, as_json: bool, **options: Any) -> None:
    """Check a live service, in any language, against the promises of the protocol.

    It plays the orchestrator: it sends commands, and the service does some of them for real: it reserves, charges and
    ships. So use it in test environments. Compensations undo what was done, if there are any. No worker may run on the
    store.

    Exit code 1 if a promise is broken, 2 if the service does not do the command that it is tried with.
    """
    named = options.pop("cases")
    file = None if named is None else content(named)
    with opened() as broker:
        from sagastream.store import layout
        from sagastream_bridge.conformance import report
        from sagastream_bridge.conformance.effects import Effects
        from sagastream_bridge.conformance.examination import Examination
        from sagastream_bridge.conformance.exchange import Exchange, Unfit, refuse_beside_a_worker

        cases = _cases(broker, service, timeout, file, options)
        keys = layout.check(broker)
        refuse_beside_a_worker(broker.client, keys)
        exchange = Exchange(broker.client, keys, service, timeout_s=timeout)
        probe = Effects(effects) if effects is not None else None
        try:
            if probe is not None:
                probe.count(exchange.run)  # before anything is done: the command may not be one that counts
            if cases and not yes and sys.stdin.isatty() and sys.stderr.isatty():
                _confirm(report.warning(service, cases, broker.shown_url))
            told = report.Report(click.echo, _columns(), report.width(cases), as_json=as_json)
            found = told.tell(Examination(exchange, cases, probe).findings())
        except Unfit as error:
            raise WrongUsage(safe(str(error))) from None
        click.echo(report.summary(service, Counter(finding.verdict for finding in found)), err=True)
        if any(finding.only for finding in found):
            how = "--effects COMMAND counts them" if probe is None else "why, the check effects says"
            click.echo(f"effects were not counted: {how}", err=True)
    sys.exit(1 if any(finding.verdict == "broken" for finding in found) else 0)


def _columns() -> int | None:
    """Of the terminal; None if there is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _confirm(warning: str) -> None:
    click.echo(textwrap.fill(warning, max(shutil.get_terminal_size().columns - 1, 20)), err=True)
    if not click.confirm("Go on?", err=True):
        raise click.ClickException("nothing was sent")


def _cases(
    broker: "Broker", service: str, timeout_s: float, file: bytes | None, options: dict[str, Any]
) -> "list[Case]":
    """With what to try the service; nothing if it publishes nothing and no command is named. `file`: a file of cases,
    if one was given."""
    from sagastream.core.messages import is_service
    from sagastream.errors import MalformedMessage
    from sagastream_bridge.conformance import cases

    if not is_service(service):
        raise click.BadParameter("a name is 1 to 128 characters of A-Z a-z 0-9 . _ -", param_hint="SERVICE")
    found = cases.published_by(broker, service, timeout_s, partial(click.echo, err=True))
    try:
        if file is None:
            if not found and options["command"] is None:
                return []
            return [cases.one(published=found, **options)]
        if any(value is not None for value in options.values()):
            raise WrongUsage("--cases says it all: give it alone, or the options for one command")
        return cases.read(file, found)
    except MalformedMessage as error:
        raise WrongUsage(safe(str(error))) from None
