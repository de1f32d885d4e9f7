"""codecarbon's own offline answers, for comparison: run by a process of its own, never imported by a test.

    python tests/carbon/ask_codecarbon.py > tests/carbon/codecarbon_offline.json

prints kilograms for the energy of ``ENERGY_MJ`` millijoules at every place of its data files, and what its offline
tracker counts for Germany. Nothing is asked of the network.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from importlib import metadata

from codecarbon import OfflineEmissionsTracker
from codecarbon.core.emissions import Emissions
from codecarbon.core.units import Energy
from codecarbon.external.geography import CloudMetadata, GeoMetadata
from codecarbon.input import DataSource

ENERGY_MJ = 3_600_000_000


def main() -> int:
    """Ask for everything and print it."""
    logging.disable(logging.CRITICAL)
    data = DataSource()
    emissions, energy = Emissions(data), Energy.from_millijoules(ENERGY_MJ)
    answers = {
        code: emissions.get_private_infra_emissions(energy, GeoMetadata(code))
        for code in data.get_global_energy_mix_data()
    }
    regions = [
        ("USA", [name for name in data.get_country_emissions_data("usa") if name != "usa" and name[0] != "_"]),
        ("CAN", list(data.get_country_energy_mix_data("can"))),
        ("CHN", [row["names"][0] for row in data.get_china_provincial_emissions_data()["data"].values()]),
    ]
    for country, names in regions:
        for name in names:
            geo = GeoMetadata(country, region=name)
            answers[f"{country}/{name}"] = emissions.get_private_infra_emissions(energy, geo)
    for zone in data.get_nordic_country_energy_mix_data()["data"]:
        geo = GeoMetadata({"SE": "SWE", "NO": "NOR", "FI": "FIN"}[zone[:2]], region=zone)
        answers[zone] = emissions.get_private_infra_emissions(energy, geo)
    for row in data.get_cloud_emissions_data().itertuples():
        cloud = CloudMetadata(row.provider, row.region)
        answers[f"{row.provider}/{row.region}"] = emissions.get_cloud_emissions(energy, cloud)
    facts = {"codecarbon": metadata.version("codecarbon"), "energy_mj": ENERGY_MJ, "kg": answers, "tracker": tracked()}
    sys.stdout.write(json.dumps(facts, indent=0) + "\n")
    return 0


def tracked() -> dict[str, float]:
    """What the offline tracker counts for half a second of forced power in Germany: kWh and kg."""
    tracker = OfflineEmissionsTracker(
        country_iso_code="DEU",
        force_cpu_power=100,
        force_ram_power=10,
        gpu_ids=[],
        output_methods=[],
        measure_power_secs=60,
        log_level="critical",
    )
    tracker.start()
    time.sleep(0.5)
    kg = tracker.stop()
    return {"kwh": tracker.final_emissions_data.energy_consumed, "kg": kg}


if __name__ == "__main__":
    sys.exit(main())
