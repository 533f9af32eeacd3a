"""The command that prints the user of a role."""

from typing import Final

import click

from sagastream_bridge.commands.context import WrongUsage, orderly

#: As sagastream.store.roles.Role has them: importing it would make every start of the command line slower.
ROLES: Final = (
    *("worker", "service", "rq-worker", "client", "begin-only", "bridge"),
    *("inspector", "operator", "deployer", "doctor"),
)


@click.command()
@click.argument("role", type=click.Choice(ROLES))
@click.option("--service", metavar="NAME", help="The service of a service or rq-worker; the one that a bridge plays.")
@click.option(
    "--queue", "queues", metavar="NAME", multiple=True, help="A queue of RQ in which steps of the service run."
)
@click.option("--user", metavar="NAME", help="The name of the user  [default: the service, or the role]")
@click.option(
    "--partitions",
    default=1,
    show_default=True,
    type=click.IntRange(1, 256),
    envvar="SAGASTREAM_PARTITIONS",
    show_envvar=True,
    help="Into how many the store is divided.",
)
@click.option("--cluster", is_flag=True, help="The store is on a cluster. Make the user on each of its nodes.")
def acl(
    *, role: str, service: str | None, queues: tuple[str, ...], user: str | None, partitions: int, cluster: bool
) -> None:
    """Print the line that makes a user of Redis who may do what a process of this role does, and nothing else.

    The line sets no password, and keeps the one that the user has. So use it again after an upgrade:

      sagastream acl worker | redis-cli; redis-cli ACL SETUSER worker '>secret'

    Each node of a cluster has users of its own, so make it on all of them:

      sagastream acl worker --cluster | xargs redis-cli --cluster call HOST:PORT
    """
    with orderly():
        from sagastream.broker.connection import prefix_of
        from sagastream.core.messages import is_service
        from sagastream.store.roles import Role, patterns, rules

        if service is None and role in (Role.SERVICE, Role.RQ_WORKER):
            raise WrongUsage(f"the role {role} belongs to one service: name it with --service NAME")
        for option, names in (("--service", [service]), ("--queue", queues), ("--user", [user])):
            if not all(name is None or is_service(name) for name in names):
                raise click.BadParameter("a name is 1 to 128 characters of A-Z a-z 0-9 . _ -", param_hint=option)
        try:
            words = rules(Role(role), patterns(prefix_of(), partitions, cluster=cluster), service, queues)
        except ValueError as error:
            raise WrongUsage(str(error)) from None
        words = ["ACL", "SETUSER", user or service or role, *words]
        click.echo(" ".join(f'"{word}"' if " " in word else word for word in words))
