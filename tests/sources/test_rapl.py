"""RAPL on real trees of files, as Linux lays them out."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from joulegate.daemon.ports import Source
from joulegate.metering.reading import Method, Quality, Reading, SensorStatus
from joulegate.sources.fault import SourceFault
from joulegate.sources.rapl import UDEV_RULE, RaplSource

RANGE_UJ = 262_143_328_850


class Tree:
    """A powercap tree whose counters the test turns."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(exist_ok=True)

    def zone(
        self, zone: str, name: str, energy_uj: int, range_uj: int | None = RANGE_UJ, max_power_w: float | None = 350.0
    ) -> Path:
        """One zone folder."""
        path = self.root / zone
        path.mkdir(parents=True)
        (path / "name").write_text(f"{name}\n")
        if range_uj is not None:
            (path / "max_energy_range_uj").write_text(f"{range_uj}\n")
        if max_power_w is not None:
            (path / "constraint_0_max_power_uw").write_text(f"{round(max_power_w * 1e6)}\n")
        (path / "energy_uj").write_text(f"{energy_uj}\n")
        return path

    def turn(self, zone: str, energy_uj: int | str) -> None:
        """Let the counter show this."""
        path = self.root / zone / "energy_uj"
        path.unlink()
        path.write_text(f"{energy_uj}\n")

    def break_(self, zone: str) -> None:
        """Let a read fail with a real EIO: address 0 of this process's memory cannot be read."""
        path = self.root / zone / "energy_uj"
        path.unlink()
        path.symlink_to("/proc/self/mem")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """One package with its children, as a Xeon shows it."""
    tree = Tree(tmp_path / "powercap")
    tree.zone("intel-rapl:0", "package-0", 1_000_000_000)
    tree.zone("intel-rapl:0:0", "core", 500_000_000)
    tree.zone("intel-rapl:0:1", "dram", 100_000_000, 65_712_999_613, 40.0)
    return tree


def opened(tree: Tree, **options: float) -> RaplSource:
    """A source on the tree that has taken its first readings at 0 s."""
    source = RaplSource(tree.root, **options)  # type: ignore[arg-type]
    source.open()
    source.drain(0.0, 1000.0)
    return source


def read(source: RaplSource, now_s: float) -> dict[str, Reading]:
    """The readings of one poll, by device."""
    return {reading.device: reading for reading in source.drain(now_s, 1000.0 + now_s)}


def used_mj(before: Reading, after: Reading) -> int:
    """Counter difference of two readings that have one."""
    assert before.energy_mj is not None
    assert after.energy_mj is not None
    return after.energy_mj - before.energy_mj


def test_package_and_dram_are_devices_and_nothing_else_is(tree: Tree) -> None:
    """Core, uncore and psys overlap the package and are never counted; package and DRAM each once."""
    tree.zone("intel-rapl:0:2", "uncore", 1)
    tree.zone("intel-rapl:1", "psys", 9_000_000_000)
    source: Source = opened(tree)
    devices = source.devices()
    assert [(d.id, d.scope) for d in devices] == [("rapl-package-0", "package"), ("rapl-dram-0", "dram")]
    assert {(d.method, d.quality) for d in devices} == {(Method.RAPL, Quality.MEASURED)}
    assert {sensor.status for sensor in source.sensors()} == {SensorStatus.MEASURED}


def test_energy_and_power_are_the_counters_difference(tree: Tree) -> None:
    """Fifty watts for a second are 50 J, and fractions of a millijoule are carried."""
    source = opened(tree)
    first = read(source, 1.0)
    for tenth in range(1, 11):
        tree.turn("intel-rapl:0", 1_000_000_000 + tenth * 5_000_999)
        last = read(source, 1.0 + tenth * 0.1)
    assert used_mj(first["rapl-package-0"], last["rapl-package-0"]) == 50_009
    assert last["rapl-package-0"].power_w == pytest.approx(50.01, abs=0.01)
    assert used_mj(first["rapl-dram-0"], last["rapl-dram-0"]) == 0
    assert (last["rapl-dram-0"].t_s, last["rapl-dram-0"].wall_s) == (2.0, 1002.0)


def test_a_wrap_is_counted_right(tree: Tree) -> None:
    """The counter goes round and ours goes on."""
    tree.turn("intel-rapl:0", RANGE_UJ - 3_000_000)
    source = opened(tree)
    first = read(source, 0.1)
    tree.turn("intel-rapl:0", 4_000_000)
    assert used_mj(first["rapl-package-0"], read(source, 0.2)["rapl-package-0"]) == 7_000
    assert source.errors() == {}


def test_one_failed_read_is_a_missing_reading(tree: Tree) -> None:
    """EIO once then good: no zero, no 62 kJ wrap, no lost joule, and the other domain goes on."""
    source = opened(tree)
    first = read(source, 0.1)
    tree.break_("intel-rapl:0")
    broken = read(source, 0.2)
    assert (broken["rapl-package-0"].up, broken["rapl-package-0"].error) == (False, "EIO")
    assert broken["rapl-package-0"].energy_mj is None
    assert broken["rapl-dram-0"].up
    assert source.sensors()[0].status is SensorStatus.MISSING
    assert source.devices()[0].quality is Quality.MEASURED
    tree.turn("intel-rapl:0", 1_000_000_000 + 200_000_000)
    good = read(source, 1.1)
    assert used_mj(first["rapl-package-0"], good["rapl-package-0"]) == 200_000
    assert good["rapl-package-0"].power_w == pytest.approx(200.0)
    assert source.errors() == {"rapl-package-0": {"EIO": 1}}
    assert source.sensors()[0].status is SensorStatus.MEASURED


@pytest.mark.parametrize("text", ["", "-5", "garbage", "12.5"])
def test_a_file_without_a_number_is_a_failed_read(tree: Tree, text: str) -> None:
    """What is no whole number is missing, not 0."""
    source = opened(tree)
    tree.turn("intel-rapl:0", text)
    assert (read(source, 0.1)["rapl-package-0"].up, source.errors()["rapl-package-0"]) == (False, {"EBADMSG": 1})


def test_an_impossible_jump_starts_a_new_epoch(tree: Tree) -> None:
    """A counter that falls to 0 (driver reloaded, suspend) is a fall of ours too, not a range's worth of joules."""
    source = opened(tree)
    first = read(source, 0.1)
    tree.turn("intel-rapl:0", 5_000_000)
    reading = read(source, 0.2)["rapl-package-0"]
    assert used_mj(first["rapl-package-0"], reading) < 0
    assert reading.power_w is None
    assert source.errors() == {"rapl-package-0": {"counter_jump": 1}}
    tree.turn("intel-rapl:0", 15_000_000)
    assert used_mj(reading, read(source, 0.3)["rapl-package-0"]) == 10_000


def test_a_gap_in_which_the_counter_may_have_gone_round_is_not_guessed(tmp_path: Path) -> None:
    """Longer without a read than half a round at the highest power: a new epoch, always seen as a fall."""
    tree = Tree(tmp_path / "p")
    tree.zone("intel-rapl:0", "package-0", 0, 70_000_000_000, 350.0)
    source = opened(tree)
    readings = [read(source, 101.0 * step)["rapl-package-0"] for step in range(1, 4)]
    assert all(used_mj(before, after) < 0 for before, after in pairwise(readings))
    assert source.errors() == {"rapl-package-0": {"gap": 3}}
    assert used_mj(readings[-1], read(source, 303.0 + 99.0)["rapl-package-0"]) == 0


def test_the_poll_is_never_slower_than_half_a_round(tmp_path: Path) -> None:
    """The interval is bounded by range / (2 x TDP), and calls in between read nothing."""
    tree = Tree(tmp_path / "p")
    tree.zone("intel-rapl:0", "package-0", 0, 70_000_000, 350.0)
    source = RaplSource(tree.root, poll_s=5.0)
    source.open()
    assert source.poll_s == pytest.approx(0.1)
    assert len(source.drain(10.0, 0.0)) == 1
    assert len(source.drain(10.05, 0.0)) == 0
    assert len(source.drain(10.1, 0.0)) == 1


def test_without_a_range_a_fall_is_a_reset(tmp_path: Path) -> None:
    """Where the kernel gives no range nothing can be unwrapped."""
    tree = Tree(tmp_path / "p")
    tree.zone("intel-rapl:0", "package-0", 50_000_000, None, None)
    source = opened(tree)
    first = read(source, 0.1)["rapl-package-0"]
    tree.turn("intel-rapl:0", 1_000_000)
    assert used_mj(first, read(source, 0.2)["rapl-package-0"]) < 0


def test_mirrored_counters_are_counted_once(tree: Tree) -> None:
    """Two packages that show the same counter are one device, and the doctor says so."""
    tree.zone("intel-rapl:1", "package-1", 1_000_000_400)
    source = opened(tree)
    assert [d.id for d in source.devices()] == ["rapl-package-0", "rapl-dram-0"]
    tree.turn("intel-rapl:0", 1_010_000_000)
    tree.turn("intel-rapl:1", 1_010_000_300)
    assert set(read(source, 0.1)) == {"rapl-package-0", "rapl-dram-0"}
    mirror = next(sensor for sensor in source.sensors() if sensor.device == "rapl-package-1")
    assert "rapl-package-0" in mirror.why


def test_a_supposed_mirror_that_counts_on_its_own_becomes_a_device(tree: Tree) -> None:
    """Equal by chance at the start, apart later: from then on both are counted."""
    tree.zone("intel-rapl:1", "package-1", 1_000_000_000)
    source = opened(tree)
    tree.turn("intel-rapl:0", 1_010_000_000)
    tree.turn("intel-rapl:1", 1_030_000_000)
    assert "rapl-package-1" in read(source, 0.1)
    assert [d.id for d in source.devices()] == ["rapl-package-0", "rapl-dram-0", "rapl-package-1"]
    tree.turn("intel-rapl:1", 1_031_000_000)
    assert read(source, 0.2)["rapl-package-1"].power_w == pytest.approx(10.0)


def test_independent_packages_are_two_devices(tree: Tree) -> None:
    """Two sockets with their own counters and memories are four devices."""
    tree.zone("intel-rapl:1", "package-1", 7_000_000_000)
    tree.zone("intel-rapl:1:0", "dram", 300_000_000, 65_712_999_613, 40.0)
    assert [d.id for d in opened(tree).devices()] == ["rapl-package-0", "rapl-dram-0", "rapl-package-1", "rapl-dram-1"]


def test_the_same_package_over_mmio_is_not_counted_again(tree: Tree) -> None:
    """The MMIO interface repeats package-0; the MSR's is used, wherever the links lie."""
    tree.zone("intel-rapl-mmio:0", "package-0", 1_234)
    (tree.root / "intel-rapl").mkdir()
    (tree.root / "intel-rapl" / "intel-rapl:0").symlink_to(tree.root / "intel-rapl:0")
    source = opened(tree)
    assert [d.id for d in source.devices()] == ["rapl-package-0", "rapl-dram-0"]
    assert source.devices()[0].notes == (str(tree.root / "intel-rapl:0"),)


def test_nested_trees_are_found_too(tmp_path: Path) -> None:
    """Some containers show zones only below their control type."""
    tree = Tree(tmp_path / "p")
    tree.zone("intel-rapl/intel-rapl:0", "package-0", 1)
    tree.zone("intel-rapl/intel-rapl:0/intel-rapl:0:0", "dram", 1, max_power_w=0)
    assert [d.id for d in opened(tree).devices()] == ["rapl-package-0", "rapl-dram-0"]


def test_no_powercap_is_one_line(tmp_path: Path) -> None:
    """Without a tree, opening says what is missing and where, and the doctor has a line."""
    source = RaplSource(tmp_path / "none")
    with pytest.raises(SourceFault, match=r"no package or dram domain under .*none"):
        source.open()
    assert [(s.status, bool(s.fix)) for s in source.sensors()] == [(SensorStatus.MISSING, True)]
    assert source.drain(0.0, 0.0) == []
    source.close()
    source.close()


@contextmanager
def unprivileged() -> Iterator[None]:
    """Read as nobody where the test runs as root, because root may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def guarded() -> Iterator[Tree]:
    """A tree that others may walk, with counters that only their owner may read."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        tree = Tree(Path(folder) / "powercap")
        tree.zone("intel-rapl:0", "package-0", 1_000_000)
        tree.zone("intel-rapl:0:0", "dram", 9_000_000)
        for file in tree.root.glob("*/energy_uj"):
            file.chmod(0o400 if os.geteuid() == 0 else 0)
        yield tree


def test_a_permission_error_says_exactly_what_to_do(guarded: Tree) -> None:
    """Counters that may not be read are MISSING, with the udev rule and the group."""
    source = RaplSource(guarded.root)
    with unprivileged(), pytest.raises(SourceFault) as caught:
        source.open()
    assert "EACCES" in str(caught.value)
    assert UDEV_RULE in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [sensor.status for sensor in source.sensors()] == [SensorStatus.MISSING] * 2
    assert all(UDEV_RULE in sensor.fix for sensor in source.sensors())


def test_what_may_be_read_is_read_and_the_rest_is_missing(guarded: Tree) -> None:
    """One readable domain is enough to open; the other is a device without readings until it is granted."""
    (guarded.root / "intel-rapl:0" / "energy_uj").chmod(0o444)
    source = RaplSource(guarded.root)
    with unprivileged():
        source.open()
        readings = read(source, 0.0)
    assert readings["rapl-package-0"].up
    assert (readings["rapl-dram-0"].up, readings["rapl-dram-0"].error) == (False, "EACCES")
    assert [d.quality for d in source.devices()] == [Quality.MEASURED, Quality.MISSING]
    (guarded.root / "intel-rapl:0:0" / "energy_uj").chmod(0o444)
    with unprivileged():
        assert read(source, 1.0)["rapl-dram-0"].up
    assert [d.quality for d in source.devices()] == [Quality.MEASURED, Quality.MEASURED]
