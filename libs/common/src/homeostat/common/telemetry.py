"""Traces, logs and the trace context that travels in Kafka headers.

Spans on hot paths are made by hand and decided before they are built: an unsampled record costs a
string comparison. A batch is one span with a link per sampled event, and each of those events gets
a span of its own, child of its sender's, so that one trace holds an event's whole way.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

MAX_TRACED_PER_BATCH = 32
DEFAULT_RATIO = "0.01"
_PROPAGATOR = TraceContextTextMapPropagator()


class FileSpanExporter(SpanExporter):
    """One JSON line a span into a folder: traces without any other server."""

    def __init__(self, directory: Path, service: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._file = (directory / f"{service}-{os.getpid()}.jsonl").open("a", encoding="utf-8")
        self._lock = threading.Lock()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with self._lock:
            for span in spans:
                self._file.write(json.dumps(_line(span), default=str) + "\n")
            self._file.flush()
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        with self._lock:
            self._file.close()


def _line(span: ReadableSpan) -> dict[str, Any]:
    context = span.get_span_context()
    return {
        "trace_id": format(context.trace_id, "032x") if context else None,
        "span_id": format(context.span_id, "016x") if context else None,
        "parent_id": format(span.parent.span_id, "016x") if span.parent else None,
        "name": span.name,
        "kind": span.kind.name,
        "service": span.resource.attributes.get("service.name"),
        "start": span.start_time,
        "end": span.end_time,
        "attributes": dict(span.attributes or {}),
        "links": [
            {
                "trace_id": format(link.context.trace_id, "032x"),
                "span_id": format(link.context.span_id, "016x"),
            }
            for link in span.links
        ],
        "status": span.status.status_code.name,
    }


def setup(service: str) -> TracerProvider:
    """Configure traces and JSON logs of a process from the standard ``OTEL_*`` variables.

    ``HOMEOSTAT_TRACE_DIR`` adds the file exporter. Unless told otherwise one trace in a hundred is
    kept, and whatever the caller has decided to sample.
    """
    os.environ.setdefault("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    os.environ.setdefault("OTEL_TRACES_SAMPLER_ARG", DEFAULT_RATIO)
    name = os.environ.get("OTEL_SERVICE_NAME", service)
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    if directory := os.environ.get("HOMEOSTAT_TRACE_DIR"):
        exporter = FileSpanExporter(Path(directory), name)
        provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=500))
    if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415 - optional
            OTLPSpanExporter,
        )

        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(timeout=5)))
    trace.set_tracer_provider(provider)
    _setup_logs(os.environ.get("LOG_LEVEL", "INFO"))
    return provider


def _setup_logs(level: str) -> None:
    renderer = structlog.stdlib.ProcessorFormatter(
        processors=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _add_trace_id,
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(default=str),
        ]
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(renderer)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.getLogger("aiokafka").setLevel(logging.WARNING)


def _add_trace_id(_logger: Any, _name: str, event: Any) -> Any:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = format(context.trace_id, "032x")
    return event


def traceparent(span: Span) -> str:
    """The W3C header value of a span.

    >>> traceparent(trace.INVALID_SPAN)
    '00-00000000000000000000000000000000-0000000000000000-00'
    """
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def is_sampled(header: str | None) -> bool:
    """Whether a ``traceparent`` asks to be recorded, told without parsing it."""
    return header is not None and len(header) == 55 and header.endswith("1")


def remote_context(header: str) -> SpanContext:
    """The span context of a ``traceparent``; an invalid one gives an invalid context."""
    context = _PROPAGATOR.extract({"traceparent": header})
    return trace.get_current_span(context).get_span_context()


@contextmanager
def send_span(tracer: trace.Tracer, topic: str, parent: str | None) -> Iterator[Span]:
    """A PRODUCER span around one send, child of the caller's context."""
    context = _PROPAGATOR.extract({"traceparent": parent}) if parent else None
    with tracer.start_as_current_span(
        f"send {topic}",
        context=context,
        kind=SpanKind.PRODUCER,
        attributes={
            "messaging.system": "kafka",
            "messaging.operation.name": "send",
            "messaging.operation.type": "send",
            "messaging.destination.name": topic,
        },
    ) as span:
        yield span


@contextmanager
def process_batch(
    tracer: trace.Tracer,
    topic: str,
    *,
    partition: int,
    group: str,
    traceparents: Sequence[str | None],
) -> Iterator[list[str | None]]:
    """Trace the processing of one record batch; yields the context to hand on for each record."""
    onward = list(traceparents)
    sampled = [row for row, header in enumerate(onward) if is_sampled(header)]
    if not sampled:
        yield onward
        return
    attributes: dict[str, Any] = {
        "messaging.system": "kafka",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": topic,
        "messaging.destination.partition.id": str(partition),
        "messaging.consumer.group.name": group,
    }
    parents = {row: remote_context(onward[row] or "") for row in sampled[:MAX_TRACED_PER_BATCH]}
    spans = []
    for row, parent in parents.items():
        remote = trace.set_span_in_context(trace.NonRecordingSpan(parent))
        span = tracer.start_span(
            f"process {topic}", context=remote, kind=SpanKind.CONSUMER, attributes=attributes
        )
        spans.append(span)
        onward[row] = traceparent(span)
    batch = tracer.start_span(
        f"process {topic} batch",
        context=trace.set_span_in_context(
            trace.NonRecordingSpan(SpanContext(0, 0, is_remote=False, trace_flags=TraceFlags(0)))
        ),
        kind=SpanKind.CONSUMER,
        links=[Link(parent) for parent in parents.values()],
        attributes=attributes | {"messaging.batch.message_count": len(onward)},
    )
    try:
        with trace.use_span(batch, end_on_exit=False):
            yield onward
    finally:
        for span in spans:
            span.end()
        batch.end()
