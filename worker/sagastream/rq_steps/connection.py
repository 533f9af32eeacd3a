"""RQ's own client of its server. It follows the master if the url names Sentinels, which RQ's command line cannot."""

from typing import Any, Self

import redis

from sagastream.broker import sentinel, urls


class Connection(redis.Redis):
    """`rq worker -w sagastream.rq_runner.SagaWorker --connection-class sagastream.rq_runner.Connection QUEUE…`"""

    @classmethod
    def from_url(cls, url: str, *args: Any, **options: Any) -> Self:
        """A client with the options that redis-py has by default, since RQ sets its own. Raises ValueError."""
        urls.check_one(url)
        if urls.names_sentinels(url):
            options |= sentinel.options(url)
            url = urls.sentinels(url).server
        client: Self = super().from_url(url, *args, **options)  # type: ignore[assignment]  # redis-py says Redis
        return client
