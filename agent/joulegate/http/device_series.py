"""The series of devices: one table of families, and one device's samples for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from joulegate.http.names import clean
from joulegate.http.view import DeviceView, finite
from joulegate.metering.snapshot import DeviceTotals
from joulegate.units import j_from_mj

_DEVICE_LABELS = ("gpu", "gpu_uuid", "gpu_name")
_SOURCE_LABELS = (*_DEVICE_LABELS, "scope", "method", "quality")


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


@dataclass(frozen=True, slots=True)
class Sample:
    """One series of a device: which family, the label values after the device's own, and the figure."""

    family: str
    labels: tuple[str, ...]
    value: float


class DeviceFamilies:
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

    def add(self, samples: Iterable[Sample]) -> None:
        """Put one device's series into their families; what is no number has none."""
        for sample in samples:
            if finite(sample.value) is None:
                continue
            family = self._by_name[sample.family]
            assert isinstance(family, CounterMetricFamily | GaugeMetricFamily)
            family.add_metric(sample.labels, sample.value)

    def _counter(self, name: str, text: str, labels: Sequence[str]) -> None:
        self._by_name[name] = CounterMetricFamily(name, text, labels=labels)

    def _gauge(self, name: str, text: str, labels: Sequence[str]) -> None:
        self._by_name[name] = GaugeMetricFamily(name, text, labels=labels)


def device_samples(view: DeviceView) -> Iterator[Sample]:
    """Series of one device; what is not known has none (law 2)."""
    device = view.device
    names = (str(device.index) if device.index is not None else "", clean(device.id), clean(device.name))
    quality = view.quality.value
    source = (*names, clean(device.scope), device.method.value, quality)
    yield Sample("joulegate_gpu_info", source, 1)
    if view.totals is not None:
        for account in _ACCOUNTS:
            yield Sample(account.name, source, j_from_mj(account.value_mj(view.totals)))
    if view.power_w is not None and view.power_method is not None:
        yield Sample("joulegate_gpu_watts", (*source[:-2], view.power_method.value, quality), view.power_w)
    for sensor, celsius in (
        ("die", view.value(lambda reading: reading.temperature_c)),
        ("memory", view.value(lambda reading: reading.memory_temperature_c)),
    ):
        if celsius is not None:
            yield Sample("joulegate_gpu_celsius", (*names, quality, sensor), celsius)
    for gauge in _GAUGES:
        value = gauge.value(view)
        if value is not None:
            yield Sample(gauge.name, (*names, quality), value)
    for code, count in view.state.errors.items():
        yield Sample("joulegate_gpu_errors", (*names, clean(code)), count)
    for event, seconds in view.state.clock_event_s.items():
        yield Sample("joulegate_gpu_clock_event_seconds", (*names, quality, clean(event)), seconds)
