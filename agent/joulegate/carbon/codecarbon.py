"""codecarbon's data files as factors of our own, each with the convention that its file has (notes/carbon.md, 2.2).

The values are what codecarbon 3.3 itself would multiply by. Read as data; codecarbon's code never runs.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from joulegate.carbon.checks import factor_faults
from joulegate.carbon.factors import Basis, Factor, Scope, Signal, Source, Unit
from joulegate.carbon.place import Place, PlaceKind

FILES = {
    "world": "data/private_infra/global_energy_mix.json",
    "usa": "data/private_infra/2023/usa_emissions.json",
    "canada": "data/private_infra/2023/canada_energy_mix.json",
    "china": "data/private_infra/2023/china_provincial_emissions.json",
    "nordic": "data/private_infra/nordic_emissions.json",
    "cloud": "data/cloud/impact.csv",
}
"""What is read, below the package's folder."""

LICENCES = ("MIT", "MIT License")
"""Terms of the package that the factors' licences name."""

G_PER_LB = 453.59237
SPREAD = 0.26
"""Nine in ten of 212 countries differ by less than this between codecarbon's table and EcoLogits' (notes, 2.2)."""

CLEAN_G_PER_KWH = 100.0
CLEAN_LOW = 1 / 3
"""In clean grids published factors lie up to three times apart (France 56, 41 and 16 g/kWh; notes, 2.2)."""

CANADA_G_PER_KWH = {"coal": 995.725971, "petroleum": 816.6885263, "naturalGas": 743.8415916}
"""What codecarbon counts for Canada's provinces; hydro, nuclear, wind, solar and biomass count nothing."""

_PROVINCES = {
    "alberta": "AB",
    "british columbia": "BC",
    "manitoba": "MB",
    "new brunswick": "NB",
    "newfoundland and labrador": "NL",
    "northwest territories": "NT",
    "nova scotia": "NS",
    "nunavut": "NU",
    "ontario": "ON",
    "prince edward island": "PE",
    "quebec": "QC",
    "saskatchewan": "SK",
    "yukon": "YT",
}
_MISSPELT = {"me-cenrtal1": "me-central1"}
"""codecarbon 3.3.2's spelling -> Google's own (region-carbon-info, data/yearly/2023.csv: me-central1, Doha, 575)."""

_NORDIC_COUNTRY = {"SE": "SWE", "NO": "NOR", "FI": "FIN"}
_CODECARBON = "Courty, Schmidt, Luccioni et al.: CodeCarbon, doi:10.5281/zenodo.11171501"


class UnusableData(ValueError):
    """A data file is not what this converter was written for; the text says which and why."""


@dataclass(slots=True)
class Imported:
    """Factors that passed every check, and a line for each row that did not."""

    factors: list[Factor] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(self, factor: Factor) -> None:
        """Take ``factor``, or say why not."""
        faults = factor_faults(factor)
        if faults:
            self.left_out.append(f"{factor.place.code} {factor.period}: {'; '.join(faults)}")
        else:
            self.factors.append(factor)


def import_codecarbon(files: Mapping[str, str], version: str) -> Imported:
    """Factors from the texts of ``FILES`` (by the same names) of codecarbon ``version``; raises ``UnusableData``."""
    imported = Imported()
    readers = {
        "world": _countries,
        "usa": _states,
        "canada": _provinces,
        "china": _china,
        "nordic": _nordic,
        "cloud": _cloud,
    }
    for name, reader in readers.items():
        try:
            for factor in reader(files[name], version):
                imported.add(factor)
        except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
            raise UnusableData(
                f"codecarbon {version}: {FILES[name]} is not as expected ({type(error).__name__}: {error}); "
                "install the version that this joulegate was tested with, codecarbon 3.3.2"
            ) from error
    return imported


def _spread(value: float) -> tuple[float, float]:
    low = CLEAN_LOW if value < CLEAN_G_PER_KWH else 1 - SPREAD
    return value * low, min(3000.0, value * (1 + SPREAD))


@dataclass(frozen=True, slots=True)
class _Table:
    """What all rows of one data file have in common."""

    source: Source
    unit: Unit
    scope: Scope
    basis: Basis
    note: str = ""

    def factor(self, place: Place, period: object, value: float, note: str = "") -> Factor:
        low, high = _spread(value)
        return Factor(
            place=place,
            period=str(period),
            value=value,
            low=low,
            high=high,
            unit=self.unit,
            signal=Signal.AVERAGE,
            scope=self.scope,
            basis=self.basis,
            source=self.source,
            note=self.note + note,
        )


def _countries(text: str, version: str) -> Iterator[Factor]:
    source = Source(
        "Our World in Data / Ember, through codecarbon",
        f"codecarbon {version}",
        "CC BY 4.0 (data), MIT (codecarbon)",
        f"Ember, processed by Our World in Data: Lifecycle carbon intensity of electricity generation; {_CODECARBON}",
        "https://ourworldindata.org/grapher/carbon-intensity-electricity",
    )
    rows = _Table(source, Unit.CO2E, Scope.LIFE_CYCLE, Basis.PRODUCTION)
    for code, row in json.loads(text).items():
        place = Place(PlaceKind.COUNTRY, code, row["iso_code"], row["country_name"])
        yield rows.factor(place, row["year"], float(row["carbon_intensity"]))


def _states(text: str, version: str) -> Iterator[Factor]:
    table: dict[str, Any] = json.loads(text)
    origin, unit = table.pop("_source"), table.pop("_unit")
    if unit["emissions"] != "lbs/MWh":
        raise ValueError(f"the unit is {unit['emissions']}")
    source = Source(
        "US EPA eGRID, through codecarbon",
        f"{origin['name'].split(',')[0].removeprefix('EPA ')}, codecarbon {version}",
        "public domain (US government work), MIT (codecarbon)",
        f"{origin['name']} ({origin['field']}); {_CODECARBON}",
        origin["url"],
    )
    rows = _Table(source, Unit.CO2E, Scope.DIRECT, Basis.PRODUCTION, "output rate of the plants in the state")
    for name, row in table.items():
        if name == "usa":
            continue
        short = row["regionCode"]
        place = Place(PlaceKind.REGION, f"USA/{name}", "USA", name.title(), (name, f"US-{short}"))
        # Multiplied in codecarbon's own order, so that the product is the same double.
        value = row["emissions"] * (G_PER_LB / 1e6) * 1e3
        yield rows.factor(place, origin["year"], value)


def _provinces(text: str, version: str) -> Iterator[Factor]:
    source = Source(
        "codecarbon's energy mix of the provinces",
        f"codecarbon {version}",
        "MIT (codecarbon)",
        f"{_CODECARBON}; the file names no source of the mix, the year is that of its folder",
        "https://github.com/mlco2/codecarbon",
    )
    note = "combustion only: hydro, nuclear, wind, solar and biomass count as 0 g"
    rows = _Table(source, Unit.CO2E, Scope.DIRECT, Basis.PRODUCTION, note)
    for name, mix in json.loads(text).items():
        value = sum(mix[fuel] / mix["total"] * g_per_kwh for fuel, g_per_kwh in CANADA_G_PER_KWH.items())
        short = f"CA-{_PROVINCES[name]}"
        place = Place(PlaceKind.REGION, f"CAN/{name}", "CAN", name.title(), (name, short))
        yield rows.factor(place, 2023, value)


def _china(text: str, version: str) -> Iterator[Factor]:
    table = json.loads(text)
    about = table["metadata"]
    source = Source(
        "Ministry of Ecology and Environment of China, through codecarbon",
        f"announcement {about['announcement']}, codecarbon {version}",
        "official publication, terms not stated; MIT (codecarbon)",
        f"{about['source']}; {_CODECARBON}",
        about["source_url"],
    )
    rows = _Table(source, Unit.CO2, Scope.DIRECT, Basis.CONSUMPTION, "CO2 only, no other greenhouse gases")
    for code, row in table["data"].items():
        _expect(row["unit"], "gCO2/kWh")
        name, *others = row["names"]
        place = Place(PlaceKind.REGION, f"CHN/{name}", "CHN", row["description"], (name, *others, code))
        yield rows.factor(place, row["year"], float(row["emission_factor"]))


def _nordic(text: str, version: str) -> Iterator[Factor]:
    table = json.loads(text)
    about = table["metadata"]
    source = Source(
        "ENTSO-E generation by zone, weighted by codecarbon",
        f"{about['last_updated']}, codecarbon {version}",
        "ENTSO-E terms of use (data), MIT (codecarbon)",
        f"ENTSO-E Transparency Platform, actual generation per type; {about['provenance'].split('. ')[0]}; "
        f"{_CODECARBON}",
        "https://transparency.entsoe.eu",
    )
    rows = _Table(
        source,
        Unit.CO2E,
        Scope.MIXED,
        Basis.PRODUCTION,
        "fuels by combustion, the rest by life cycle (hydro 26 g); covers ",
    )
    for code, row in table["data"].items():
        _expect(row["unit"], "gCO2eq/kWh")
        country = code[:2]
        aliases = (f"{country}-{code}",) if code != country else ()
        place = Place(PlaceKind.ZONE, code, _NORDIC_COUNTRY[country], row["description"], aliases)
        yield rows.factor(place, row["year"], float(row["emission_factor"]), str(row.get("coverage", "not stated")))


def _cloud(text: str, version: str) -> Iterator[Factor]:
    source = Source(
        "Google Cloud region carbon data, through codecarbon",
        f"2023, codecarbon {version}",
        "published by Google, terms not stated; MIT (codecarbon)",
        f"Google: Carbon free energy for Google Cloud regions, grid carbon intensity 2023; {_CODECARBON}",
        "https://cloud.google.com/sustainability/region-carbon",
    )
    rows = _Table(
        source,
        Unit.CO2E,
        Scope.DIRECT,
        Basis.NOT_STATED,
        "average operational gross emissions of the local grid; "
        "codecarbon's file names no year, it equals Google's 2023",
    )
    for row in csv.DictReader(io.StringIO(text.removeprefix("\ufeff"))):
        spelt = row["region"]
        region = _MISSPELT.get(spelt, spelt)
        code = f"{row['provider']}/{region}"
        place = Place(PlaceKind.CLOUD_REGION, code, row["countryIsoCode"], f"{row['city']}, {row['country_name']}")
        mended = "" if spelt == region else f"; codecarbon spells the region {spelt}, mended"
        yield rows.factor(place, 2023, float(row["impact"]), mended)


def _expect(unit: str, wanted: str) -> None:
    if unit != wanted:
        raise ValueError(f"the unit is {unit}, not {wanted}")
