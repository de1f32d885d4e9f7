"""What a simulated GPU is made of: board limits, heat path and sensor, as data.

Board figures (idle power, limits, thresholds, memory, clocks) are the defaults of NVIDIA's nvml-mock
(NVIDIA/k8s-test-infra, pkg/gpu/mocknvml/configs): what a driver would report, not measurements. Two captured H100 SXM
logs give 87/89/92 C where the mock has 83/87/92 (notes/throttle.md, 1.2). Sensor behaviour is the Oxford study's
(arXiv 2312.02741; notes/measurement.md, 1.2). No thermal constant of these boards is published: 100 J/K and 0.035 K/W
for the die, 1300 J/K and 0.027 K/W for an air heat sink are assumed at 700 W (notes/throttle.md, 1.2) and scaled with
the board's power, which keeps the time constants at 3.5 s and 35 s.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

_GIB = 2**30
_REFERENCE_W = 700.0


@dataclass(frozen=True, slots=True)
class SensorProfile:
    """How the board's sensors see it.

    The counter moves every ``step_s`` and then shows the energy used until ``lag_s`` before. ``gain`` multiplies the
    counter and power. Instant power is the mean over ``window_s`` before each update, every ``update_s``; with 25 of
    100 ms it sees a quarter of the time (A100, H100). ``has_average``: the driver's one-second mean exists (not on
    A100).
    """

    step_s: float = 0.1
    lag_s: float = 0.1
    phase_s: float = 0.0
    gain: float = 1.0
    update_s: float = 0.1
    window_s: float = 0.025
    has_average: bool = True
    noise: float = 0.0
    temperature_period_s: float = 1.0
    temperature_lag_s: float = 1.0


@dataclass(frozen=True, slots=True)
class GpuProfile:
    """A board. Clock and power: dynamic power goes with clock^2.2, speed with clock^0.9 (notes/throttle.md, 4.1).

    ``leakage_per_k`` is how much idle power grows a kelvin above its resting temperature. ``share_sd`` is the standard
    deviation of the logarithm of a request's hidden share factor: 0 is an even time slice.
    """

    name: str
    idle_w: float
    power_limit_w: float
    power_limit_min_w: float
    power_limit_max_w: float
    max_operating_c: float
    slowdown_c: float
    shutdown_c: float
    memory_max_operating_c: float | None
    memory_total_bytes: int
    sm_clock_max_mhz: float
    sm_clock_idle_mhz: float
    sensor: SensorProfile = SensorProfile()
    inlet_c: float = 27.0
    die_k_per_w: float = 0.035
    die_j_per_k: float = 100.0
    sink_k_per_w: float = 0.027
    sink_j_per_k: float = 1300.0
    memory_k_per_w: float = 0.049
    memory_tau_s: float = 10.0
    leakage_per_k: float = 0.004
    share_sd: float = 0.0
    soft_governor: bool = True

    def ideal(self) -> GpuProfile:
        """The same board without leakage, hidden shares or sensor errors: for oracles worked by hand."""
        sensor = replace(self.sensor, gain=1.0, noise=0.0)
        return replace(self, leakage_per_k=0.0, share_sd=0.0, sensor=sensor)

    def varied(self, seed: int) -> GpuProfile:
        """A board as one may meet it: gain +-5 %, lag +-30 ms, idle +-5 W, hidden shares of sd 0.3, any phase.

        The ranges are those of the coverage check in notes/measurement.md, section 4.
        """
        rng = random.Random(f"board {seed}")  # noqa: S311 - a simulation, not a secret
        sensor = replace(
            self.sensor,
            gain=1 + rng.uniform(-0.05, 0.05),
            lag_s=self.sensor.lag_s + rng.uniform(-0.03, 0.03),
            phase_s=rng.uniform(0, self.sensor.step_s),
        )
        return replace(self, idle_w=self.idle_w + rng.uniform(-5, 5), share_sd=0.3, sensor=sensor)


def _heated(profile: GpuProfile) -> GpuProfile:
    """The heat path of the 700 W board, scaled so that a full load is as hot and as slow on this one."""
    scale = profile.power_limit_w / _REFERENCE_W
    return replace(
        profile,
        die_k_per_w=profile.die_k_per_w / scale,
        die_j_per_k=profile.die_j_per_k * scale,
        sink_k_per_w=profile.sink_k_per_w / scale,
        sink_j_per_k=profile.sink_j_per_k * scale,
        memory_k_per_w=profile.memory_k_per_w / scale,
    )


_FULL_WINDOW = SensorProfile(window_s=0.1)

H100 = GpuProfile(
    name="NVIDIA H100 80GB HBM3",
    idle_w=95.0,
    power_limit_w=700.0,
    power_limit_min_w=200.0,
    power_limit_max_w=700.0,
    max_operating_c=83.0,
    slowdown_c=87.0,
    shutdown_c=92.0,
    memory_max_operating_c=95.0,
    memory_total_bytes=80 * _GIB,
    sm_clock_max_mhz=1980.0,
    sm_clock_idle_mhz=345.0,
)
"""nvml-mock ``h100``; 25 of 100 ms sampled, with the one-second mean (Hopper, driver after 530)."""

A100 = _heated(
    GpuProfile(
        name="NVIDIA A100-SXM4-40GB",
        idle_w=72.0,
        power_limit_w=400.0,
        power_limit_min_w=100.0,
        power_limit_max_w=400.0,
        max_operating_c=83.0,
        slowdown_c=87.0,
        shutdown_c=92.0,
        memory_max_operating_c=95.0,
        memory_total_bytes=40 * _GIB,
        sm_clock_max_mhz=1410.0,
        sm_clock_idle_mhz=210.0,
        sensor=SensorProfile(has_average=False),
    )
)
"""nvml-mock ``a100``; 25 of 100 ms sampled, no one-second mean (GA100)."""

L40S = _heated(
    GpuProfile(
        name="NVIDIA L40S",
        idle_w=45.0,
        power_limit_w=350.0,
        power_limit_min_w=100.0,
        power_limit_max_w=350.0,
        max_operating_c=89.0,
        slowdown_c=93.0,
        shutdown_c=96.0,
        memory_max_operating_c=None,
        memory_total_bytes=48 * _GIB,
        sm_clock_max_mhz=2520.0,
        sm_clock_idle_mhz=210.0,
        sensor=_FULL_WINDOW,
    )
)
"""nvml-mock ``l40s``; the whole time sampled (Ada). GDDR6: the memory's own temperature is not reported."""

B200 = _heated(
    GpuProfile(
        name="NVIDIA B200",
        idle_w=130.0,
        power_limit_w=1000.0,
        power_limit_min_w=400.0,
        power_limit_max_w=1200.0,
        max_operating_c=85.0,
        slowdown_c=90.0,
        shutdown_c=95.0,
        memory_max_operating_c=95.0,
        memory_total_bytes=180 * _GIB,
        sm_clock_max_mhz=1965.0,
        sm_clock_idle_mhz=345.0,
        sensor=_FULL_WINDOW,
    )
)
"""nvml-mock ``b200``; nothing is published on Blackwell's sensor, the whole time sampled is assumed."""

PROFILES = {"H100": H100, "A100": A100, "L40S": L40S, "B200": B200}
