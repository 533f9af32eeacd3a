"""The port at which a process tells its figures, in the formats of Prometheus.

One thread answers one request after another, and only `/metrics`. So if somebody asks too much, only others who ask
have to wait, and not for long.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from errno import EACCES, EADDRINUSE
from http.server import BaseHTTPRequestHandler, HTTPServer
from socket import AF_INET6, SHUT_RDWR
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any, Final

from sagastream.console import printable, summary
from sagastream.errors import PackageMissing, SagastreamError
from sagastream.metrics.tally import Sample, Times

if TYPE_CHECKING:
    from prometheus_client.core import Metric as Family

#: For how long one who asks may send nothing, and how long all of it may take, with the answer; in seconds.
_PATIENCE_S: Final = 5.0
_ALTOGETHER_S: Final = 15.0
_MISSING: Final = "the metrics need prometheus-client: pip install 'sagastream[metrics]'"

#: Gives all that is to be told.
Samples = Callable[[], Iterable[Sample]]


class _Collector:
    """Samples as the families of prometheus_client."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def collect(self) -> Iterator["Family"]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        families: dict[str, Any] = {}
        kinds: dict[str, Any] = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}
        for metric, labels, value in self._samples():
            if (family := families.get(metric.name)) is None:
                make = kinds.get(metric.kind, HistogramMetricFamily)
                family = families[metric.name] = make(metric.name, metric.text, labels=metric.labels)
            if isinstance(value, Times):
                family.add_metric(labels, _buckets(value), value.sum)
            else:
                family.add_metric(labels, value)
        yield from families.values()


def _buckets(times: Times) -> list[tuple[str, int]]:
    """The buckets as Prometheus has them: each counts all that is at most its bound."""
    total, found = 0, []
    for bound, number in zip((*map(str, times.bounds), "+Inf"), list(times.counts), strict=True):
        total += number
        found.append((bound, total))
    return found


def text(samples: Samples) -> str:
    """All of it, in the text format of Prometheus. Raises PackageMissing."""
    registry = _registry(samples, own_process=False)
    from prometheus_client.exposition import generate_latest

    return generate_latest(registry).decode()


def _registry(samples: Samples, *, own_process: bool) -> Any:
    try:
        from prometheus_client import CollectorRegistry, ProcessCollector
    except ModuleNotFoundError:
        raise PackageMissing(_MISSING) from None
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(samples))
    if own_process:
        ProcessCollector(registry=registry)  # its CPU time, its memory, when it started
    return registry


@contextmanager
def told_at(port: int | None, host: str, samples: Samples) -> Iterator[None]:
    """While this goes on, a thread tells the figures at this port. None: nothing is told.

    Raises SagastreamError if nothing can listen there, and PackageMissing.
    """
    if port is None:
        yield
        return
    server = _Server.at(host, port, _registry(samples, own_process=True))
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def check_free(port: int, host: str, *, of: str) -> None:
    """Raises SagastreamError if nothing can listen at this port, at which the metrics of this process would be told."""
    _Server.at(host, port, None, of=f" of {of}").server_close()


class _Server(HTTPServer):
    registry: Any

    @classmethod
    def at(cls, host: str, port: int, registry: Any, *, of: str = "") -> "_Server":
        kind = type(cls.__name__, (cls,), {"address_family": AF_INET6}) if ":" in host else cls
        try:
            server: _Server = kind((host, port), _Handler)
        except (OSError, OverflowError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or str(error)
            helps = "; choose another port" if getattr(error, "errno", None) in (EADDRINUSE, EACCES) else ""
            raise SagastreamError(f"the metrics{of} cannot be told at {host}, port {port}: {why}{helps}") from None
        server.registry = registry
        return server

    def server_bind(self) -> None:
        """As HTTPServer, without its look-up of the host's name, which may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """One who asked has gone away: that is nobody's fault here."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _PATIENCE_S
    server_version = "sagastream"
    sys_version = ""

    def handle(self) -> None:
        # The socket has a timeout for each read: who sends a byte now and then would keep all others waiting.
        end = threading.Timer(_ALTOGETHER_S, self._hang_up)
        end.daemon = True
        end.start()
        try:
            super().handle()
        finally:
            end.cancel()

    def _hang_up(self) -> None:
        with suppress(OSError):  # it has gone already
            self.connection.shutdown(SHUT_RDWR)

    def do_GET(self) -> None:
        from prometheus_client.exposition import choose_encoder

        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404, "only /metrics is here")
            return
        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        try:
            body = encode(self.server.registry)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next one may be answered
            self.send_error(500, "the figures cannot be told", printable(summary(error)))
            return
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the method it replaces
        """Nothing: a scrape is nothing that somebody should know."""
