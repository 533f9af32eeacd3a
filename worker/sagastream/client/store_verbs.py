"""What somebody asks of a store: pauses, bulks, quarantined messages, commands that nobody reads, definitions."""

import asyncio
import time
from collections.abc import Sequence
from typing import Unpack

from sagastream.client.access import Access, AsyncAccess
from sagastream.client.definition import Definition, deployable, deployer
from sagastream.client.listing import Search
from sagastream.core.bulks import USUAL_RATE, Bulk, BulkResult, BulkVerb
from sagastream.core.messages import Verb
from sagastream.core.pauses import Pause
from sagastream.store import bulks, definitions, operations, pauses, quarantine, unread
from sagastream.store.definitions import Deployed
from sagastream.store.finding import to_filter
from sagastream.store.keys import StoreKeys
from sagastream.store.operations import Operation
from sagastream.store.pauses import Heard, Written
from sagastream.store.quarantine import Newest, Quarantined
from sagastream.store.unread import DroppedCommands


class StoreVerbs(Access):
    """For callers that block."""

    def pause(self, service: str, command: str | None = None, *, reason: str, actor: str | None = None) -> Heard:
        """Pause a service, or one of its commands: workers send nothing of it, no retries and no compensations
        either. What is out is finished and answered. Steps that would be sent are held until it is resumed; the
        deadlines of their sagas still count.

        Returns as soon as the workers that run have read it, usually within a second; until then, one may still send.
        What is returned names these workers, those that had not read it after 5 s, and those of an earlier release,
        which know no pauses. If it is paused already, the reason and the actor are written anew;
        `before` of what is returned is that pause. After `resume`, `left` is what else of the service stays paused.

        Args:
            service: its name. The store need not know it yet.
            command: the name of a command or a compensation; None: all of them.
            reason: why; it is shown wherever a saga waits for it.
            actor: who pauses it.

        Raises:
            MalformedMessage: a name, the reason or the actor is not valid.
            RequestRefused: 1,024 services and commands are paused.
            redis.exceptions.NoPermissionError: the user does not have the role operator.
            redis.RedisError: the broker is away. Pause it again: nothing is done twice.
        """
        keys = self._opened()
        return self._heard(keys, self._run(pauses.pause(keys, service, command, reason, actor)))

    def resume(self, service: str, command: str | None = None, *, reason: str, actor: str | None = None) -> Heard:
        """Resume what was paused by this very name: workers send what was held, within seconds. Arguments as for
        `pause`; what is returned has the pause that has ended.

        Raises as `pause` does; RequestRefused if it is not paused.
        """
        keys = self._opened()
        return self._heard(keys, self._run(pauses.resume(keys, service, command, reason, actor)))

    def paused(self) -> Sequence[Pause]:
        """All that is paused, by name."""
        return self._run(pauses.read(self._looked()))

    def _heard(self, keys: StoreKeys, written: Written) -> Heard:
        until = time.monotonic() + pauses.WAIT_S
        while (heard := self._run(pauses.heard(keys, written))).late and time.monotonic() < until:
            time.sleep(pauses.LOOK_EVERY_S)
        return heard

    def begin_bulk(
        self,
        verb: BulkVerb | Verb,
        reason: str,
        *,
        actor: str | None = None,
        rate: int = USUAL_RATE,
        now: bool = False,
        **search: Unpack[Search],
    ) -> Bulk:
        """Have workers retry, skip, abandon or cancel all sagas that `find` would find now. Returns at once; the bulk
        goes on without this process. Each saga gets an ordinary request of an operator, which it does or refuses.

        Args:
            verb: "retry", "skip", "abandon" or "cancel".
            reason: why; it stays with each saga.
            actor: who asks; it stays with each saga too.
            rate: at most so many requests a second.
            now: as for `cancel` and `abandon`.

        The other arguments are those of `find`; at least one is needed. Without a `status`, a cancel is for sagas that
        are PENDING, and the other verbs for those that are parked. With `parked`, only steps are meant that are parked
        there. If several steps of a saga are meant, each is retried or skipped.

        Raises:
            MalformedMessage: an argument is not valid, or no saga can be as is asked for.
            RequestRefused: there are 1,000 bulks that have not ended.
            TypeError: an age is not a timedelta.
            redis.exceptions.NoPermissionError: the user has not the role operator.
            redis.RedisError: the broker is away. The bulk may have begun: see `bulks`.
        """
        asking = bulks.begin(self._opened(), verb, to_filter(**search), reason=reason, actor=actor, rate=rate, now=now)
        return self._run(asking)

    def bulks(self) -> Sequence[Bulk]:
        """The bulks of the store, those first that began last. Each is kept for 7 days after it last went on."""
        return self._run(bulks.listed(self._looked()))

    def bulk(self, bulk_id: str) -> Bulk:
        """A bulk, and how far it has come. Raises RequestRefused if there is none."""
        return self._run(bulks.load(self._looked(), bulk_id))

    def bulk_results(self, bulk_id: str) -> Sequence[BulkResult]:
        """What has come of each request of a bulk, the oldest first; of a very large bulk, of the newest ones. What a
        saga did after that is in the saga."""
        return self._run(bulks.results(self._looked(), bulk_id))

    def pause_bulk(self, bulk_id: str, *, reason: str | None = None, actor: str | None = None) -> Bulk:
        """Pause a bulk: no more sagas are asked until it is resumed. A part that was asked already, at most 50 sagas,
        is done. Returns the bulk after that.

        Raises MalformedMessage, RequestRefused if it is not RUNNING, or there is none; NoPermissionError and RedisError
        as `begin_bulk` does.
        """
        return self._turned(bulk_id, "pause", reason, actor)

    def resume_bulk(self, bulk_id: str, *, reason: str | None = None, actor: str | None = None) -> Bulk:
        """Let a paused bulk go on where it was. See `pause_bulk`."""
        return self._turned(bulk_id, "resume", reason, actor)

    def stop_bulk(self, bulk_id: str, *, reason: str | None = None, actor: str | None = None) -> Bulk:
        """End a bulk for ever: no more sagas are asked. See `pause_bulk`."""
        return self._turned(bulk_id, "stop", reason, actor)

    def _turned(self, bulk_id: str, verb: str, reason: str | None, actor: str | None) -> Bulk:
        return self._run(bulks.turn(self._opened(), bulk_id, verb, actor=actor, reason=reason))

    def quarantined(self, limit: int = 50) -> Newest:
        """The messages that were set aside, the newest first, at most so many. Each has an `id`, the `reason`, and
        the message itself. If nodes of a cluster are away, their messages are left out; `partitions_away` of the list
        says of which partitions. If partition 0 is away, all messages that services set aside are left out."""
        return self._run(quarantine.newest(self._looked(), limit))

    def replay_quarantined(self, entry_id: str, *, reason: str | None = None, actor: str | None = None) -> Quarantined:
        """Put a message that was set aside back into the stream from which it came, to be read again.

        Args:
            entry_id: the `id` of the message.
            reason: why; `operations` tells it.
            actor: who asks; it is told, too.

        Raises:
            QuarantineError: there is no such message any more, or it cannot be put back.
            MalformedMessage: the reason or the actor is not valid.
            redis.RedisError: the broker is away. It may have been put back: look first.
        """
        return self._run(quarantine.replay(self._opened(), entry_id, actor=actor, reason=reason))

    def drop_quarantined(self, entry_id: str, *, reason: str | None = None, actor: str | None = None) -> Quarantined:
        """Delete a message that was set aside. Arguments and errors are those of `replay_quarantined`."""
        return self._run(quarantine.drop(self._opened(), entry_id, actor=actor, reason=reason))

    def drop_commands(self, service: str, *, reason: str | None = None, actor: str | None = None) -> DroppedCommands:
        """Delete the commands of a service that does not run: those that no process has read and no saga waits for.
        If nothing is left of the service, and it has never published a command, its name is forgotten, too.

        Args:
            service: its name.
            reason: why; `operations` tells it.
            actor: who asks; it is told, too.

        Returns how many were dropped, and what was kept.

        Raises:
            MalformedMessage: the name, the reason or the actor is not valid.
            RequestRefused: a process of the service is alive.
            redis.exceptions.NoPermissionError: the user does not have the role operator.
            redis.RedisError: the broker is away, or the node that knows who is at work. You can call this again.
        """
        return self._run(unread.drop(self._opened(), service, actor=actor, reason=reason))

    def operations(self, limit: int = 50) -> Sequence[Operation]:
        """What people did that no saga tells of, the newest first, at most so many: what they paused, resumed, put
        back or dropped, and their bulks. The newest 10,000 are kept."""
        return self._run(operations.newest(self._looked(), limit))

    def deploy(self, definition: Definition, *, actor: str | None = None) -> int | None:
        """Keep this version of a definition in the store, and make it the current one. Sagas that have begun stay as
        they are. Returns the version that was current before; None: none was.

        Args:
            actor: who deploys it, for people.

        Raises:
            DefinitionError: the store has other content under this version.
            MalformedMessage: its schema is not a JSON Schema, or its example is not as the schema says.
            PackageMissing: it has a schema, and the package that checks it is not installed.
            redis.exceptions.NoPermissionError: the user has not the role deployer.
            redis.RedisError: the broker is away. Deploy it again: nothing is done twice.
        """
        return self._run(definitions.deploy(self._opened(), deployable(definition), deployer(actor)))

    def definition(self, name: str, version: int | None = None) -> Definition:
        """A definition of the store, in its current version or in another one. Raises DefinitionError if there is
        none."""
        return Definition.of(self._run(definitions.load(self._looked(), name, version)))

    def definitions(self) -> Sequence[Deployed]:
        """All definitions of the store, by name, each with all its versions."""
        return self._run(definitions.listed(self._looked()))


class AsyncStoreVerbs(AsyncAccess):
    """For event loops. The arguments, results and errors are those of StoreVerbs."""

    async def pause(self, service: str, command: str | None = None, *, reason: str, actor: str | None = None) -> Heard:
        """Pause a service, or one of its commands. See SagaClient.pause."""
        keys = await self._opened()
        return await self._heard(keys, await self._run(pauses.pause(keys, service, command, reason, actor)))

    async def resume(self, service: str, command: str | None = None, *, reason: str, actor: str | None = None) -> Heard:
        """Resume what was paused by this very name. See SagaClient.resume."""
        keys = await self._opened()
        return await self._heard(keys, await self._run(pauses.resume(keys, service, command, reason, actor)))

    async def paused(self) -> Sequence[Pause]:
        """All that is paused, by name."""
        return await self._run(pauses.read(await self._looked()))

    async def _heard(self, keys: StoreKeys, written: Written) -> Heard:
        until = time.monotonic() + pauses.WAIT_S
        while (heard := await self._run(pauses.heard(keys, written))).late and time.monotonic() < until:
            await asyncio.sleep(pauses.LOOK_EVERY_S)
        return heard

    async def begin_bulk(
        self,
        verb: BulkVerb | Verb,
        reason: str,
        *,
        actor: str | None = None,
        rate: int = USUAL_RATE,
        now: bool = False,
        **search: Unpack[Search],
    ) -> Bulk:
        """Have workers act on all sagas that `find` would find now. See SagaClient.begin_bulk."""
        asking = bulks.begin(
            await self._opened(), verb, to_filter(**search), reason=reason, actor=actor, rate=rate, now=now
        )
        return await self._run(asking)

    async def bulks(self) -> Sequence[Bulk]:
        """The bulks of the store, those first that began last."""
        return await self._run(bulks.listed(await self._looked()))

    async def bulk(self, bulk_id: str) -> Bulk:
        """A bulk, and how far it has come. Raises RequestRefused if there is none."""
        return await self._run(bulks.load(await self._looked(), bulk_id))

    async def bulk_results(self, bulk_id: str) -> Sequence[BulkResult]:
        """What has come of each request of a bulk. See SagaClient.bulk_results."""
        return await self._run(bulks.results(await self._looked(), bulk_id))

    async def pause_bulk(self, bulk_id: str, *, reason: str | None = None, actor: str | None = None) -> Bulk:
        """Pause a bulk. See SagaClient.pause_bulk."""
        return await self._turned(bulk_id, "pause", reason, actor)

    async def resume_bulk(self, bulk_id: str, *, reason: str | None = None, actor: str | None = None) -> Bulk:
        """Let a paused bulk go on where it was. See `pause_bulk`."""
        return await self._turned(bulk_id, "resume", reason, actor)

    async def stop_bulk(self, bulk_id: str, *, reason: str | None = None, actor: str | None = None) -> Bulk:
        """End a bulk for ever: no more sagas are asked. See `pause_bulk`."""
        return await self._turned(bulk_id, "stop", reason, actor)

    async def _turned(self, bulk_id: str, verb: str, reason: str | None, actor: str | None) -> Bulk:
        return await self._run(bulks.turn(await self._opened(), bulk_id, verb, actor=actor, reason=reason))

    async def quarantined(self, limit: int = 50) -> Newest:
        """The messages that were set aside. See SagaClient.quarantined."""
        return await self._run(quarantine.newest(await self._looked(), limit))

    async def replay_quarantined(
        self, entry_id: str, *, reason: str | None = None, actor: str | None = None
    ) -> Quarantined:
        """Put a message that was set aside back. See SagaClient.replay_quarantined."""
        return await self._run(quarantine.replay(await self._opened(), entry_id, actor=actor, reason=reason))

    async def drop_quarantined(
        self, entry_id: str, *, reason: str | None = None, actor: str | None = None
    ) -> Quarantined:
        """Delete a message that was set aside. See SagaClient.drop_quarantined."""
        return await self._run(quarantine.drop(await self._opened(), entry_id, actor=actor, reason=reason))

    async def drop_commands(
        self, service: str, *, reason: str | None = None, actor: str | None = None
    ) -> DroppedCommands:
        """Delete the commands of a service that does not run. See SagaClient.drop_commands."""
        return await self._run(unread.drop(await self._opened(), service, actor=actor, reason=reason))

    async def operations(self, limit: int = 50) -> Sequence[Operation]:
        """What people did that no saga tells of. See SagaClient.operations."""
        return await self._run(operations.newest(await self._looked(), limit))

    async def deploy(self, definition: Definition, *, actor: str | None = None) -> int | None:
        """Keep this version of a definition in the store, and make it the current one. See SagaClient.deploy."""
        parsed = await asyncio.to_thread(deployable, definition)  # its schema may have a costly example
        return await self._run(definitions.deploy(await self._opened(), parsed, deployer(actor)))

    async def definition(self, name: str, version: int | None = None) -> Definition:
        """A definition of the store. See SagaClient.definition."""
        return Definition.of(await self._run(definitions.load(await self._looked(), name, version)))

    async def definitions(self) -> Sequence[Deployed]:
        """All definitions of the store. See SagaClient.definitions."""
        return await self._run(definitions.listed(await self._looked()))
