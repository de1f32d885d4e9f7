"""``/metrics``: a collector that reads one snapshot. Missing is an absent series, never 0 and never NaN."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from joulegate.http.ports import Clock, SnapshotReader
from joulegate.http.view import DeviceView, finite, view_device
from joulegate.metering.snapshot import ENERGY_BUCKETS_J, AgentState, DeviceTotals, RequestTotals, Snapshot
from joulegate.units import j_from_mj

OPENMETRICS_TYPE = "application/openmetrics-text; version=1.0.0"
OTHER = "other"
"""The name that stands for all names beyond the bound."""
MAX_MODELS = 100
MAX_TIERS = 20
MAX_NAME_LENGTH = 120

_LOG = logging.getLogger("joulegate.http")
_DEVICE_LABELS = ("gpu", "gpu_uuid", "gpu_name")
_SOURCE_LABELS = (*_DEVICE_LABELS, "scope", "method", "quality")


class BoundedNames:
    """The first ``bound`` names keep their own label value, all later ones share ``other``.

    A name keeps what it was given for as long as the agent lives, so that a counter never moves to another series.
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._kept: set[str] = set()

    def label(self, name: str) -> str:
        """The label value of ``name``."""
        value = clean(name)
        if value not in self._kept and len(self._kept) < self._bound:
            self._kept.add(value)
        return value if value in self._kept else OTHER

    def folded(self, names: Iterable[str]) -> int:
        """How many of ``names`` share ``other`` because of the bound."""
        return len({clean(name) for name in names} - self._kept)


def clean(name: str) -> str:
    """``name`` as a label value: encodable, of bounded length."""
    return name.encode("utf-8", "replace").decode("utf-8")[:MAX_NAME_LENGTH]


@dataclass(frozen=True, slots=True)
class _Gauge:
    """A figure of a device now."""

    name: str
    text: str
    value: Callable[[DeviceView], float | None]


@dataclass(frozen=True, slots=True)
class _Account:
    """One of a device's accounts."""

    name: str
    text: str
    value_mj: Callable[[DeviceTotals], int]


_ACCOUNTS = (
    _Account(
        "joulegate_gpu_joules",
        "Energy of the device since its first epoch, over counter resets and restarts. "
        "Equals requests plus idle plus unattributed.",
        lambda totals: totals.device_mj,
    ),
    _Account("joulegate_gpu_requests_joules", "Energy given to requests.", lambda totals: totals.requests_mj),
    _Account("joulegate_gpu_idle_joules", "Energy used while no request ran.", lambda totals: totals.idle_mj),
    _Account(
        "joulegate_gpu_unattributed_joules",
        "Energy that no request explains, for example of a foreign process.",
        lambda totals: totals.unattributed_mj,
    ),
    _Account(
        "joulegate_gpu_estimated_joules",
        "Energy that no counter saw, guessed across resets and gaps; in no other account.",
        lambda totals: totals.estimated_mj,
    ),
)

_GAUGES = (
    _Gauge(
        "joulegate_gpu_headroom_celsius",
        "Kelvins left to the highest operating temperature, else to the slowdown.",
        lambda view: view.headroom_c,
    ),
    _Gauge(
        "joulegate_gpu_power_limit_watts",
        "Power limit in force.",
        lambda view: view.value(lambda reading: reading.power_limit_w),
    ),
    _Gauge(
        "joulegate_gpu_utilization_ratio",
        "Share of time in which the device was busy, 0 to 1.",
        lambda view: view.value(lambda reading: reading.utilization),
    ),
    _Gauge(
        "joulegate_gpu_memory_used_bytes",
        "Memory in use.",
        lambda view: view.value(lambda reading: reading.memory_used_bytes),
    ),
    _Gauge(
        "joulegate_gpu_idle_watts",
        "Learned idle power with models resident.",
        lambda view: finite(view.state.idle_w),
    ),
    _Gauge("joulegate_gpu_active_spans", "Requests that use the device now.", lambda view: view.state.active_spans),
    _Gauge("joulegate_gpu_up", "1 if the device answered lately, else 0.", lambda view: float(view.up)),
    _Gauge(
        "joulegate_gpu_age_seconds",
        "Seconds since the device last gave a reading with values.",
        lambda view: view.age_s,
    ),
)


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
        families = _DeviceFamilies()
        for device_id, state in snapshot.devices.items():
            try:
                samples = list(_device_samples(view_device(state, elapsed_s, self._stale_after_s)))
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
            if merged.metered:
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
    """Request totals that share their label values."""

    def __init__(self) -> None:
        self.requests = 0
        self.images = 0
        self.energy_mj = 0
        self._counts = [0] * (len(ENERGY_BUCKETS_J) + 1)

    @property
    def metered(self) -> bool:
        """Whether the energy of any of them is known."""
        return any(self._counts)

    def add(self, row: RequestTotals) -> None:
        """Take one more row in; its buckets hold one count each, not cumulated."""
        self.requests += row.requests
        self.images += row.images
        self.energy_mj += row.energy_mj
        for place, count in enumerate(row.energy_j_buckets[: len(self._counts)]):
            self._counts[place] += count

    def buckets(self) -> list[tuple[str, float]]:
        """Bound and count of the images at or under it, as both formats want them; the last is all images metered."""
        bounds = [*(str(float(bound_j)) for bound_j in ENERGY_BUCKETS_J), "+Inf"]
        return list(zip(bounds, map(float, accumulate(self._counts)), strict=True))


@dataclass(frozen=True, slots=True)
class _Sample:
    """One series of a device: which family, the label values after the device's own, and the figure."""

    family: str
    labels: tuple[str, ...]
    value: float


class _DeviceFamilies:
    """The device families in the order in which they are shown."""

    def __init__(self) -> None:
        self._by_name: dict[str, Metric] = {}
        for account in _ACCOUNTS:
            self._counter(account.name, account.text, _SOURCE_LABELS)
        self._gauge("joulegate_gpu_watts", "Power now; method tells instant from a mean.", _SOURCE_LABELS)
        self._gauge("joulegate_gpu_celsius", "Temperature.", (*_DEVICE_LABELS, "quality", "sensor"))
        for gauge in _GAUGES:
            self._gauge(gauge.name, gauge.text, (*_DEVICE_LABELS, "quality"))
        self._counter("joulegate_gpu_errors", "Failed sensor calls by code.", (*_DEVICE_LABELS, "code"))
        self._counter(
            "joulegate_gpu_clock_event_seconds",
            "Seconds under a clock event since the agent started; its rate is the share of time.",
            (*_DEVICE_LABELS, "quality", "clock_event"),
        )
        self._gauge("joulegate_gpu_info", "What the device is and how it is metered.", _SOURCE_LABELS)

    @property
    def families(self) -> Iterable[Metric]:
        """All families, also those without a series."""
        return self._by_name.values()

    def add(self, samples: Iterable[_Sample]) -> None:
        """Put one device's series into their families."""
        for sample in samples:
            family = self._by_name[sample.family]
            assert isinstance(family, CounterMetricFamily | GaugeMetricFamily)
            family.add_metric(sample.labels, sample.value)

    def _counter(self, name: str, text: str, labels: Sequence[str]) -> None:
        self._by_name[name] = CounterMetricFamily(name, text, labels=labels)

    def _gauge(self, name: str, text: str, labels: Sequence[str]) -> None:
        self._by_name[name] = GaugeMetricFamily(name, text, labels=labels)


def _device_samples(view: DeviceView) -> Iterator[_Sample]:
    device = view.device
    names = (str(device.index) if device.index is not None else "", clean(device.id), clean(device.name))
    quality = view.quality.value
    source = (*names, clean(device.scope), device.method.value, quality)
    yield _Sample("joulegate_gpu_info", source, 1)
    if view.totals is not None:
        for account in _ACCOUNTS:
            yield _Sample(account.name, source, j_from_mj(account.value_mj(view.totals)))
    if view.power_w is not None and view.power_method is not None:
        yield _Sample("joulegate_gpu_watts", (*source[:-2], view.power_method.value, quality), view.power_w)
    for sensor, celsius in (
        ("die", view.value(lambda reading: reading.temperature_c)),
        ("memory", view.value(lambda reading: reading.memory_temperature_c)),
    ):
        if celsius is not None:
            yield _Sample("joulegate_gpu_celsius", (*names, quality, sensor), celsius)
    for gauge in _GAUGES:
        value = gauge.value(view)
        if value is not None:
            yield _Sample(gauge.name, (*names, quality), value)
    for code, count in view.state.errors.items():
        yield _Sample("joulegate_gpu_errors", (*names, clean(code)), count)
    for event, seconds in view.state.clock_event_s.items():
        yield _Sample("joulegate_gpu_clock_event_seconds", (*names, quality, clean(event)), seconds)


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
    """The collector behind the two formats, without the process-wide registry."""

    def __init__(self, collector: Collector) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
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
