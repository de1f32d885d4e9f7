"""The views beside the energy: what they may cost (themselves), what they may claim, and how much they may remember."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from joulegate.carbon.site import Site
from joulegate.daemon.carbon import MOST_NAMES, CarbonViews
from joulegate.metering.entry import DeviceUse, RequestEntry, Status
from joulegate.metering.reading import Device, Method, Quality
from joulegate.metering.span import Outcome, StartSource, Work
from joulegate.sources.grid.choice import make_monitor
from joulegate.sources.grid.options import GridOptions
from joulegate.stores.factor_sets import shipped_set

H100 = Device("GPU-0", "NVIDIA H100 80GB HBM3", Method.COUNTER, Quality.MEASURED)


def views_of(folder: Path, devices: Iterable[Device] = (H100,)) -> CarbonViews:
    """Views for a site in Germany, by the factor set alone."""
    monitor = make_monitor(GridOptions(), factors=None, state_dir=folder, clock=time.time)
    return CarbonViews(Site(country="DEU"), shipped_set(), monitor, lambda: devices, tuple)


def entry(
    request_id: str, energy_mj: int = 30_000_000, quality: Quality = Quality.MEASURED, model: str = "m"
) -> RequestEntry:
    """A final request of half a minute on the H100."""
    return RequestEntry(
        request_id, Status.FINAL, Outcome.OK, Work(1, 50, 1024, 1024), 1_700_000_000.0, 1_700_000_030.0,
        StartSource.DECLARED, energy_mj, 1000, 1000, Method.COUNTER, quality,
        model=model, devices={"GPU-0": DeviceUse(energy_mj)},
    )  # fmt: skip


def test_a_defect_costs_the_views_and_never_the_energy(tmp_path: Path) -> None:
    """When CO2e cannot be worked out, the entry goes on to its pipeline with its energy, and the defect is counted."""

    def broken() -> Iterable[Device]:
        raise RuntimeError("a defect")

    views = views_of(tmp_path)
    views._devices = broken
    (seen,) = views.with_co2e([entry("r")])
    assert seen.energy_mj == 30_000_000
    assert seen.views == {"co2e_g": None, "water_l": None, "cost": None}
    assert ("joulegate_agent_carbon_faults", "counter", {}, 1.0) in views.series()


def test_energy_carries_the_weakest_of_its_own_qualities(tmp_path: Path) -> None:
    """Simulated energy in a range makes its CO2e simulated, whatever devices are plugged in now (law 3)."""
    views = views_of(tmp_path)
    for qualities, tier in ((["measured"], "modelled"), (["measured", "simulated"], "simulated")):
        co2e = views.of_energy({1_700_000_000: 3_600_000_000}, 3600, qualities)["co2e_g"]
        assert co2e["location_based"]["tier"] == tier


def test_names_from_outside_are_bounded(tmp_path: Path) -> None:
    """A flood of model names ends in one series called other, and loses no gram."""
    views = views_of(tmp_path)
    count = MOST_NAMES["model"] + 50
    views.with_co2e([entry(f"r{i}", model=f"model-{i}") for i in range(count)])
    grams = {
        labels["model"]: value for name, _, labels, value in views.series() if name == "joulegate_request_co2e_grams"
    }
    assert len(grams) == MOST_NAMES["model"] + 1
    assert abs(grams["other"] / grams["model-0"] - 50) < 1e-6


def test_only_measured_energy_is_called_a_regression(tmp_path: Path) -> None:
    """A request at four times its reference is named; the same figure from a simulation accuses nobody."""
    views = views_of(tmp_path)
    found = views.of_request(entry("r", model="FLUX.1-dev"))["efficiency_regression"]
    assert found is not None
    assert found["ratio"] > 3
    simulated = entry("s", model="FLUX.1-dev", quality=Quality.SIMULATED)
    assert views.of_request(simulated)["efficiency_regression"] is None
    assert views.of_request(entry("t", 7_700_000, model="FLUX.1-dev"))["efficiency_regression"] is None
