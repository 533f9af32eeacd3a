"""The commands for whole stores: make one, make a key for its sealed values."""

from typing import Final

import click

from sagastream_bridge.commands.context import opened, orderly
from sagastream_bridge.commands.terminal import counted


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
        from sagastream.store.layout import Layout, check_number

        broker.check_server()
        if partitions is not None:
            check_number(broker, partitions)
        layout = Layout(broker.prefix, partitions)
        number = counted(len(run(broker.client, layout.opened()).partitions), "partition")
        name = f"the store {broker.prefix}"
        click.echo(f"made {name}, with {number}" if layout.is_new else f"{name} is there already, with {number}")


@click.command("new-key")
@click.argument("key_id", metavar="ID")
def new_key(key_id: str) -> None:
    """Print a new key for sealed values, as a line of the file that SAGASTREAM_KEYS names.

    The first key of the file seals, and all of them open.
    """
    with orderly():
        from sagastream.codecs.keyring import Keyring, line_of

        click.echo(line_of(key_id, Keyring.new_key()))


#: All of them.
COMMANDS: Final = (init, new_key)
