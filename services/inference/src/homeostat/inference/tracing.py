"""Spans of the request path, decided before they are built: an unsampled row costs a comparison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.trace import SpanKind

from homeostat.common import telemetry

_tracer = trace.get_tracer("homeostat.inference")


@contextmanager
def score_spans(
    pipeline: str, traceparents: Sequence[str | None]
) -> Iterator[Sequence[str | None]]:
    """A span for each sampled row, child of its sender's; yields the contexts to hand on."""
    sampled = [row for row, header in enumerate(traceparents) if telemetry.is_sampled(header)]
    if not sampled:
        yield traceparents
        return
    onward = list(traceparents)
    spans = []
    attributes: dict[str, str | int] = {
        "homeostat.pipeline": pipeline,
        "homeostat.batch.rows": len(onward),
    }
    for row in sampled[: telemetry.MAX_TRACED_PER_BATCH]:
        parent = trace.NonRecordingSpan(telemetry.remote_context(onward[row] or ""))
        span = _tracer.start_span(
            f"score {pipeline}",
            context=trace.set_span_in_context(parent),
            kind=SpanKind.SERVER,
            attributes=attributes,
        )
        spans.append(span)
        onward[row] = telemetry.traceparent(span)
    try:
        yield onward
    finally:
        for span in spans:
            span.end()


@contextmanager
def request_span(header: str | None) -> Iterator[str | None]:
    """The context of a request: its sender's, or a root of our own if the sampler wants one."""
    if header is not None:
        yield header
        return
    with _tracer.start_as_current_span("predict", kind=SpanKind.SERVER) as span:
        yield telemetry.traceparent(span) if span.is_recording() else None
