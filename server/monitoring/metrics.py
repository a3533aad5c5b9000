"""Prometheus metrics of the server, in base units, with bounded labels and without request text.

Each app has a registry of its own; nothing is global.
"""

from collections.abc import Callable, Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from blora.decision.promise import Promise
from blora.decision.uncertainty import Prediction
from blora.scores import SCORES
from blora.server.engines.handle import AdapterHandle
from blora.server.engines.protocol import ModelInfo
from blora.server.errors import ServerError
from blora.server.monitoring.build import Build

__all__ = ["SIBLING_FAILED", "UNKNOWN_ADAPTER", "ServerMetrics"]

# Without the *_created series, one per counter with its start time, which Prometheus ignores.
disable_created_metrics()

# Label for requests that name an unknown adapter, so that clients cannot create labels.
UNKNOWN_ADAPTER = "unknown"
# Outcome of a question that was not answered because another one of its request failed.
SIBLING_FAILED = "sibling_failed"
# Outcomes that alerts count, of requests without an adapter and of an adapter's inputs. Their series start at 0: to
# Prometheus a series that is born with a burst has no increase, so that no alert fires.
_OF_NO_ADAPTER = (
    *("unauthorized", "forbidden", "queue_full", "too_many_connections", "not_ready", "feedback_unavailable"),
    *("internal_error", "deadline_exceeded"),
)
_OF_ADAPTER = (
    *("answered", "abstained", "disconnected", "queue_full"),
    *("model_failure", "engine_unreachable", "non_finite", "internal_error", "deadline_exceeded"),
)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = (256, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
_SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128)
_PROBABILITY = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)
_NATS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4.2, 5.6)


class ServerMetrics:
    """All metrics of one app, reported by the batcher (as its observer) and the predictor.

    Args:
        build: the running build.
    """

    def __init__(self, build: Build) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory, open files and start time, for alerts on restarts
        self._requests = Counter(
            "blora_requests_total",
            "Inputs by outcome: answered, abstained, an error code, or sibling_failed for a question that is not "
            "answered because another one of its request failed.",
            ["adapter", "outcome"],
            registry=registry,
        )
        self._start_outcomes(UNKNOWN_ADAPTER, _OF_NO_ADAPTER)
        self._abstentions = Counter(
            "blora_abstentions_total",
            "Failed thresholds of inputs that were abstained from.",
            ["adapter", "reason"],
            registry=registry,
        )
        self._non_finite = Counter(
            "blora_non_finite_total",
            "Inputs for which the model returned NaN or infinity.",
            ["adapter"],
            registry=registry,
        )
        self._dropped = Counter(
            "blora_dropped_total",
            "Inputs whose computation was skipped or cut short because no client waited for them any more.",
            ["reason"],
            registry=registry,
        )
        self._request_seconds = Histogram(
            "blora_request_seconds",
            "Time from the arrival of an input's whole body, which may wait to be read, until its answer or failure is "
            "known. A request that waits until its deadline to be read counts as one input.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._queue_seconds = Histogram(
            "blora_queue_seconds",
            "Time an input waited for its forward pass.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._forward_seconds = Histogram(
            "blora_forward_seconds",
            "Time of a forward pass that succeeded, failed, or was abandoned.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._batch_rows = Histogram("blora_batch_rows", "Inputs in a forward pass.", buckets=_ROWS, registry=registry)
        self._batch_tokens = Histogram(
            "blora_batch_tokens",
            "Padded tokens x draws in a forward pass.",
            buckets=_TOKENS,
            registry=registry,
        )
        self._samples = Histogram(
            "blora_samples_per_request",
            "Posterior draws behind an answer.",
            buckets=_SAMPLES,
            registry=registry,
        )
        self._scores = {
            name: Histogram(
                score.metric,
                score.meaning,
                ["adapter"],
                buckets=_PROBABILITY if score.high_is_certain else _NATS,
                registry=registry,
            )
            for name, score in SCORES.items()
        }
        self._queue_depth = Gauge("blora_queue_depth", "Inputs waiting for a forward pass.", registry=registry)
        self._backlog = Gauge(
            "blora_backlog_seconds",
            "Seconds of work that is waiting, running, or was refused by a full queue within the last half minute.",
            registry=registry,
        )
        self._adapter_info = Gauge(
            "blora_adapter_info",
            "1 for each served adapter.",
            ["adapter", "digest"],
            registry=registry,
        )
        self._unfamiliar = Counter(
            "blora_unfamiliar_total",
            "Answers to questions whose familiarity is below that of the calibration's gate.",
            ["adapter"],
            registry=registry,
        )
        self._drift = Gauge(
            "blora_drift_wealth",
            "Wealth of bets that more questions are unfamiliar than the calibration allows: 1 at the start, at most "
            "about 10,000. Without a drift it ever reaches 20 with probability 0.05 at most.",
            ["adapter"],
            registry=registry,
        )
        self._promised = Counter(
            "blora_promised_answers_total",
            "Answers given under a promised risk that were stored for feedback, by whether their outcome was "
            "requested; of the questions about one text, one counts as requested, if it was answered.",
            ["adapter", "target_risk", "requested"],
            registry=registry,
        )
        self._unstored = Counter(
            "blora_unstored_predictions_total",
            "Answers that could not be stored for feedback, so that nobody can report their outcome.",
            registry=registry,
        )
        self._outcomes = Counter(
            "blora_outcomes_total",
            "Answers given under a promised risk whose outcome was reported, by first outcome and by whether it was "
            "requested.",
            ["adapter", "target_risk", "outcome", "requested"],
            registry=registry,
        )
        self._corrections = Counter(
            "blora_outcome_corrections_total",
            "Outcomes counted in blora_outcomes_total that a later report changed, by the new outcome.",
            ["adapter", "target_risk", "outcome", "requested"],
            registry=registry,
        )
        self._realised_risk = Gauge(
            "blora_realised_risk",
            "Share of wrong answers among the answers whose outcome was requested and reported, by latest outcome.",
            ["adapter", "target_risk"],
            registry=registry,
        )
        self._risk_bound = Gauge(
            "blora_realised_risk_lower_bound",
            "Lower confidence bound of the true risk, valid at all times together with probability 0.95, if outcomes "
            "are reported whether or not the answer was wrong.",
            ["adapter", "target_risk"],
            registry=registry,
        )
        self._promise_broken = Gauge(
            "blora_promise_broken",
            "1 once outcomes contradict the promised risk, else 0. A kept promise stays at 0 with probability 0.95, if "
            "outcomes are reported whether or not the answer was wrong. Evaluated anew when an outcome is corrected to "
            "right.",
            ["adapter", "target_risk"],
            registry=registry,
        )
        self._in_parts = Gauge(
            "blora_model_runs_in_parts",
            "1 if layers that draws share run once per question, 0 if every layer runs for every draw; see /info.",
            registry=registry,
        )
        self._served: set[str] = set()
        self._by_adapter = (
            *(self._requests, self._abstentions, self._non_finite, self._adapter_info),
            *(self._unfamiliar, self._drift, self._promised, self._outcomes, self._corrections),
            *(self._realised_risk, self._risk_bound, self._promise_broken),
            *self._scores.values(),
        )
        Gauge(
            "blora_build_info",
            "1 for the running build.",
            ["version", "revision"],
            registry=registry,
        ).labels(build.version, build.revision).set(1)

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def show_backlog(self, seconds: Callable[[], float]) -> None:
        """Set the function that computes the backlog whenever metrics are rendered."""
        self._backlog.set_function(seconds)

    def model_loaded(self, model: ModelInfo) -> None:
        """Show whether the base model runs in parts."""
        self._in_parts.set(model.runs_whole_because is None)

    def adapter_loaded(self, handle: AdapterHandle) -> None:
        """Add the series of an adapter that was loaded."""
        self._served.add(handle.name)
        self._adapter_info.labels(handle.name, handle.digest).set(1)
        # Counters start at 0, so that the first event shows as an increase.
        self._start_outcomes(handle.name, _OF_ADAPTER)
        self._non_finite.labels(handle.name)
        if handle.calibration is not None:
            self._start_promise(handle.name, handle.calibration.target_risk)
            if handle.calibration.gate is not None:
                self._unfamiliar.labels(handle.name)

    def _start_outcomes(self, adapter: str, outcomes: Iterable[str]) -> None:
        """Add the series of an adapter's outcomes, at 0."""
        for outcome in outcomes:
            self._requests.labels(adapter, outcome)

    def _start_promise(self, adapter: str, target_risk: float) -> None:
        """Add the series of the promise that an adapter makes by default."""
        target = f"{target_risk:g}"
        for requested in ("true", "false"):
            self._promised.labels(adapter, target, requested)
            for outcome in ("correct", "wrong"):
                self._outcomes.labels(adapter, target, outcome, requested)
                self._corrections.labels(adapter, target, outcome, requested)

    def adapter_unloaded(self, handle: AdapterHandle) -> None:
        """Remove the series of an unloaded adapter; its requests in flight count under the unknown adapter."""
        self._served.discard(handle.name)
        for metric in self._by_adapter:
            metric.remove_by_labels({"adapter": handle.name})

    def predicted(self, adapter: str, prediction: Prediction, *, reasons: Iterable[str], n_samples: int) -> None:
        """Count an input that was answered, or abstained from if there are reasons."""
        reasons, adapter = tuple(reasons), self._label(adapter)
        self._requests.labels(adapter, "abstained" if reasons else "answered").inc()
        for reason in reasons:
            self._abstentions.labels(adapter, reason).inc()
        self._samples.observe(n_samples)
        values = prediction.scores()
        for name, histogram in self._scores.items():
            if name in values:  # an adapter without a familiarity has no such value
                histogram.labels(adapter).observe(values[name])

    def failed(self, error: ServerError, adapter: str = UNKNOWN_ADAPTER) -> None:
        """Count an input that failed with an error; `adapter` is the name of a loaded adapter."""
        adapter = self._label(adapter)
        self._requests.labels(adapter, error.code).inc()
        if error.code == "non_finite":
            self._non_finite.labels(adapter).inc()

    def sibling_failed(self, adapter: str) -> None:
        """Count a question that was not answered because another one of its request failed."""
        self._requests.labels(self._label(adapter), SIBLING_FAILED).inc()

    def unfamiliar(self, adapter: str) -> None:
        """Count an answer to an unfamiliar question."""
        if adapter in self._served:
            self._unfamiliar.labels(adapter).inc()

    def drift(self, adapter: str, wealth: float) -> None:
        """Show the evidence that an adapter is asked other questions than it was calibrated on."""
        if adapter in self._served:
            self._drift.labels(adapter).set(wealth)

    def promised(self, adapter: str, target_risk: float, *, requested: bool) -> None:
        """Count an answer given under a promised risk, by whether its outcome was requested."""
        if adapter in self._served:
            self._promised.labels(adapter, f"{target_risk:g}", str(requested).lower()).inc()

    def not_stored(self) -> None:
        """Count an answer that could not be stored for feedback."""
        self._unstored.inc()

    def outcome(self, adapter: str, target_risk: float, *, correct: bool, requested: bool) -> None:
        """Count the reported outcome of an answer given under a promised risk."""
        if adapter in self._served:
            outcome = "correct" if correct else "wrong"
            self._outcomes.labels(adapter, f"{target_risk:g}", outcome, str(requested).lower()).inc()

    def corrected(self, adapter: str, target_risk: float, *, correct: bool, requested: bool) -> None:
        """Count a correction of a reported outcome; `correct` is the new outcome."""
        if adapter in self._served:
            outcome = "correct" if correct else "wrong"
            self._corrections.labels(adapter, f"{target_risk:g}", outcome, str(requested).lower()).inc()

    def show_promise(self, adapter: str, promise: Promise) -> None:
        """Show the realised risk, its lower bound and the test result of a promise."""
        if adapter in self._served:
            labels = adapter, f"{promise.target_risk:g}"
            self._realised_risk.labels(*labels).set(promise.realised_risk or 0.0)
            self._risk_bound.labels(*labels).set(promise.lower_bound)
            self._promise_broken.labels(*labels).set(promise.broken)

    def _label(self, adapter: str) -> str:
        return adapter if adapter in self._served else UNKNOWN_ADAPTER

    def finished(self, seconds: float) -> None:
        """Record the time from an input's arrival until it was answered or failed."""
        self._request_seconds.observe(seconds)

    def worked(self, seconds: float) -> None:
        """Record the time of a forward pass that succeeded, failed, or was abandoned."""
        self._forward_seconds.observe(seconds)

    def forward_done(self, *, rows: int, tokens: int) -> None:
        """Record the inputs and the padded tokens x draws of a successful forward pass."""
        self._batch_rows.observe(rows)
        self._batch_tokens.observe(tokens)

    def waited(self, seconds: float) -> None:
        """Record the seconds that a computed input waited."""
        self._queue_seconds.observe(seconds)

    def dropped(self, reason: str) -> None:
        """Count an input that was dropped before its computation ended."""
        self._dropped.labels(reason).inc()

    def queue_changed(self, depth: int) -> None:
        """Show the number of waiting inputs."""
        self._queue_depth.set(depth)
