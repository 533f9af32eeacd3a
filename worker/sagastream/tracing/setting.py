"""Whether a process writes spans, as its environment says, and where to. Only entry points of programs use this: the
command line, and an RQ worker."""

import os
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Final

from sagastream.console import describe
from sagastream.errors import PackageMissing, SettingsError
from sagastream.telemetry import Observer, Observers
from sagastream.tracing.observer import Tracing

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

#: The command line stores its option in this variable, so that child processes inherit it.
VARIABLE: Final = "SAGASTREAM_TRACES"
_ON: Final = ("1", "true", "yes", "on")
_OFF: Final = ("", "0", "false", "no", "off")
#: Variables of OpenTelemetry, one of which says where spans go.
_WHERE: Final = (
    "OTEL_TRACES_EXPORTER",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
)
#: The variable of OpenTelemetry that says which traces are recorded.
_SAMPLER: Final = "OTEL_TRACES_SAMPLER"
_EXPORTERS: Final = "opentelemetry_traces_exporter"
#: What OTEL_TRACES_EXPORTER=otlp may mean, in order: the packages that people install register these names.
_OTLP: Final = ("otlp_proto_http", "otlp_proto_grpc", "otlp")


def watched(
    name: str,
    observer: Observer | None = None,
    environment: Mapping[str, str] = os.environ,
    *,
    forks: bool = False,
) -> Observer | None:
    """The observer of this process: the one given and, if the environment asks for spans, one that writes them.

    If nobody has set a TracerProvider by now, one is set that exports as the OTEL_… variables say. `name`: what the
    process is called in its spans, unless those variables say it. `forks`: whether it forks processes that do commands.

    Raises SettingsError, and PackageMissing if OpenTelemetry is not installed.
    """
    said = environment.get(VARIABLE, "").lower()
    if said in _OFF:
        return observer
    if said not in _ON:
        raise SettingsError(f"{VARIABLE} is {said[:50]!a}; it must be 1 or 0")
    tracing = Tracing(forks=forks)
    from opentelemetry import trace

    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        trace.set_tracer_provider(_provider(name, environment))
    return tracing if observer is None else Observers(observer, tracing)


def _provider(name: str, environment: Mapping[str, str]) -> "TracerProvider":
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise PackageMissing(
            "to write spans, the package opentelemetry-sdk is missing, and the program has set no TracerProvider: "
            "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http"
        ) from None
    if not any(environment.get(variable) for variable in _WHERE):
        raise SettingsError(f"nothing says where spans go: set OTEL_EXPORTER_OTLP_ENDPOINT, or {_WHERE[0]}=console")
    is_named = environment.get("OTEL_SERVICE_NAME") or "service.name=" in environment.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    from sagastream.tracing import sampling

    provider = TracerProvider(
        sampler=None if environment.get(_SAMPLER) else sampling.default(),  # None: the SDK reads the variable
        resource=Resource.create({} if is_named else {"service.name": name}),
    )
    asked = (environment.get("OTEL_TRACES_EXPORTER") or "otlp").split(",")
    for exporter in dict.fromkeys(one.strip() for one in asked):
        if exporter != "none":
            provider.add_span_processor(BatchSpanProcessor(_exporter(exporter)))
    return provider


def _exporter(name: str) -> Any:
    found = {one.name: one for one in entry_points(group=_EXPORTERS)}
    entry = _first(found, _OTLP if name == "otlp" else (name,))
    if entry is None:
        package = "opentelemetry-exporter-otlp-proto-http" if name == "otlp" else "the package that has it"
        raise SettingsError(f"no installed package exports spans to {name[:50]!a}: pip install {package}")
    try:
        return entry.load()()
    except Exception as error:  # noqa: BLE001 - it is another's, and may raise anything
        raise SettingsError(f"the exporter {name} of spans cannot be used: {describe(error)}") from None


def _first(found: Mapping[str, EntryPoint], names: Iterable[str]) -> EntryPoint | None:
    return next((found[name] for name in names if name in found), None)
