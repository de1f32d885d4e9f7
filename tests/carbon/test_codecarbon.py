"""The factors against codecarbon's own offline answers, recorded, and live where codecarbon is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.carbon.examples import FILES_OF_ONE, entry

from joulegate.carbon.codecarbon import FILES, UnusableData, import_codecarbon
from joulegate.carbon.factors import FactorSet
from joulegate.carbon.figure import Range
from joulegate.carbon.footprint import footprint_of
from joulegate.carbon.place import PlaceKind
from joulegate.carbon.site import Site
from joulegate.carbon.view import View
from joulegate.stores.codecarbon_files import read_codecarbon
from joulegate.stores.factor_sets import shipped_set

HERE = Path(__file__).parent
RECORDED = json.loads((HERE / "codecarbon_offline.json").read_text(encoding="utf-8"))
TOLERANCE = 1e-6


def site_of(code: str) -> Site:
    """The site at one of codecarbon's places."""
    for kind, site in (
        (PlaceKind.COUNTRY, Site(country=code)),
        (PlaceKind.REGION, Site(country=code[:3], region=code[4:])),
        (PlaceKind.ZONE, Site(zone=code)),
    ):
        if shipped_set().at(kind, code):
            return site
    return Site(cloud_region=code)


def assert_equal_grams(answers: Mapping[str, Any], factors: FactorSet) -> int:
    """Our location-based grams are codecarbon's at every place it knows; returns how many there are."""
    request = entry(answers["energy_mj"])
    for code, kg in answers["kg"].items():
        if code in {"CAF", "gcp/me-cenrtal1"}:
            continue
        figure = footprint_of(request, View(site_of(code), factors)).location_based
        assert isinstance(figure, Range), code
        assert figure.central == pytest.approx(kg * 1000, rel=TOLERANCE), code
    return len(answers["kg"])


def test_equal_to_the_recorded_answers():
    """At each of codecarbon 3.3.2's 357 places the operational CO2e is its own offline value, within 1e-6."""
    assert RECORDED["codecarbon"] == "3.3.2"
    assert assert_equal_grams(RECORDED, shipped_set()) == 357


def test_equal_to_the_recorded_tracker():
    """For the energy its offline tracker counted in Germany, ours gives the tracker's own kilograms."""
    kwh, kg = RECORDED["tracker"]["kwh"], RECORDED["tracker"]["kg"]
    figure = footprint_of(entry(round(kwh * 3.6e9)), View(Site(country="DEU"), shipped_set())).location_based
    assert isinstance(figure, Range)
    assert figure.central / round(kwh * 3.6e9) == pytest.approx(kg * 1000 / (kwh * 3.6e9), rel=TOLERANCE)


@pytest.fixture
def installed(require_module: Callable[[str, str], ModuleType]) -> None:
    """Codecarbon is installed; it is looked for, not imported, so that nothing of it runs in this process."""
    if find_spec("codecarbon") is None:
        require_module("codecarbon", "factors")


@pytest.mark.usefixtures("installed")
def test_equal_to_the_installed_codecarbon(tmp_path: Path):
    """The installed codecarbon, asked in a process of its own, answers what the set built from its files gives."""
    done = subprocess.run(
        [sys.executable, HERE / "ask_codecarbon.py"],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path), "HTTPS_PROXY": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = read_codecarbon(FILES)
    imported = import_codecarbon(found.files, found.version)
    assert_equal_grams(
        json.loads(done.stdout), FactorSet.of("live", imported.factors, built_at="2026-11-24", generator="test")
    )


@pytest.mark.usefixtures("installed")
def test_the_shipped_set_can_be_rebuilt():
    """From the files of the version it names, the shipped set is built again with the same hash."""
    found = read_codecarbon(FILES)
    if found.version != "3.3.2":
        pytest.skip(f"the shipped set is of codecarbon 3.3.2, here is {found.version}")
    imported = import_codecarbon(found.files, found.version)
    again = FactorSet.of(
        f"codecarbon-{found.version}",
        imported.factors,
        built_at=shipped_set().built_at,
        generator=shipped_set().generator,
        left_out=imported.left_out,
    )
    assert again == shipped_set()


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("world", "[", "global_energy_mix.json is not as expected (JSONDecodeError"),
        ("world", '{"DEU": {}}', "global_energy_mix.json is not as expected (KeyError: 'iso_code')"),
        ("usa", '{"_unit": {"emissions": "kg"}, "_source": {}}', "usa_emissions.json is not as expected (ValueError"),
        ("canada", '{"quebec": {}}', "canada_energy_mix.json is not as expected (KeyError"),
        ("cloud", "provider\nx\n", "impact.csv is not as expected (KeyError"),
    ],
)
def test_files_of_another_shape(name: str, text: str, fault: str):
    """Data of a codecarbon that changed its files is refused in one line, never half read."""
    with pytest.raises(UnusableData) as caught:
        import_codecarbon({**FILES_OF_ONE, name: text}, "9.9")
    assert fault in str(caught.value)
    assert len(import_codecarbon(FILES_OF_ONE, "9.9").factors) == 1


def test_the_misspelt_region_is_mended():
    """Doha's region has Google's own name, and its factor says how codecarbon spells it."""
    cloud = FILES_OF_ONE["cloud"] + "gcp,me-cenrtal1,QAT,Doha,Qatar,575\n"
    doha = import_codecarbon({**FILES_OF_ONE, "cloud": cloud}, "9.9").factors[-1]
    assert (doha.place.code, doha.value) == ("gcp/me-central1", 575)
    assert doha.note.endswith("codecarbon spells the region me-cenrtal1, mended")


def test_a_bad_row_is_left_out_and_named():
    """A row that fails a check stays out with its reason, and the rest is taken."""
    cloud = FILES_OF_ONE["cloud"] + "gcp,us-esat1,USA,X,USA,300\ngcp,us-east1,USA,X,USA,300\n"
    imported = import_codecarbon({**FILES_OF_ONE, "cloud": cloud}, "9.9")
    assert [one.place.code for one in imported.factors] == ["DEU", "gcp/us-east1"]
    assert imported.left_out == ["gcp/us-esat1 2023: us-esat1 is not how gcp spells a region"]
