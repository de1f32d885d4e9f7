"""Law 3: what a figure was made by is the device's own word, wherever it shows."""

from __future__ import annotations

import pytest

from joulegate.metering.host_meter import HostMeter, Options
from joulegate.metering.reading import Device, Method, Quality, Reading
from joulegate.metering.span import Outcome, Span


@pytest.mark.parametrize(
    ("method", "quality"),
    [
        (Method.MODEL, Quality.MODELLED),
        (Method.MODEL, Quality.DEFAULT),
        (Method.SIMULATED, Quality.SIMULATED),
        (Method.RAPL, Quality.MEASURED),
        (Method.COUNTER, Quality.MEASURED),
    ],
)
def test_method_and_quality_are_the_devices(method: Method, quality: Quality) -> None:
    """A cumulative counter that a model, a simulation or RAPL feeds is never called the board's counter."""
    meter = HostMeter(Options(hold_s=0.0), origin_s=1_700_000_000.0)
    meter.add_device(Device("d", "a device", method, quality))
    meter.begin(Span("r", ("d",), 2.0, power_class="k"))
    entries, accounts = [], []
    for poll in range(200):
        t_s = 0.05 * poll
        busy_s = min(max(t_s - 2.0, 0.0), 3.0)
        energy_mj = round(100_000 * t_s + 300_000 * busy_s)
        meter.feed([Reading("d", t_s, 1_700_000_000.0 + t_s, energy_mj=energy_mj)])
        if poll == 100:
            meter.end("r", 5.0, Outcome.OK)
        progress = meter.advance(t_s)
        entries += progress.entries
        accounts += progress.accounts
    (entry,) = entries
    assert entry.method is method
    assert entry.quality is quality
    assert entry.flags == ()
    assert {account.method for account in accounts} == {method}
