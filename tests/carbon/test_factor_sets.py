"""Factor sets: what they hold, how they are checked, kept, named and compared."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.carbon.examples import SOURCE, factor, factor_set, place

from joulegate.carbon.checks import factor_faults, set_jumps, year_jumps
from joulegate.carbon.difference import moves
from joulegate.carbon.entered import EnteredFault, entered_factors, with_entered
from joulegate.carbon.factors import Basis, Factor, FactorSet, Scope, Signal, Unit, canonical, factor_from_wire
from joulegate.carbon.place import PlaceKind
from joulegate.stores.factor_sets import FactorSetFault, FactorSets, parsed, read_set, rendered, shipped_set

SHIPPED = shipped_set()


def test_every_shipped_factor_can_be_cited():
    """Each factor of the shipped set passes every check and has a licence, a citation, a version and an address."""
    for one in SHIPPED.factors:
        source = one.source
        assert factor_faults(one) == (), one
        assert all((source.licence.strip(), source.citation.strip(), source.version.strip())), one
        assert source.url.startswith("https://"), one
        assert "MIT" in source.licence, one
        assert one.low <= one.value <= one.high, one


def test_conventions_of_the_shipped_set():
    """Each table keeps its own convention: Quebec by combustion alone, China CO2 only, Nordic zones mixed."""
    expected = {
        (PlaceKind.COUNTRY, "DEU"): (Scope.LIFE_CYCLE, Basis.PRODUCTION, Unit.CO2E),
        (PlaceKind.REGION, "USA/virginia"): (Scope.DIRECT, Basis.PRODUCTION, Unit.CO2E),
        (PlaceKind.REGION, "CAN/quebec"): (Scope.DIRECT, Basis.PRODUCTION, Unit.CO2E),
        (PlaceKind.REGION, "CHN/beijing"): (Scope.DIRECT, Basis.CONSUMPTION, Unit.CO2),
        (PlaceKind.ZONE, "SE3"): (Scope.MIXED, Basis.PRODUCTION, Unit.CO2E),
        (PlaceKind.CLOUD_REGION, "gcp/us-central1"): (Scope.DIRECT, Basis.NOT_STATED, Unit.CO2E),
    }
    for (kind, code), convention in expected.items():
        found = SHIPPED.best(kind, code)
        assert found is not None
        assert (found.scope, found.basis, found.unit) == convention
    quebec = SHIPPED.best(PlaceKind.REGION, "CAN/quebec")
    assert quebec is not None
    assert "combustion only" in quebec.note
    assert quebec.value == pytest.approx(3.937, abs=1e-3)


def test_misspelt_and_impossible_rows():
    """The misspelt Doha region is mended and says so; the country with a life cycle of 0 g is left out by name."""
    doha = SHIPPED.best(PlaceKind.CLOUD_REGION, "gcp/me-central1")
    assert doha is not None
    assert "me-cenrtal1, mended" in doha.note
    assert SHIPPED.at(PlaceKind.CLOUD_REGION, "gcp/me-cenrtal1") == ()
    assert [line.split(" ")[0] for line in SHIPPED.left_out] == ["CAF"]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"value": -1.0, "low": -1.0}, "value -1 is outside 0 to 3000"),
        ({"value": 3001.0, "high": 3001.0}, "value 3001 is outside 0 to 3000 gCO2e/kWh; check its unit"),
        ({"value": float("nan")}, "value nan is outside"),
        ({"low": 400.0}, "low 400, value 381, high 419.1 are not in order"),
        ({"value": 0.0, "low": 0.0}, "value 0 cannot be a life-cycle factor"),
        ({"period": "2023-13"}, "period '2023-13' is not a year or month"),
        ({"period": ""}, "period '' is not a year or month"),
        ({"place": place(PlaceKind.COUNTRY, "XXX", "XXX")}, "country 'XXX' is not an ISO 3166 code"),
        ({"place": place(PlaceKind.COUNTRY, "FRA", "DEU")}, "place FRA is not its country DEU"),
        ({"place": place(PlaceKind.ZONE, "ES", "SWE")}, "zone ES lies in ESP, the factor's country is SWE"),
        (
            {"place": place(PlaceKind.CLOUD_REGION, "aws/eu-north-1", "SWE", zone="ES")},
            "zone ES lies in ESP, the factor's country is SWE",
        ),
        (
            {"place": place(PlaceKind.CLOUD_REGION, "gcp/me-cenrtal1", "QAT")},
            "me-cenrtal1 is not how gcp spells a region",
        ),
        (
            {"place": place(PlaceKind.CLOUD_REGION, "aws/eu-north1", "SWE")},
            "eu-north1 is not how aws spells a region",
        ),
        ({"place": place(PlaceKind.CLOUD_REGION, "doha", "QAT")}, "cloud region doha is not PROVIDER/REGION"),
        ({"place": place(PlaceKind.REGION, "FRA/x", "DEU")}, "region FRA/x does not begin with its country, DEU/"),
        ({"place": place(PlaceKind.COUNTRY, " ", "DEU")}, "the place has no code"),
        ({"source": replace(SOURCE, licence=" ")}, "source licence is missing"),
        ({"source": replace(SOURCE, citation="")}, "source citation is missing"),
    ],
)
def test_what_published_tables_got_wrong(changes: dict[str, Any], fault: str):
    """Each mistake of a factor is found and named."""
    assert fault in "\n".join(factor_faults(replace(factor(), **changes)))
    assert factor_faults(factor()) == ()


def test_jumps_are_found():
    """A jump between years of one convention or between sets is told; a small one, or of another scope, is not."""
    rows = (factor(381.0), factor(200.0, period="2024"), factor(900.0, period="2025", scope=Scope.DIRECT))
    assert year_jumps(rows) == ("DEU: 381 in 2023, 200 gCO2e/kWh in 2024",)
    old, new = factor_set(factor(381.0)), factor_set(factor(200.0, period="2024"))
    assert set_jumps(old, new) == ("DEU: 381 (2023) becomes 200 gCO2e/kWh (2024)",)
    assert set_jumps(old, factor_set(factor(370.0))) == ()
    assert year_jumps((factor(9.0), factor(2.0, period="2024"))) == ()


@given(st.permutations([factor(), factor(period="2022"), factor(scope=Scope.DIRECT)]), st.dates())
def test_the_hash_is_of_the_content(factors: list[Factor], built: Any):
    """Order, date, name and generator change no hash; any change of any factor does."""
    made = FactorSet.of("x", factors, built_at=str(built), generator=str(built))
    assert made.hash == factor_set(factor(), factor(period="2022"), factor(scope=Scope.DIRECT)).hash
    one, *rest = factors
    for changes in ({"value": 381.0000001}, {"note": "x"}, {"source": replace(SOURCE, licence="other")}):
        changed = replace(one, **changes)
        assert FactorSet.of("x", [changed, *rest], built_at="", generator="").hash != made.hash


def test_the_hash_never_moves_between_versions():
    """The canonical form is a contract: entries of years ago refer to it."""
    one = factor(381.25, place=place(PlaceKind.REGION, "CAN/québec", "CAN", "qc"))
    assert canonical([one]).startswith(b'[{"aliases":["qc"],"basis":"production","country":"CAN","entered":false,')
    assert "CAN/québec".encode() in canonical([one])
    assert factor_set(one).hash == "869c6a8749e92be4523640492df20ed3f08381ddc49822cae760b7d63e1f35c2"


def test_a_set_is_immutable():
    """Neither a set nor a factor can be changed, and two factors of one key are refused."""
    for record, name in ((SHIPPED, "factors"), (SHIPPED.factors[0], "value")):
        with pytest.raises(FrozenInstanceError):
            setattr(record, name, 1)
    with pytest.raises(ValueError, match="two factors for DEU 2023"):
        factor_set(factor(1.0), factor(2.0))


def test_a_marginal_factor_is_never_the_best():
    """Only average factors are used for a place; the newest rules, and the operator's own before any."""
    rows = [factor(), factor(500.0, signal=Signal.MARGINAL, period="2025"), factor(370.0, period="2024-05")]
    found = factor_set(*rows, factor(360.0, period="2024-04")).best(PlaceKind.COUNTRY, "deu")
    assert found is not None
    assert found.value == 370
    own = factor_set(*rows, factor(300.0, period="2020", entered=True)).best(PlaceKind.COUNTRY, "DEU")
    assert own is not None
    assert own.value == 300
    assert factor_set(rows[1]).best(PlaceKind.COUNTRY, "DEU") is None


@given(st.floats(0, 3000), st.text(st.characters(exclude_categories=("Cs",)), max_size=20))
def test_files_read_back(value: float, note: str):
    """A set that is written and read is the same set, whatever is in its notes."""
    made = factor_set(factor(value, low=0.0, high=3000.0, note=note))
    again = parsed(rendered(made), "file")
    assert again == made
    assert again.best(PlaceKind.COUNTRY, "DEU") == made.factors[0]
    assert factor_from_wire(made.factors[0].to_wire()) == made.factors[0]


def test_diff_is_sorted_by_relative_change():
    """What moved most comes first, then what one side lacks; a better citation is no move."""
    france, spain, italy = (place(PlaceKind.COUNTRY, code, code) for code in ("FRA", "ESP", "ITA"))
    old = factor_set(factor(400.0), factor(50.0, place=france), factor(9.0, place=spain))
    new = factor_set(factor(300.0), factor(75.0, place=france, scope=Scope.DIRECT), factor(9.0, place=italy))
    found = moves(old, new)
    told = [(move.factor.place.code, move.relative, move.changed[0]) for move in found]
    assert told == [
        ("FRA", 0.5, "value"),
        ("DEU", -0.25, "value"),
        ("ESP", None, "removed"),
        ("ITA", None, "added"),
    ]
    assert "scope" in found[0].changed
    assert moves(old, factor_set(*(replace(f, source=replace(SOURCE, citation="y")) for f in old.factors))) == ()


ROW = {
    "place": "DEU",
    "period": "2024",
    "value": 371.0,
    "scope": "direct",
    "basis": "consumption",
    "source": "UBA",
    "licence": "CC BY 4.0",
    "citation": "UBA 2025",
}


def test_entered_factors():
    """An operator's table becomes a factor, marked as entered, with defaults only where nothing can be mistaken."""
    (one,) = entered_factors({"factors": [ROW]})
    assert (one.place.kind, one.place.country, one.unit, one.signal) == (
        PlaceKind.COUNTRY,
        "DEU",
        Unit.CO2E,
        Signal.AVERAGE,
    )
    assert (one.low, one.value, one.high, one.entered) == (371, 371, 371, True)
    cloud = {**ROW, "place": "aws/eu-central-1", "kind": "cloud_region", "country": "DEU", "low": 300, "high": 400.0}
    (two,) = entered_factors({"factors": [cloud]})
    assert (two.place.code, two.low, two.high) == ("aws/eu-central-1", 300, 400)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"licence": None}, "factors[1] (DEU).licence: missing; give the terms it is published under"),
        ({"licenc": "x"}, "factors[1] (DEU).licenc: unknown key; did you mean licence?"),
        ({"value": "x"}, "factors[1] (DEU).value: 'x' is not a number"),
        ({"value": True}, "factors[1] (DEU).value: True is not a number"),
        ({"value": 4000}, "factors[1] (DEU): value 4000 is outside 0 to 3000 gCO2e/kWh; check its unit"),
        ({"value": -1}, "factors[1] (DEU): value -1 is outside 0 to 3000"),
        ({"scope": "direkt"}, "factors[1] (DEU).scope: 'direkt' is not one of direct, life-cycle, mixed, not stated"),
        ({"scope": None}, "factors[1] (DEU).scope: missing; give one of direct"),
        ({"period": 2024}, "factors[1] (DEU).period: 2024 is not text in quotes; give the year or month"),
        ({"aliases": "x"}, "factors[1] (DEU).aliases: 'x' is not a list of texts"),
        ({"citation": " "}, "factors[1] (DEU): source citation is missing"),
    ],
)
def test_faults_of_entered_factors(changes: dict[str, Any], fault: str):
    """Each fault of the operator's file names its table, key and what to give."""
    row = {name: value for name, value in {**ROW, **changes}.items() if value is not None}
    with pytest.raises(EnteredFault) as caught:
        entered_factors({"factors": [row]})
    assert fault in caught.value.lines[0]


def test_faults_of_an_entered_document():
    """A repeated factor, an empty file and an unknown table are faults; all are told at once."""
    with pytest.raises(EnteredFault) as caught:
        entered_factors({"factors": [ROW, ROW]})
    assert caught.value.lines == ("factors: DEU 2024 (average, direct, consumption) is there twice; keep one",)
    with pytest.raises(EnteredFault) as caught:
        entered_factors({"factor": [ROW]})
    assert len(caught.value.lines) == 2
    with pytest.raises(EnteredFault) as caught:
        entered_factors({"factors": [{**ROW, "value": "x"}, 3]})
    assert len(caught.value.lines) == 2


def test_an_entered_factor_replaces_one_of_its_key():
    """The operator's factor takes the place of a published one of the same key, with a line that says so."""
    own = factor(300.0, entered=True)
    merged, lines = with_entered([factor(381.0), factor(350.0, period="2022")], [own])
    assert set(merged) == {own, factor(350.0, period="2022")}
    assert lines == ("DEU 2023: 381 of A publisher gives way to 300 of A publisher",)


@pytest.fixture
def sets(tmp_path: Path) -> FactorSets:
    """The sets of an empty state folder."""
    return FactorSets(tmp_path / "state")


def test_pin_and_undo(sets: FactorSets):
    """The shipped set is in use until another is pinned, and again when the pin is cleared."""
    assert sets.in_use() is SHIPPED
    assert not sets.folder.exists()
    own = factor_set(factor(), name="own")
    sets.pin(own)
    assert sets.in_use() == own
    assert [(one.factors.id, one.pinned) for one in sets.known()] == [(SHIPPED.id, False), (own.id, True)]
    assert sets.by_hash(own.hash) == own
    assert sets.by_hash("0" * 64) is None
    assert sets.clear_pin()
    assert not sets.clear_pin()
    assert sets.in_use() is SHIPPED


def test_sets_are_found_by_name(sets: FactorSets, tmp_path: Path):
    """A set is meant by id, hash prefix, file or the word shipped; anything else is one line with what is known."""
    own = factor_set(factor(), name="own")
    path = sets.save(own)
    assert sets.save(own) == path
    for reference in (own.id, own.hash, own.hash[:8], str(path)):
        assert sets.find(reference) == own
    assert sets.find("shipped") is SHIPPED
    with pytest.raises(FactorSetFault, match=f"no such factor set or file; known are shipped, {SHIPPED.id}, {own.id}"):
        sets.find(str(tmp_path / "none.json"))
    with pytest.raises(FactorSetFault, match="no such factor set"):
        sets.find(own.hash[:4])


def test_a_changed_file_is_refused(sets: FactorSets):
    """A set whose factors no longer have its hash is not used, also where an entry or a pin asks for it."""
    path = sets.save(factor_set(factor(381.0)))
    path.write_text(path.read_text().replace('"value": 381.0', '"value": 38.1'))
    with pytest.raises(FactorSetFault, match="the factors were changed after they were built"):
        read_set(path)
    with pytest.raises(FactorSetFault, match="changed"):
        sets.known()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "not a factor set"),
        ("[]", "not a factor set"),
        ("{}", "not a factor set (KeyError: 'schema')"),
        ('{"schema": "joulegate.factors/v9"}', "a set of schema joulegate.factors/v9, this joulegate reads"),
        ('{"schema": "joulegate.factors/v1", "name": "x", "factors": [{}]}', "not a factor set (KeyError"),
    ],
)
def test_a_file_that_is_no_set(text: str, fault: str, tmp_path: Path):
    """Any other file is one line that names it."""
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(FactorSetFault) as caught:
        read_set(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pin_without_its_set(sets: FactorSets):
    """A pin whose set is gone, and a damaged pin, are faults with the way out; nothing stands in silently."""
    own = factor_set(factor())
    sets.pin(own)
    sets.path_of(own).unlink()
    with pytest.raises(FactorSetFault, match="factors pin --clear"):
        sets.in_use()
    (sets.folder / "pinned.json").write_text("{")
    with pytest.raises(FactorSetFault, match=r"damaged; run `joulegate factors pin --clear`"):
        sets.in_use()
    assert sets.clear_pin()
    assert sets.in_use() is SHIPPED


def test_unwritable_folder(tmp_path: Path):
    """A folder that cannot be made is one line with the path and the reason."""
    (tmp_path / "state").write_text("a file")
    with pytest.raises(FactorSetFault, match=r"cannot be written \((Not a directory|File exists)\); choose"):
        FactorSets(tmp_path / "state").save(factor_set(factor()))


def test_the_shipped_file_is_canonical():
    """The shipped file is what this code would write for it, so it can be rebuilt and compared byte by byte."""
    file = Path(__file__).parents[2] / "agent/joulegate/stores/data/factors.json"
    text = file.read_text(encoding="utf-8")
    assert rendered(SHIPPED) == text
    assert json.loads(text)["id"] == SHIPPED.id
    assert file.with_suffix(".LICENSE").read_text(encoding="utf-8").startswith("MIT License")
