"""The command `sagastream check-service`."""

import json
import sys
import time
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from sagastream_bridge.frame import finite, opened

if TYPE_CHECKING:
    from sagastream.broker import Broker
    from sagastream_bridge.conformance.cases import Published
    from sagastream_bridge.conformance.trial import Case


@click.command("check-service")
@click.argument("service")
@click.option("--command", metavar="NAME", help="The command to try; may be left out where the service has only one.")
@click.option("--params", metavar="JSON", help="Params with which the service does the command.  [default: null]")
@click.option("--rejected-params", metavar="JSON", help="Params for which it rejects the command.")
@click.option("--compensation", metavar="NAME", help="What undoes the command, where the service does not publish it.")
@click.option(
    "--cases",
    type=click.File("rb"),
    metavar="FILE",
    help='Several commands: {"NAME": {"params": …, "rejected_params": …}, …}. - is standard input.',
)
@click.option(
    "--effects",
    metavar="SHELL",
    help="A shell command that prints how many effects stand, of the saga in SAGA_ID or of all.",
)
@click.option(
    "--timeout",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0.1, 3600),
    callback=finite,
    metavar="SECONDS",
    help="How long an answer may take, to what a reader held that died too.",
)
@click.option("--yes", is_flag=True, help="Do not ask before it begins.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def check_service(service: str, effects: str | None, timeout: float, yes: bool, as_json: bool, **options: Any) -> None:
    """Check a live service, in whatever language, against the promises of the protocol.

    It plays the orchestrator: it sends commands, and some of them are done. It is for test environments: the service
    reserves, charges and ships. What it did is undone by the compensations, where there are some. No worker may run on
    the store.

    Exit code 1 if a promise is broken.
    """
    with opened() as broker:
        from sagastream_bridge.conformance import report
        from sagastream_bridge.conformance.effects import Effects
        from sagastream_bridge.conformance.examination import Examination
        from sagastream_bridge.conformance.exchange import Exchange, refuse_beside_a_worker

        cases = _cases(broker, service, timeout, options)
        refuse_beside_a_worker(broker.client)
        exchange = Exchange(broker.client, service, timeout_s=timeout)
        if not yes and sys.stdin.isatty() and sys.stderr.isatty():
            click.confirm(report.warning(service, cases, broker.shown_url), abort=True, err=True)
        counts: Counter[str] = Counter()
        probe = Effects(effects) if effects is not None else None
        width = report.width(cases)
        for finding in Examination(exchange, cases, probe).findings():
            counts[finding.verdict] += 1
            if as_json:
                click.echo(json.dumps(asdict(finding)))
            elif sys.stdout.isatty():
                for line in report.rows(finding, width):
                    click.echo(line)
            else:
                click.echo(report.line(finding))
        click.echo(report.summary(service, counts), err=True)
    sys.exit(1 if counts["broken"] else 0)


def _cases(broker: "Broker", service: str, timeout_s: float, options: dict[str, Any]) -> "list[Case]":
    from sagastream.errors import MalformedMessage
    from sagastream.messages import is_id
    from sagastream_bridge.conformance import cases

    if not is_id(service):
        raise click.BadParameter("a name is 1 to 128 characters of A-Z a-z 0-9 . _ : -", param_hint="SERVICE")
    found = _published(broker, service, timeout_s)
    file = options.pop("cases")
    try:
        if file is None:
            return [cases.one(published=found, **options)]
        if any(value is not None for value in options.values()):
            raise click.UsageError("--cases says it all: give it alone, or the options for one command")
        return cases.read(file.read(), found)
    except MalformedMessage as error:
        raise click.UsageError(str(error)) from None


def _published(broker: "Broker", service: str, timeout_s: float) -> "Published":
    """What the service publishes, once it has come."""
    from sagastream import keys, published
    from sagastream_bridge.frame import safe

    deadline, told = time.monotonic() + timeout_s, False
    while not broker.client.exists(keys.published(service), keys.commands(service)):
        if time.monotonic() >= deadline:
            begin = keys.published("")
            found = broker.client.scan_iter(keys.published("*"), 1000)
            there = sorted(key.decode(errors="backslashreplace").removeprefix(begin) for key in found)
            which = f"; there are: {', '.join(there[:20])}" if there else ""
            raise click.ClickException(safe(f"no service {service} is at {broker.shown_url}: start it there{which}"))
        if not told:
            told = True
            click.echo(f"waiting for the service {service}", err=True)
        time.sleep(0.05)
    return published.read(broker.client, [service]).get(service, {})
