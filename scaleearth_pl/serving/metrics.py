"""What `/metrics` shows, in Prometheus' text format.

scaleearth_requests_total{status}      replies by HTTP status; 429 is overload, 4xx the client's fault
scaleearth_questions_total             questions answered
scaleearth_tokens_total{kind}          prompt (as if each question were alone) and completion
scaleearth_policy_total{policy,tier}   whose GSD was used, and at which tier
scaleearth_request_seconds             from the request line to the last byte of the answer
scaleearth_batch_jobs                  requests per packed pass: 1 everywhere means batching does nothing
scaleearth_batch_seconds               time of a pass
scaleearth_accepted                    requests accepted and not yet answered
"""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from scaleearth_pl.serving.query import Answer
from scaleearth_pl.serving.queueing import BatchReport

_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_JOBS = (1, 2, 4, 8, 16, 32, 64)


class ServerMetrics:
    """The counters of one server, in a registry of its own, so that two servers in a process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter("scaleearth_requests", "Replies by status", ["status"], registry=self.registry)
        self._questions = Counter("scaleearth_questions", "Questions answered", registry=self.registry)
        self._tokens = Counter("scaleearth_tokens", "Tokens", ["kind"], registry=self.registry)
        self._policies = Counter("scaleearth_policy", "Images by policy", ["policy", "tier"], registry=self.registry)
        self._latency = Histogram("scaleearth_request_seconds", "Latency", buckets=_SECONDS, registry=self.registry)
        self._batch = Histogram("scaleearth_batch_jobs", "Requests per pass", buckets=_JOBS, registry=self.registry)
        self._pass = Histogram("scaleearth_batch_seconds", "Time of a pass", buckets=_SECONDS, registry=self.registry)
        self.accepted = Gauge("scaleearth_accepted", "Accepted and not yet answered", registry=self.registry)

    def replied(self, status: int) -> None:
        """Counts a reply."""
        self._requests.labels(status=str(status)).inc()

    def answered(self, answers: Sequence[Answer], seconds: float) -> None:
        """Counts an answered request."""
        self._questions.inc(len(answers))
        self._tokens.labels(kind="prompt").inc(sum(a.n_prompt_tokens for a in answers))
        self._tokens.labels(kind="completion").inc(sum(a.n_new_tokens for a in answers))
        scale = answers[0].scale
        self._policies.labels(policy=scale.policy, tier=scale.tier).inc()
        self._latency.observe(seconds)

    def passed(self, report: BatchReport) -> None:
        """Counts a packed pass."""
        self._batch.observe(report.n_jobs)
        self._pass.observe(report.seconds)

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self.registry)
