"""``/metrics``: a collector that reads one snapshot. Missing is an absent series, never 0 and never NaN."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from joulegate.http.device_series import DeviceFamilies, device_samples
from joulegate.http.names import BoundedNames, clean
from joulegate.http.ports import Clock, SnapshotReader
from joulegate.http.view import finite, view_device
from joulegate.metering.reading import Quality
from joulegate.metering.snapshot import ENERGY_BUCKETS_J, AgentState, RequestTotals, Snapshot
from joulegate.units import j_from_mj

OPENMETRICS_TYPE = "application/openmetrics-text; version=1.0.0"
MAX_MODELS = 100
MAX_TIERS = 20

_LOG = logging.getLogger("joulegate.http")


class SnapshotCollector(Collector):
    """Builds all families from the newest snapshot.

    One device that cannot be shown is left out and counted in ``joulegate_agent_scrape_faults_total``; the others stay
    (law 8). Not for use by two threads at once.
    """

    def __init__(
        self, snapshots: SnapshotReader, clock: Clock, *, version: str, stale_after_s: float, faults: Callable[[], int]
    ) -> None:
        self._snapshots = snapshots
        self._clock = clock
        self._version = version
        self._stale_after_s = stale_after_s
        self._http_faults = faults
        self._models = BoundedNames(MAX_MODELS)
        self._tiers = BoundedNames(MAX_TIERS)
        self._scrape_faults = 0

    def collect(self) -> Iterator[Metric]:
        """All families; before the first snapshot only what the agent knows of itself."""
        snapshot = self._snapshots.snapshot()
        if snapshot is not None:
            yield from self._devices(snapshot)
            yield from self._requests(snapshot.requests)
            yield from _agent(snapshot.agent, max(0.0, self._clock.monotonic_s() - snapshot.t_s))
        yield from self._self(snapshot)

    def _devices(self, snapshot: Snapshot) -> Iterator[Metric]:
        elapsed_s = self._clock.monotonic_s() - snapshot.t_s
        families = DeviceFamilies()
        for device_id, state in snapshot.devices.items():
            try:
                samples = list(device_samples(view_device(state, elapsed_s, self._stale_after_s)))
            except Exception as error:  # noqa: BLE001 - law 8: whatever is wrong with it, the other devices stay
                self._scrape_faults += 1
                _LOG.error("device %s left out of /metrics: %s: %s", device_id, type(error).__name__, error)
                continue
            families.add(samples)
        yield from families.families

    def _requests(self, totals: Sequence[RequestTotals]) -> Iterator[Metric]:
        labels = ("model", "tier", "quality")
        requests = CounterMetricFamily("joulegate_requests", "Finished requests.", labels=labels)
        images = CounterMetricFamily("joulegate_images", "Images of finished requests.", labels=labels)
        joules = HistogramMetricFamily(
            "joulegate_request_joules",
            "Joules per image of finished requests whose energy is known; each image counts once.",
            labels=labels,
        )
        for key, merged in self._merge(totals).items():
            requests.add_metric(key, merged.requests)
            images.add_metric(key, merged.images)
            if key[-1] != Quality.MISSING:
                joules.add_metric(key, merged.buckets(), j_from_mj(merged.energy_mj))
        yield from (requests, images, joules)

    def _merge(self, totals: Sequence[RequestTotals]) -> dict[tuple[str, str, str], _Merged]:
        groups: dict[tuple[str, str, str], _Merged] = {}
        for row in totals:
            key = (self._models.label(row.model), self._tiers.label(row.tier), row.quality.value)
            groups.setdefault(key, _Merged()).add(row)
        return groups

    def _self(self, snapshot: Snapshot | None) -> Iterator[Metric]:
        labels = {"version": self._version, "source": "" if snapshot is None else clean(snapshot.source)}
        info = GaugeMetricFamily("joulegate_agent_info", "The agent and its source.", labels=tuple(labels))
        info.add_metric(tuple(labels.values()), 1)
        yield info
        totals = () if snapshot is None else snapshot.requests
        folded = GaugeMetricFamily(
            "joulegate_agent_folded_names", "Names from outside that share the label value other.", labels=("label",)
        )
        folded.add_metric(("model",), self._models.folded(row.model for row in totals))
        folded.add_metric(("tier",), self._tiers.folded(row.tier for row in totals))
        yield folded
        yield CounterMetricFamily(
            "joulegate_agent_scrape_faults", "Devices left out of a scrape because they failed.", self._scrape_faults
        )
        yield CounterMetricFamily("joulegate_agent_http_faults", "Requests answered with 500.", self._http_faults())


class _Merged:
    """Request totals that share their label values; their buckets are cumulative, and so is their sum."""

    def __init__(self) -> None:
        self.requests = 0
        self.images = 0
        self.energy_mj = 0
        self._at_most = [0] * len(ENERGY_BUCKETS_J)

    def add(self, row: RequestTotals) -> None:
        """Take one more row in."""
        self.requests += row.requests
        self.images += row.images
        self.energy_mj += row.energy_mj
        for place, count in enumerate(row.energy_j_buckets[: len(self._at_most)]):
            self._at_most[place] += count

    def buckets(self) -> list[tuple[str, float]]:
        """Bound and number of images at or under it, as both formats want them; the last is all images."""
        bounds = map(str, map(float, ENERGY_BUCKETS_J))
        return [*zip(bounds, map(float, self._at_most), strict=True), ("+Inf", float(self.images))]


def _agent(agent: AgentState, snapshot_age_s: float) -> Iterator[Metric]:
    gauge, counter = GaugeMetricFamily, CounterMetricFamily
    yield gauge("joulegate_agent_snapshot_age_seconds", "Age of the numbers shown here.", snapshot_age_s)
    yield gauge("joulegate_agent_start_time_seconds", "Unix time of the agent's start.", agent.started_wall_s)
    yield gauge("joulegate_agent_requests_pending", "Requests whose figures are not final.", agent.requests_pending)
    yield gauge("joulegate_agent_loop_seconds", "Duration of the newest turn of the loop.", agent.loop_s)
    yield gauge("joulegate_agent_ledger_up", "1 if the newest write went well.", float(agent.ledger_error is None))
    yield gauge("joulegate_agent_ledger_backlog", "Records that wait to be written.", agent.ledger_backlog)
    yield gauge("joulegate_agent_resident_memory_bytes", "Resident memory.", agent.rss_bytes)
    yield counter("joulegate_agent_cpu_seconds", "Processor time used.", agent.cpu_s)
    yield counter("joulegate_agent_readings", "Readings taken in.", agent.readings)
    yield counter("joulegate_agent_requests_finished", "Requests with final figures.", agent.requests_finished)
    yield counter("joulegate_agent_spans_late", "Spans that came after their intervals were closed.", agent.spans_late)
    yield counter("joulegate_agent_messages_dropped", "Messages lost on the way to the agent.", agent.messages_dropped)


class Exposition:
    """The collectors behind the two formats, without the process-wide registry."""

    def __init__(self, *collectors: Collector) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        for collector in collectors:
            self._registry.register(collector)

    def render(self, accept: str) -> tuple[bytes, str]:
        """Body and media type: OpenMetrics 1.0 where ``accept`` asks for it, else the Prometheus text format 0.0.4."""
        encode, media_type = choose_encoder(OPENMETRICS_TYPE if wants_openmetrics(accept) else "")
        return encode(self._registry), media_type


def wants_openmetrics(accept: str) -> bool:
    """Whether an Accept header prefers OpenMetrics to plain text (or names no plain text at all)."""
    weights = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for item in accept.split(","):
        media_type, *parameters = (part.strip().lower() for part in item.split(";"))
        if media_type in weights:
            weights[media_type] = max(weights[media_type], _weight(parameters))
    return weights["application/openmetrics-text"] > 0 and (
        weights["application/openmetrics-text"] >= weights["text/plain"]
    )


def _weight(parameters: Iterable[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return finite(float(value)) or 0.0
            except ValueError:
                return 0.0
    return 1.0
