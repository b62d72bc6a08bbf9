"""The metrics of a gateway."""

from __future__ import annotations

from tokenbus.producer.telemetry.metric import MetricTable

GATEWAY = MetricTable("gateway", ())
_OF_JOB = ("pool", "model", "priority")

BUILD_INFO = GATEWAY.gauge(
    "tokenbus_build_info",
    "always 1",
    "The release, and what it runs on",
    *("process", "version", "python"),
)
REQUESTS = GATEWAY.counter(
    "tokenbus_gateway_requests",
    "requests",
    "Requests that were answered, by route and status",
    *("route", "status"),
)
BEGINNING = GATEWAY.histogram(
    "tokenbus_gateway_beginning", "Until an answer of any kind began", "route"
)
OPEN_REQUESTS = GATEWAY.gauge(
    "tokenbus_gateway_open_requests",
    "requests",
    "Requests that wait for jobs now, streams among them",
)
JOBS = GATEWAY.counter(
    "tokenbus_gateway_jobs",
    "jobs",
    "Jobs submitted here. Their tenants are told apart where gateway_metrics_tenants allows for it",
    *(*_OF_JOB, "tenant"),
)
RESUMES = GATEWAY.counter(
    "tokenbus_gateway_resumes", "streams", "Streams that went on from a cursor", "pool"
)
ENDS = GATEWAY.counter(
    "tokenbus_gateway_ends",
    "streams",
    "Streams that ended, by how: done, an error in them, or their reader left",
    *("pool", "outcome"),
)
TTFT = GATEWAY.histogram(
    "tokenbus_gateway_ttft",
    "From the whole request until the first byte of its first token was written; of streams from"
    " their beginning",
    *_OF_JOB,
)
ITL = GATEWAY.histogram(
    "tokenbus_gateway_itl", "Between two writes of tokens to one stream", *_OF_JOB
)
E2E = GATEWAY.histogram(
    "tokenbus_gateway_e2e",
    "From the whole request until its stream was written to the end; of streams from their"
    " beginning",
    *_OF_JOB,
)
