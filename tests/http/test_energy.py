"""Tests of ``GET /v1/energy`` over a real ledger."""

import httpx
import pytest
from tests.http.stand_ins import H100, NOON_S, World, account, entry

from joulegate.http.moments import wall_s_from_query
from joulegate.metering.batch import Batch
from joulegate.metering.reading import Quality

HOUR_AGO_S = int(NOON_S) - 3_600


@pytest.fixture
def filled(world: World) -> World:
    """Three requests between 11:00 and 12:00 and the accounts that hold them."""
    entries = (entry(100), entry(200, tier="pro"), entry(310, model="flux", quality=Quality.APPORTIONED))
    accounts = [account(share.bucket_s, share.energy_mj, 50, 7, 3) for one in entries for share in one.shares]
    world.ledger.commit(Batch(entries=entries, accounts=(*accounts, account(HOUR_AGO_S + 600, 0, 950))))
    return world


async def answer(client: httpx.AsyncClient, query: str = "") -> dict:
    """The body of a good answer."""
    got = await client.get("/v1/energy" + query)
    assert got.status_code == 200, got.text
    return got.json()


async def test_the_last_hour_is_the_default(filled: World, client: httpx.AsyncClient) -> None:
    """Without a range the last hour is added up, and law 1 holds in its totals."""
    body = await answer(client)
    assert (body["from"], body["to"]) == ("2025-03-30T11:00:00.000000Z", "2025-03-30T12:00:00.000000Z")
    totals = body["totals"]
    assert totals == {
        "device_mj": 19_292, "requests_mj": 18_000, "idle_mj": 1_250, "unattributed_mj": 42, "estimated_mj": 18,
        "pending_mj": 0,
    }  # fmt: skip
    assert totals["device_mj"] == totals["requests_mj"] + totals["idle_mj"] + totals["unattributed_mj"]
    assert body["groups"] == []
    assert body["quality"] == {
        "device": {"measured": 1.0},
        "requests": {"apportioned": pytest.approx(1 / 3), "measured": pytest.approx(2 / 3)},
    }  # fmt: skip


@pytest.mark.parametrize("query", ["?by=model,tier", "?by=model&by=tier", "?by=model,tier,model,"])
async def test_groups_add_up(filled: World, client: httpx.AsyncClient, query: str) -> None:
    """Groups by model and tier add up to the energy of the requests, however the keys are written."""
    body = await answer(client, query)
    groups = {(group["model"], group["tier"]): group["requests_mj"] for group in body["groups"]}
    assert groups == {("sdxl", "free"): 6_000, ("sdxl", "pro"): 6_000, ("flux", "free"): 6_000}
    assert sum(groups.values()) == body["totals"]["requests_mj"]
    assert body["by"] == ["model", "tier"]
    assert "hour" not in body["groups"][0]
    assert {group["idle_mj"] for group in body["groups"]} == {None}


async def test_device_and_hour_are_keys(filled: World, client: httpx.AsyncClient) -> None:
    """By device and hour, the hour is the RFC 3339 start of it."""
    (group,) = (await answer(client, "?by=device,hour"))["groups"]
    assert (group["device"], group["hour"]) == (H100.id, "2025-03-30T11:00:00.000000Z")
    assert (group["requests"], group["requests_mj"], group["pending"]) == (3, 18_000, False)
    assert (group["device_mj"], group["idle_mj"], group["unattributed_mj"]) == (19_292, 1_250, 42)
    assert group["quality"]["measured"] == pytest.approx(2 / 3)


async def test_range_is_widened_to_whole_stretches(filled: World, client: httpx.AsyncClient) -> None:
    """A range of parts of ten seconds answers for the whole ten seconds and says so."""
    body = await answer(client, f"?from={HOUR_AGO_S + 95}&to=2025-03-30T13:01:41.5%2B02:00")
    assert (body["from"], body["to"]) == ("2025-03-30T11:01:30.000000Z", "2025-03-30T11:01:50.000000Z")
    assert body["totals"]["requests_mj"] == 6_000


async def test_pending_energy_is_shown_apart(world: World, client: httpx.AsyncClient) -> None:
    """Energy on requests that are not final is in the totals as pending, and a group of its own."""
    world.ledger.commit(Batch(accounts=(account(HOUR_AGO_S, 500, 20),)))
    body = await answer(client, "?by=model")
    assert (body["totals"]["requests_mj"], body["totals"]["pending_mj"]) == (500, 500)
    (group,) = body["groups"]
    assert (group["model"], group["requests"], group["pending_mj"], group["pending"]) == (None, 0, 500, True)


async def test_empty_ledger(client: httpx.AsyncClient) -> None:
    """Nothing metered is zero energy of no quality."""
    body = await answer(client, "?from=0&to=100")
    assert set(body["totals"].values()) == {0}
    assert body["quality"] == {"device": {}, "requests": {}}


async def test_unknown_key_names_the_choices(client: httpx.AsyncClient) -> None:
    """A key that energy cannot be divided by is a fault that names those it can."""
    got = await client.get("/v1/energy?by=model,gpu")
    assert got.status_code == 422
    (fault,) = got.json()["faults"]
    assert (fault["place"], fault["field"]) == ("query", "by")
    assert fault["fault"] == "unknown: 'gpu'; choose from model, tier, tenant, device, hour"


@pytest.mark.parametrize(
    ("query", "field", "text"),
    [
        ("from=yesterday", "from", "RFC 3339"), ("to=2025-03-30T12:00:00", "to", "offset"),
        ("from=nan", "from", "Unix"), ("from=-5", "from", "Unix"), ("to=999999999999", "to", "9999"),
        ("from=2025-02-30T00:00:00Z", "from", "calendar"),
        ("from=20&to=10", "from", "before to"), ("from=10&to=10", "from", "before to"),
        ("from=2030-01-01T00:00:00Z", "from", "before now"), ("form=1", "form", "unknown parameter"),
        ("to=" + "1" * 50, "to", "40"),
    ],
)  # fmt: skip
async def test_bad_ranges_are_named(client: httpx.AsyncClient, query: str, field: str, text: str) -> None:
    """A moment or range that makes no sense is a fault at its parameter."""
    got = await client.get("/v1/energy?" + query)
    assert got.status_code == 422, got.text
    (fault,) = got.json()["faults"]
    assert fault["field"] == field
    assert text in fault["fault"]


@pytest.mark.parametrize(
    "text",
    [
        "1743336000", "1743336000.0", "2025-03-30T12:00:00Z", "2025-03-30t12:00:00.000z", "2025-03-30T14:00:00+02:00",
        "2025-03-30T14:00:00 02:00", "2025-03-30 12:00:00Z", "2025-03-30T06:30:00-05:30",
    ],
)  # fmt: skip
def test_moments_are_read(text: str) -> None:
    """Unix seconds and RFC 3339 name the same moment, also with a plus sign that was not escaped."""
    assert wall_s_from_query(text) == NOON_S
