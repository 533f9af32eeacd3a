"""What processes count, and how it is told."""

import os
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sagastream.core.commands import Command
from sagastream.errors import PackageMissing, SagastreamError
from sagastream.metrics import catalogue, serving
from sagastream.metrics.process import ProcessMetrics
from sagastream.metrics.service import JobMetrics, ServiceMetrics
from sagastream.metrics.serving import check_free, text, told_at
from sagastream.metrics.tally import MOST_SERIES, OTHER, Counter, Histogram, Labels, Sample, Times
from sagastream.metrics.worker import WorkerMetrics
from sagastream.telemetry import Outcome
from support.servers import free_port
from support.waiting import until

HOSTILE = 'a"b\\c\nd{e="f"} 1 # HELP \x00\u2028é'


def finished(
    metrics: ServiceMetrics, name: str = "Charge", outcome: Outcome = Outcome.OK, took_s: float = 0.02
) -> None:
    command = Command(service="till", type=name, saga_id="o-1", step=1, params=b"{}", begun_ms=0)
    metrics.handler_finished(command=command, call=1, outcome=outcome, duration_s=took_s, error=None)


def told(metrics: ProcessMetrics, name: str, **labels: str) -> float | None:
    """The value of a series, as Prometheus reads it; None: there is no such series."""
    families = text_string_to_metric_families(text(metrics.samples))
    found = [one.value for family in families for one in family.samples if (one.name, one.labels) == (name, labels)]
    return found[0] if found else None


def calls(
    metrics: ServiceMetrics, name: str = "Charge", outcome: str = "ok", what: str = "count", **le: str
) -> float | None:
    """What is told of the calls of a handler."""
    labels = {"service": "till", "command": name, "direction": "transaction", "outcome": outcome}
    return told(metrics, f"sagastream_handler_duration_seconds_{what}", **labels, **le)


def test_every_metric_is_named_as_prometheus_advises() -> None:
    for name, metric in catalogue.ALL.items():
        assert name.startswith("sagastream_")
        assert name.endswith("_total") == (metric.kind == "counter"), name
        assert bool(metric.bounds) == (metric.kind == "histogram"), name
        assert list(metric.bounds) == sorted(set(metric.bounds)), name
        assert metric.text.endswith("."), name
        assert not {"saga_id", "saga", "le"} & set(metric.labels), name


def test_calls_of_handlers_are_told_in_buckets() -> None:
    metrics = ServiceMetrics()
    for took_s in (0.02, 0.02, 0.4):
        finished(metrics, took_s=took_s)
    finished(metrics, outcome=Outcome.REJECTED)
    assert calls(metrics) == 3
    assert calls(metrics, what="sum") == pytest.approx(0.44)
    bounds = ("0.01", "0.025", "0.25", "0.5", "+Inf")
    assert [calls(metrics, what="bucket", le=bound) for bound in bounds] == [0, 2, 2, 3, 3]
    assert calls(metrics, outcome="rejected") == 1


def test_threads_that_count_at_once_lose_nothing() -> None:
    metrics, each = ServiceMetrics(), 2_000
    finished(metrics)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: finished(metrics), range(8 * each)))
    assert calls(metrics) == 8 * each + 1


def test_what_any_process_may_meet_is_counted() -> None:
    metrics = ProcessMetrics("bridge")
    assert told(metrics, "sagastream_broker_away") == 0
    metrics.outage_began(error=ValueError())
    assert told(metrics, "sagastream_broker_away") == 1
    metrics.outage_ended(duration_s=2.5)
    metrics.writes_lost(since_ms=None, evidence="x")
    for stream in ("saga:{0}:replies:till", "saga:{0}:requests", "else"):
        metrics.entry_quarantined(stream=stream, entry_id="1-0", reason="no")
    assert told(metrics, "sagastream_broker_outages_total") == 1
    assert told(metrics, "sagastream_broker_outage_seconds_total") == 2.5
    assert told(metrics, "sagastream_writes_lost_total") == 1
    kinds = ("replies", "requests", "")
    assert [told(metrics, "sagastream_quarantined_total", stream=kind) for kind in kinds] == [1, 1, 1]
    assert told(metrics, "sagastream_process_info", kind="bridge", version=version("sagastream")) == 1


def test_a_worker_tells_how_many_partitions_it_cannot_reach() -> None:
    metrics, found = WorkerMetrics(), []
    for numbers in ((), (0, 3), ()):
        metrics.partitions_away(numbers=numbers)
        found.append(told(metrics, "sagastream_partitions_away"))
    assert found == [0, 2, 0]


def test_a_hostile_name_stays_one_value_of_a_label() -> None:
    metrics = ServiceMetrics()
    finished(metrics, name=HOSTILE)
    assert calls(metrics, HOSTILE) == 1


def test_combinations_of_labels_are_bounded_too() -> None:
    histogram, counter = Histogram(catalogue.STEP_SECONDS, Labels()), Counter(catalogue.PARKED, Labels())
    for first in range(150):
        for second in range(150):
            histogram.of(f"s{first}", f"c{second}", "transaction", "ok").add(1)
            counter.add(f"s{first}", f"c{second}")
    counted = {labels: value for _, labels, value in counter.samples()}
    assert (len(counted), counted[OTHER, OTHER]) == (MOST_SERIES + 1, 150 * 150 - MOST_SERIES)
    samples = list(histogram.samples())
    assert len(samples) == MOST_SERIES + 1
    assert sum(sum(value.counts) for _, _, value in samples if isinstance(value, Times)) == 150 * 150
    assert samples[-1].labels == (OTHER,) * 4


def test_a_job_that_was_forked_is_counted_by_its_worker() -> None:
    metrics = JobMetrics()
    finished(metrics)
    child = os.fork()
    if child == 0:
        try:
            finished(metrics, outcome=Outcome.RAISED)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    until(lambda: calls(metrics, outcome="raised"), what="it is counted")
    assert calls(metrics, outcome="raised") == calls(metrics) == 1


# --- the port


def test_a_port_tells_metrics_and_nothing_else() -> None:
    metrics, port = ServiceMetrics(), free_port()
    finished(metrics)
    threads = threading.active_count()
    with told_at(port, "127.0.0.1", metrics.samples):
        assert threading.active_count() == threads + 1
        with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            assert "text/plain" in answer.headers["Content-Type"]
            names = {family.name for family in text_string_to_metric_families(answer.read().decode())}
        assert {"sagastream_handler_duration_seconds", "process_cpu_seconds"} <= names
        for path, method, code in (("/", "GET", 404), ("/metrics/x", "GET", 404), ("/metrics", "POST", 501)):
            with pytest.raises(HTTPError) as refused:
                urlopen(Request(f"http://127.0.0.1:{port}{path}", method=method))
            assert refused.value.code == code
            refused.value.close()
    with pytest.raises(OSError, match="refused"):
        urlopen(f"http://127.0.0.1:{port}/metrics")


def test_one_who_asks_for_figures_that_cannot_be_read_is_told_so_and_others_are_answered() -> None:
    asked = []

    def samples() -> list[Sample]:
        asked.append(1)
        if len(asked) == 1:
            raise ValueError("no")
        return [Sample(catalogue.STORE_UP, (), 1)]

    port = free_port()
    with told_at(port, "127.0.0.1", samples):
        with pytest.raises(HTTPError) as failed:
            urlopen(f"http://127.0.0.1:{port}/metrics")
        assert failed.value.code == 500
        failed.value.close()
        with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            assert b"sagastream_store_up 1.0" in answer.read()


def test_one_who_asks_a_byte_at_a_time_keeps_nobody_waiting_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_ALTOGETHER_S", 0.3)
    port, ended = free_port(), threading.Event()
    with (
        told_at(port, "127.0.0.1", list),
        socket.create_connection(("127.0.0.1", port)) as slow,
        ThreadPoolExecutor() as pool,
    ):
        slow.sendall(b"GET /metrics HTTP/1.0\r\nx: ")
        answer = pool.submit(lambda: urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).close())
        answer.add_done_callback(lambda _: ended.set())
        with suppress(OSError):  # the server hangs up
            while not ended.wait(0.05):
                slow.sendall(b"x")
        answer.result()


def test_a_port_that_is_taken_is_told_in_one_line() -> None:
    port = free_port()
    with (
        told_at(port, "127.0.0.1", list),
        pytest.raises(SagastreamError, match=f"cannot be told at 127.0.0.1, port {port}: Address already in use"),
        told_at(port, "127.0.0.1", list),
    ):
        pass


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70_000), ("nowhere.invalid", 9_000), ("x" * 99, 1)])
def test_a_place_that_is_none_is_told_too(host: str, port: int) -> None:
    with pytest.raises(SagastreamError, match=f"cannot be told at {host}, port {port}: "):
        check_free(port, host, of="worker-1")


def test_without_the_package_it_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(PackageMissing, match=r"pip install 'sagastream\[metrics\]'"), told_at(1, "127.0.0.1", list):
        pass
    with pytest.raises(PackageMissing):
        text(list)


def test_without_a_port_nothing_is_told() -> None:
    with told_at(None, "127.0.0.1", list):
        assert all(thread.name != "metrics" for thread in threading.enumerate())
