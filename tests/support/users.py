"""Users of a server, each with the rights of one role."""

from typing import Any

import redis

from sagastream.broker.connection import Broker, connect
from sagastream.store.roles import Role, patterns, rules
from support.clusters import Cluster
from support.servers import Server


class Users:
    """Makes users on a server, or on all nodes of a cluster, and tells what was refused to them."""

    def __init__(self, server: Server | Cluster, *, partitions: int = 1, prefix: str = "saga") -> None:
        self._url = server.url
        self._brokers: list[Broker] = server.brokers
        self._keys = patterns(prefix, partitions, cluster=isinstance(server, Cluster))
        self._prefix = prefix
        self._admins: list[Any] = list(server.broker().servers().values())  # their execute_command has no types

    def url(self, role: Role, service: str | None = None, *, queues: tuple[str, ...] = ()) -> str:
        """Where a user with this role connects; the user is made."""
        name = service or str(role)
        for admin in self._admins:
            admin.execute_command("ACL", "SETUSER", name, ">secret", *rules(role, self._keys, service, queues))
        return self._url.replace("://", f"://{name}:secret@")

    def broker(self, role: Role, service: str | None = None) -> Broker:
        broker = Broker(self.url(role, service), prefix=self._prefix)
        self._brokers.append(broker)
        return broker

    def client(self, role: Role, service: str | None = None) -> redis.Redis:
        return connect(self.url(role, service))

    def refused(self) -> list[tuple[str, str, str]]:
        """What was refused to users so far: the user, why, and what."""
        log = [entry for admin in self._admins for entry in admin.acl_log()]
        return [(entry["username"], entry["reason"], entry["object"]) for entry in log]
