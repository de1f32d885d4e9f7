"""The long traces of the issue: four classes at mean concurrency 2, and arrivals before a server with k slots."""

from __future__ import annotations

import numpy as np
import pytest
from tests.support.meter import attribute, check_laws
from tests.support.plant import Plant
from tests.support.scenarios import four_class_plant, recorded, serial_plant
from tests.support.sensors import Counter, spans_csv


def relative_errors(plant: Plant, result: dict) -> np.ndarray:
    """|E - truth| / truth of every request."""
    check_laws(result)
    return np.array(
        [
            abs(request["energy_mj"] / 1000 / plant.request_j(request["request_id"]) - 1)
            for request in result["requests"]
        ]
    )


@pytest.mark.parametrize("seed", range(4))
def test_four_classes_named(seed: int) -> None:
    """With the class column the median error is under 1 %, the 95th percentile under 5 %, the sum within 0.5 %."""
    plant = four_class_plant(seed)
    case = recorded(plant, seed)
    result = attribute(case.readings_csv, case.spans_csv)
    errors = relative_errors(plant, result)
    assert len(errors) == 236
    assert np.median(errors) < 0.01
    assert np.quantile(errors, 0.95) < 0.05
    booked_j = sum(request["energy_mj"] for request in result["requests"]) / 1000
    assert booked_j == pytest.approx(sum(plant.request_j(name) for name in plant.truth_j), rel=0.005)


@pytest.mark.parametrize("seed", range(4))
def test_four_classes_unnamed(seed: int) -> None:
    """Without the class column the median error is under 3 %."""
    plant = four_class_plant(seed)
    case = recorded(plant, seed, classes=False)
    assert np.median(relative_errors(plant, attribute(case.readings_csv, case.spans_csv))) < 0.03


@pytest.mark.parametrize("lag_s", [0.0, 0.1, 0.25])
@pytest.mark.parametrize("classes", [True, False])
def test_lag_is_found(lag_s: float, classes: bool) -> None:
    """The lag is found within 20 ms, with classes and without."""
    plant = four_class_plant(11, count=80, duration_s=200)
    case = recorded(plant, 11, Counter(lag_s=lag_s), classes=classes)
    (device,) = attribute(case.readings_csv, case.spans_csv)["devices"].values()
    assert device["lag_ms"] == pytest.approx(1000 * lag_s, abs=20)


def test_idle_power_is_found() -> None:
    """The idle power is found within 2 W, also when the device is hardly ever idle."""
    for count in (80, 130):
        plant = four_class_plant(12, count=count, duration_s=200)
        case = recorded(plant, 12)
        (device,) = attribute(case.readings_csv, case.spans_csv)["devices"].values()
        assert device["idle_w"] == pytest.approx(95, abs=2)


def test_device_that_is_never_idle() -> None:
    """Without an idle moment only P0 + D can be learned: idle power stays unknown, the figures are still right."""
    plant = four_class_plant(3, count=250, duration_s=300)
    case = recorded(plant, 3)
    header, *rows = case.readings_csv.splitlines()
    begin_s, end_s = 60.0, 250.0
    window = [row for row in rows if begin_s < float(row.split(",")[1]) < end_s]
    result = attribute("\n".join([header, *window]) + "\n", case.spans_csv)
    check_laws(result)
    (device,) = result["devices"].values()
    assert device["idle_w"] is None or abs(device["idle_w"] - 95) < 60
    seen = {run.job.request_id for run in plant.runs if run.started_s > begin_s + 1 and run.ended_s < end_s - 1}
    errors = [
        abs(request["energy_mj"] / 1000 / plant.request_j(request["request_id"]) - 1)
        for request in result["requests"]
        if request["request_id"] in seen
    ]
    assert len(errors) > 100
    assert np.median(errors) < 0.01


@pytest.mark.parametrize(
    ("options", "median", "p95"),
    [
        ({"poll_s": 0.1}, 0.01, 0.07),
        ({"poll_s": 0.2}, 0.03, 0.15),
        ({"drop": 0.3}, 0.01, 0.07),
        ({"gaps": ((100.0, 103.0),)}, 0.01, 0.05),
    ],
)
def test_poor_polling(options: dict, median: float, p95: float) -> None:
    """Slow, lossy or interrupted polling costs little: at most about twice the note's figures."""
    plant = four_class_plant(7, count=150, duration_s=380)
    case = recorded(plant, 7, **options)
    errors = relative_errors(plant, attribute(case.readings_csv, case.spans_csv))
    assert np.median(errors) < median
    assert np.quantile(errors, 0.95) < p95


@pytest.mark.parametrize(("seed", "load"), [(1, 0.8), (2, 0.8), (3, 0.5), (4, 0.95)])
@pytest.mark.parametrize("classes", [True, False])
def test_arrivals_before_a_serial_server(seed: int, load: float, classes: bool) -> None:
    """From arrivals alone, one slot: median error at most 2 %, where billing from arrival errs by 64 %."""
    plant = serial_plant(seed, count=200, load=load)
    case = recorded(plant, seed)
    spans = spans_csv(plant.runs, classes=classes, starts=False, arrivals=True)
    result = attribute(case.readings_csv, spans, "--slots", "1")
    errors = relative_errors(plant, result)
    assert np.median(errors) <= 0.02
    assert np.quantile(errors, 0.95) <= 0.08


def test_inferred_starts_widen_u() -> None:
    """The same requests have a wider measurement U when their start was inferred than when it was declared."""
    plant = serial_plant(5, count=60)
    case = recorded(plant, 5)
    declared = attribute(case.readings_csv, case.spans_csv)
    inferred = attribute(case.readings_csv, spans_csv(plant.runs, starts=False, arrivals=True), "--slots", "1")
    sums = [
        sum(request["u_measurement_mj"] ** 2 + request["u_allocation_mj"] ** 2 for request in result["requests"])
        for result in (declared, inferred)
    ]
    assert sums[1] > sums[0]


@pytest.mark.parametrize("slots", [2, 3])
def test_arrivals_before_a_server_with_slots(slots: int) -> None:
    """Two or three slots that time-slice the device: starts are those at which a slot came free."""
    plant = serial_plant(6, count=200, slots=slots)
    case = recorded(plant, 6)
    spans = spans_csv(plant.runs, starts=False, arrivals=True)
    errors = relative_errors(plant, attribute(case.readings_csv, spans, "--slots", str(slots)))
    assert np.median(errors) <= 0.02
    assert np.quantile(errors, 0.95) <= 0.08


def test_declared_starts_win_over_inference() -> None:
    """Where a start is given it is used, also beside rows whose start is inferred."""
    plant = serial_plant(8, count=60)
    case = recorded(plant, 8)
    given_rows = spans_csv(plant.runs, arrivals=True).splitlines()
    empty_rows = spans_csv(plant.runs, starts=False, arrivals=True).splitlines()
    mixed = [given_rows[i] if i % 2 else empty_rows[i] for i in range(len(given_rows))]
    errors = relative_errors(plant, attribute(case.readings_csv, "\n".join(mixed) + "\n", "--slots", "1"))
    assert np.median(errors) <= 0.02
