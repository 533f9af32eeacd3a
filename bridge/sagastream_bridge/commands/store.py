"""The commands for whole stores: make one."""

from typing import Final

import click

from sagastream_bridge.commands.context import counted, opened


@click.command()
@click.option(
    "--partitions",
    type=click.IntRange(1, 256),
    envvar="SAGASTREAM_PARTITIONS",
    show_envvar=True,
    help="Into how many partitions it is divided, by default 1. Only export and import change it later.",
)
def init(partitions: int | None) -> None:
    """Make a store, before anything else uses it.

    The first worker, service or client makes it too, with one partition or as many as SAGASTREAM_PARTITIONS says. If
    there is one already, nothing is done; with another number of partitions than you ask for, that is an error. If only
    its key with their number was deleted, this sets the number again.
    """
    with opened() as broker:
        from sagastream.broker.exchange import run
        from sagastream.store.layout import Layout

        broker.check_server()
        keys = run(broker.client, Layout(broker.prefix, partitions).opened())
        click.echo(f"{keys.store} has {counted(len(keys.partitions), 'partition')}")


#: All of them.
COMMANDS: Final = (init,)
