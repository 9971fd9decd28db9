"""What is counted, in the format of Prometheus."""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inst.studio.job_store import Job, JobState
from inst.studio.jobs import JobRunner

_SECONDS = (0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1800, 3600)


class Metrics:
    """The counters of one app, in a registry of their own."""

    def __init__(self, jobs: JobRunner) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory, processor time and open files, on Linux
        self._jobs = Counter("inst_jobs", "Jobs that came into a state.", ("kind", "state"), registry=registry)
        self._seconds = Histogram(
            "inst_job_seconds",
            "Time on the device of jobs that are done.",
            ("kind",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._refused = Counter("inst_refused", "Requests and jobs that were refused.", ("reason",), registry=registry)
        self._requests = Counter(
            "inst_http_requests", "Answers by route and status.", ("method", "route", "status"), registry=registry
        )
        self.upload_bytes = Counter("inst_upload_bytes", "Bytes of accepted uploads.", registry=registry)
        for state, name in ((JobState.QUEUED, "inst_queue_length"), (JobState.RUNNING, "inst_jobs_running")):
            gauge = Gauge(name, f"Jobs that are {state.value}.", registry=registry)
            gauge.set_function(partial(_number_of, jobs, state))
        jobs.listeners.append(self._count_job)

    def refused(self, reason: str) -> None:
        """Count a refusal."""
        self._refused.labels(reason).inc()

    def text(self) -> bytes:
        """Return all metrics."""
        return generate_latest(self._registry)

    def count_request(self, method: str, route: str, status: int) -> None:
        """Count an answer. `route` is the template of a path, so that there are not as many as there are jobs."""
        known = method if method in ("GET", "HEAD", "POST", "PATCH", "DELETE", "OPTIONS") else "other"
        self._requests.labels(known, route, str(status)).inc()

    def _count_job(self, job: Job) -> None:
        self._jobs.labels(job.kind, job.state.value).inc()
        if job.state is JobState.DONE:
            self._seconds.labels(job.kind).observe(job.seconds)


def _number_of(jobs: JobRunner, state: JobState) -> int:
    return sum(job.state is state for job in jobs.jobs())


class Counted:
    """ASGI middleware that counts every answer."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_and_count(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.count_request(scope["method"], route_of(scope), message["status"])
            await send(message)

        await self._app(scope, receive, send_and_count)


def route_of(scope: Scope) -> str:
    """Return the template of a request's path, such as "/api/jobs/{id}"; "none" if no route took the request."""
    path = getattr(scope.get("route"), "path", None)
    return "none" if path is None else f"{scope.get('root_path', '')}{path}"
