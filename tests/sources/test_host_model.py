"""The host power model on proc trees: ``vm`` recorded on one, ``xeon`` written in the kernel's layout."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from joulegate.daemon.ports import Source
from joulegate.metering.reading import Method, Quality, Reading, SensorStatus
from joulegate.sources.cpu_table import CpuPower, cpu_table, find_cpu, table_header
from joulegate.sources.fault import SourceFault
from joulegate.sources.host_model import HostModelSource, memory_power_w

TREES = Path(__file__).parent / "proc"


class Proc:
    """A copy of a proc tree whose clock the test turns. Ticks are hundredths of a second."""

    def __init__(self, root: Path, tree: str) -> None:
        shutil.copytree(TREES / tree, root)
        self.root = root
        lines = (root / "stat").read_text().splitlines()
        self.threads = sum(line.startswith("cpu") for line in lines) - 1
        self._rest = lines[1:]
        self._fields = [int(field) for field in lines[0].split()[1:]]

    def pass_(self, seconds: float, *, load: float = 0.0, steal: float = 0.0) -> None:
        """Time passes with this share busy and this share stolen."""
        ticks = round(seconds * 100 * self.threads)
        self._fields[0] += round(ticks * load)
        self._fields[7] += round(ticks * steal)
        self._fields[3] += ticks - round(ticks * load) - round(ticks * steal)
        (self.root / "stat").write_text("\n".join([f"cpu  {' '.join(map(str, self._fields))}", *self._rest]) + "\n")


@pytest.fixture
def xeon(tmp_path: Path) -> Proc:
    """Two Xeon Platinum 8480+ (350 W each) with 512 GiB."""
    return Proc(tmp_path / "proc", "xeon")


def opened(proc: Proc) -> HostModelSource:
    """A source that has taken its first reading at 0 s."""
    source = HostModelSource(proc.root, arm=False)
    source.open()
    source.drain(0.0, 1000.0)
    return source


def only(source: HostModelSource, now_s: float) -> Reading:
    """The one reading of a poll."""
    (reading,) = source.drain(now_s, 1000.0 + now_s)
    return reading


def test_the_machine_is_recognised(xeon: Proc) -> None:
    """Name, sockets, threads and memory come from cpuinfo, stat and meminfo."""
    source: Source = opened(xeon)
    (device,) = source.devices()
    assert (device.id, device.scope, device.method, device.quality) == ("host", "host", Method.MODEL, Quality.MODELLED)
    assert "8480+" in device.name
    (sensor,) = source.sensors()
    assert sensor.status is SensorStatus.MODELLED
    assert sensor.details["tdp_w"] == 700.0
    assert device.gain_error == 0.5


@pytest.mark.parametrize("load", [0.0, 0.5, 1.0])
def test_power_follows_the_cubic(xeon: Proc, load: float) -> None:
    """TDP x (0.1 + 0.9 load^3) plus the memory, and the energy is its integral."""
    source = opened(xeon)
    xeon.pass_(1.0)
    start = only(source, 1.0)
    for second in range(2, 7):
        xeon.pass_(1.0, load=load)
        last = only(source, float(second))
    expected_w = 700 * (0.1 + 0.9 * load**3) + memory_power_w(503.5)
    assert last.power_w == pytest.approx(expected_w, rel=1e-3)
    assert last.utilization == pytest.approx(load, abs=1e-3)
    assert (last.energy_mj or 0) - (start.energy_mj or 0) == pytest.approx(5000 * expected_w, rel=1e-3)


def test_an_unknown_processor_is_a_default(tmp_path: Path) -> None:
    """A virtual machine's bare "AMD EPYC" is not in the table: 4 W a thread, quality default, a wide error."""
    source = opened(Proc(tmp_path / "proc", "vm"))
    (device,) = source.devices()
    assert (device.quality, device.gain_error) == (Quality.DEFAULT, 1.0)
    assert source.spec.tdp_w == 8.0
    assert source.spec.memory_w == 20.0
    assert "not in the table" in source.sensors()[0].why


def test_stolen_and_waiting_time_is_not_load(xeon: Proc) -> None:
    """Time that other guests took is not this machine's work."""
    source = opened(xeon)
    xeon.pass_(1.0, load=0.25, steal=0.5)
    assert only(source, 1.0).utilization == pytest.approx(0.25, abs=1e-3)


def test_a_long_gap_is_not_invented(xeon: Proc) -> None:
    """Nobody looked for a minute: a new epoch, seen as a fall, also twice in a row."""
    source = opened(xeon)
    readings = []
    for minute in range(1, 4):
        xeon.pass_(60.0, load=1.0)
        readings.append(only(source, minute * 60.0))
    assert all(reading.power_w is None for reading in readings)
    energies = [reading.energy_mj or 0 for reading in readings]
    assert energies == sorted(energies, reverse=True)
    assert len(set(energies)) == 3
    assert source.errors() == {"host": {"gap": 3}}


def test_a_paused_machine_burns_nothing_of_ours(xeon: Proc) -> None:
    """Five seconds passed but the processors lived a tenth of one: a new epoch, not five seconds of power."""
    source = opened(xeon)
    xeon.pass_(1.0)
    before = only(source, 1.0)
    xeon.pass_(0.1, load=1.0)
    after = only(source, 6.0)
    assert (after.energy_mj or 0) < (before.energy_mj or 0)
    assert source.errors() == {"host": {"gap": 1}}


def test_a_failed_read_is_missing_and_then_made_up_for(xeon: Proc) -> None:
    """Stat cannot be read once: no reading, and the next counts the whole time from its ticks."""
    source = opened(xeon)
    xeon.pass_(1.0)
    before = only(source, 1.0)
    (xeon.root / "stat").rename(xeon.root / "away")
    missing = only(source, 2.0)
    assert (missing.up, missing.error, missing.energy_mj) == (False, "stat_unreadable", None)
    (xeon.root / "stat").write_text("intr 5\n")
    assert not only(source, 2.5).up
    xeon.pass_(2.0, load=1.0)
    after = only(source, 3.0)
    assert (after.energy_mj or 0) - (before.energy_mj or 0) == pytest.approx(2000 * (after.power_w or 0), rel=1e-6)
    assert source.errors() == {"host": {"stat_unreadable": 2}}


def test_polls_are_not_faster_than_the_ticks_allow(xeon: Proc) -> None:
    """Calls within the poll interval read nothing, and a poll in which no tick passed waits for one."""
    source = opened(xeon)
    assert source.drain(0.1, 0.0) == ()
    still = only(source, 0.2)
    assert (still.power_w, still.utilization) == (None, None)
    xeon.pass_(0.4, load=1.0)
    moved = only(source, 0.4)
    assert (moved.energy_mj or 0) - (still.energy_mj or 0) == pytest.approx(400 * (moved.power_w or 0), rel=1e-6)


def test_no_proc_is_one_line(tmp_path: Path) -> None:
    """Where there is no stat the source says so."""
    source = HostModelSource(tmp_path)
    with pytest.raises(SourceFault, match=r"host model: .*stat"):
        source.open()
    with pytest.raises(SourceFault, match="not open"):
        source.devices()


def test_this_machine_can_be_modelled() -> None:
    """The real /proc gives a device and readings."""
    source = HostModelSource()
    source.open()
    assert source.drain(0.0, 0.0)[0].up
    assert source.spec.threads >= 1
    assert source.spec.tdp_w > 0


@pytest.mark.parametrize(
    ("memory_gib", "power_w"),
    [(1, 10), (4, 10), (16, 10), (24, 20), (64, 20), (96, 38), (256, 38), (512, 38), (2048, 4 * 5 + 18 + 32)],
)
def test_memory_power_follows_the_dimms(memory_gib: float, power_w: float) -> None:
    """5 W a DIMM, fewer for each of many, at least 10 W."""
    assert memory_power_w(memory_gib) == pytest.approx(power_w)


def test_arm_memory_draws_less() -> None:
    """1.5 W a DIMM, at least 3 W."""
    assert memory_power_w(1, arm=True) == 3.0
    assert memory_power_w(64, arm=True) == 6.0


@pytest.mark.parametrize(
    ("model_name", "name", "tdp_w"),
    [
        ("AMD EPYC 7763 64-Core Processor", "AMD EPYC 7763", 280.0),
        ("AMD EPYC 9654P 96-Core Processor", "AMD EPYC 9654P", 360.0),
        ("Intel(R) Xeon(R) Platinum 8480+", "Intel Xeon Platinum 8480+", 350.0),
        ("Intel(R) Xeon(R) CPU E5-2620 v4 @ 2.10GHz", "Intel Xeon E5-2620 v4", 85.0),
        ("Intel(R) Xeon(R) CPU E5-2620 0 @ 2.00GHz", None, None),
        ("Intel(R) Xeon(R) Gold 5220 CPU @ 2.20GHz", "Intel Xeon Gold 5220", 125.0),
        ("11th Gen Intel(R) Core(TM) i7-1165G7 @ 2.80GHz", "Intel Core i7-1165G7", None),
        ("AMD Ryzen 7 5800H with Radeon Graphics", "AMD Ryzen 7 5800H", None),
        ("Apple M2 Pro", "Apple M2 Pro", 35.0),
        ("Apple M2", "Apple M2", 22.0),
        ("Intel(R) Xeon(R) CPU @ 2.20GHz", None, None),
        ("Intel(R) Xeon(R) Platinum 8480C", None, None),
        ("AMD EPYC", None, None),
        ("", None, None),
    ],
)
def test_processors_are_found_by_their_kernel_name(model_name: str, name: str | None, tdp_w: float | None) -> None:
    """The model number decides exactly, decoration does not matter, and doubt is no match."""
    found = find_cpu(model_name)
    assert (found.name if found else None) == name
    if tdp_w is not None:
        assert found is not None
        assert found.tdp_w == tdp_w


def test_names_that_tie_with_different_powers_are_no_match() -> None:
    """Two equally good rows that disagree are a doubt."""
    table = [CpuPower("AMD X100 Pro", 50.0), CpuPower("AMD X100 Max", 90.0)]
    assert find_cpu("AMD X100 Pro Max", table) is None
    assert find_cpu("AMD X100 Pro", table) == table[0]


def test_the_shipped_table_says_where_it_is_from() -> None:
    """Thousands of positive powers, with source, version, licence, citation, date and hash above them."""
    assert len(cpu_table()) > 4_000
    assert all(0 < cpu.tdp_w <= 1000 for cpu in cpu_table())
    header = "\n".join(table_header())
    for word in ("codecarbon 3.3.2", "licence: MIT", "citation: ", "retrieved: 20", "sha256"):
        assert word in header
