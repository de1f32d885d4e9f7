"""RAPL: the energy counters of CPU packages and their memory, as Linux shows them under powercap.

One device a *package* and one a *dram* domain. Those two are disjoint, so any sum over devices counts each joule once;
``core`` and ``uncore`` are parts of a package and ``psys`` contains it, so none of them is ever a device
(notes/measurement.md, section 5). Two devices rather than one sum, because a domain that fails must not blank the
other, and each has its own range and wrap.
"""

from __future__ import annotations

import errno
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from joulegate.metering.reading import Device, GpuProcess, Method, Quality, Reading, Sensor, SensorStatus
from joulegate.sources.epoch_counter import EpochCounter
from joulegate.sources.fault import SourceFault

POWERCAP = Path("/sys/class/powercap")
POLL_S = 0.1

UDEV_RULE = (
    'SUBSYSTEM=="powercap", ACTION=="add", KERNEL=="*rapl*:*", '
    'RUN+="/bin/chgrp joulegate /sys%p/energy_uj", RUN+="/bin/chmod 0440 /sys%p/energy_uj"'
)
PERMISSION_FIX = (
    "let a group read the counters (root only since CVE-2020-8694): groupadd -f joulegate; "
    f"echo '{UDEV_RULE}' > /etc/udev/rules.d/70-joulegate-rapl.rules; "
    "udevadm control --reload; udevadm trigger --subsystem-match=powercap --action=add; "
    "run the daemon with that group (systemd: SupplementaryGroups=joulegate)"
)

_ZONE = re.compile(r"(?P<control>.*rapl.*?):(?P<package>\d+)(:\d+)?")
_PATTERNS = ("*rapl*:*", "*rapl*/*rapl*:*", "*rapl*:*/*rapl*:*", "*rapl*/*rapl*:*/*rapl*:*")
_DEFAULT_MAX_POWER_W = {"package": 500.0, "dram": 120.0}
_LEAST_BELIEVED_MAX_POWER_W = 5.0
_MIRROR_SLACK_UJ = 1_000_000
"""Two looks at one counter differ by what it moves between them: 1 ms of updates at 1 kW."""

_JUMP_FACTOR = 4
_GAIN_ERROR = {"package": 0.05, "dram": 0.1}


class RaplSource:
    """Counters of ``root``; sampled by ``drain`` itself, which costs one small file read a domain.

    The counter wraps at ``max_energy_range_uj``; ours goes on. A failed read is a missing reading, never a 0 and never
    a wrap, and the next good one continues where the counter was. Too long without a good read (half of what the domain
    needs to go round at its highest power) or a jump no package can make starts a new epoch: nothing is invented.
    """

    name = "rapl"

    def __init__(self, root: Path | str = POWERCAP, *, poll_s: float = POLL_S) -> None:
        """``poll_s`` is the shortest time between reads; ``open`` lowers it where a counter would wrap too soon."""
        self.root = Path(root)
        self.poll_s = poll_s
        self._domains: list[_Domain] = []
        self._errors: dict[str, Counter[str]] = {}
        self._last_poll_s: float | None = None

    def open(self) -> None:
        """Find the domains; raises ``SourceFault`` when there is none, or none that may be read."""
        self._domains = _discover(self.root)
        self._errors = {domain.id: Counter() for domain in self._domains}
        self._last_poll_s = None
        if not self._domains:
            raise SourceFault(self._absent())
        readable: list[_Domain] = []
        for domain in self._domains:
            try:
                domain.read_uj()
            except OSError as error:
                domain.problem = _name_of(error)
                self._errors[domain.id][domain.problem] += 1
                continue
            domain.mirrors = next((other.id for other in readable if _mirrored(other, domain)), None)
            readable.append(domain)
        if not readable:
            first = self._domains[0]
            fix = PERMISSION_FIX if first.problem == "EACCES" else "look at the kernel log"
            raise SourceFault(f"RAPL: {first.path / 'energy_uj'} cannot be read ({first.problem}): {fix}")
        self.poll_s = min(self.poll_s, *(domain.longest_gap_s for domain in readable))

    def devices(self) -> Sequence[Device]:
        """Packages and memories, each once; grows when a supposed mirror turns out to count on its own."""
        return [domain.device() for domain in self._domains if domain.mirrors is None]

    def sensors(self) -> Sequence[Sensor]:
        """One line a domain: measured, mirrored or missing with what to do; one for all when there is none."""
        if not self._domains:
            fix = "bare metal with the intel_rapl_common module (Intel, or AMD from Zen on) has them; most VMs do not"
            return [Sensor("rapl", SensorStatus.MISSING, Method.RAPL, self._absent(), fix)]
        return [domain.sensor() for domain in self._domains]

    def drain(self, now_s: float, wall_s: float) -> Sequence[Reading]:
        """One reading a device if ``poll_s`` has passed since the last, else none."""
        if self._last_poll_s is not None and now_s - self._last_poll_s < self.poll_s - 1e-9:
            return ()
        self._last_poll_s = now_s
        by_id = {domain.id: domain for domain in self._domains}
        readings = []
        for domain in self._domains:
            if domain.mirrors is not None and self._still_mirrors(by_id[domain.mirrors], domain):
                continue
            readings.append(self._sample(domain, now_s, wall_s))
        return readings

    def errors(self) -> Mapping[str, Mapping[str, int]]:
        """Failed reads by errno name, jumps and gaps."""
        return {device: dict(counts) for device, counts in self._errors.items() if counts}

    def processes(self) -> Sequence[GpuProcess]:
        """None: RAPL knows no processes."""
        return ()

    def close(self) -> None:
        """Nothing is held open."""

    def _absent(self) -> str:
        return f"RAPL: no package or dram domain under {self.root}"

    def _sample(self, domain: _Domain, now_s: float, wall_s: float) -> Reading:
        try:
            counter_uj = domain.read_uj()
        except OSError as error:
            domain.problem = _name_of(error)
            self._errors[domain.id][domain.problem] += 1
            return Reading(domain.id, now_s, wall_s, up=False, error=domain.problem)
        domain.problem = None
        power_w, trouble = domain.accept(counter_uj, now_s)
        if trouble is not None:
            self._errors[domain.id][trouble] += 1
        return Reading(domain.id, now_s, wall_s, energy_mj=domain.counter.energy_mj, power_w=power_w)

    def _still_mirrors(self, original: _Domain, copy: _Domain) -> bool:
        """While either cannot be read nothing is known, and counting once is the safe side."""
        try:
            if _mirrored(original, copy):
                return True
        except OSError as error:
            self._errors[copy.id][_name_of(error)] += 1
            return True
        copy.mirrors = None
        return False


@dataclass(slots=True)
class _Domain:
    """One counter: where it is, how far it goes, and where it stood."""

    id: str
    label: str
    kind: str
    path: Path
    range_uj: int | None
    max_power_w: float
    counter: EpochCounter = field(default_factory=EpochCounter)
    mirrors: str | None = None
    problem: str | None = None
    last_uj: int | None = None
    last_s: float = 0.0

    @property
    def longest_gap_s(self) -> float:
        """Longest time between reads after which a wrap is still certain to be one: range / (2 x highest power)."""
        return float("inf") if self.range_uj is None else self.range_uj / 1e6 / (2 * self.max_power_w)

    def read_uj(self) -> int:
        """The counter now; raises ``OSError``, also for a file that holds no number."""
        text = (self.path / "energy_uj").read_text(encoding="ascii", errors="replace").strip()
        if not (text.isascii() and text.isdigit()):
            raise OSError(errno.EBADMSG, "not a number")
        return int(text)

    def accept(self, counter_uj: int, now_s: float) -> tuple[float | None, str | None]:
        """Count what was used since the last good read; returns the mean power and what went wrong."""
        last_uj, last_s = self.last_uj, self.last_s
        self.last_uj, self.last_s = counter_uj, now_s
        if last_uj is None:
            return None, None
        used_uj = counter_uj - last_uj
        if used_uj < 0 and self.range_uj is not None:
            used_uj += self.range_uj
        gap_s = now_s - last_s
        most_uj = _JUMP_FACTOR * self.max_power_w * (gap_s + 1) * 1e6
        trouble = "gap" if gap_s > self.longest_gap_s else "counter_jump" if not 0 <= used_uj <= most_uj else None
        if trouble is not None:
            self.counter.restart()
            return None, trouble
        self.counter.add_uj(used_uj)
        return (used_uj / 1e6 / gap_s if gap_s > 0 else None), None

    def device(self) -> Device:
        """What the meter needs to know of it.

        ``gain_error``: Haswell and newer measure at the voltage regulator, the DRAM figure is off by an offset on some
        desktops (Desrochers et al., MEMSYS 2016, doi:10.1145/2989081.2989088). No number is promised by the vendors; 5
        and 10 % are our judgement.
        """
        return Device(
            id=self.id,
            name=f"RAPL {self.label}",
            method=Method.RAPL,
            quality=Quality.MISSING if self.problem is not None and self.last_uj is None else Quality.MEASURED,
            scope=self.kind,
            step_s=0.001,
            lag_s=0.0,
            gain_error=_GAIN_ERROR[self.kind],
            notes=(str(self.path),),
        )

    def sensor(self) -> Sensor:
        """Its line of ``joulegate doctor``."""
        file = self.path / "energy_uj"
        if self.problem is not None:
            fix = (
                PERMISSION_FIX if self.problem == "EACCES" else "look at the kernel log; it is read again at every poll"
            )
            return Sensor(self.id, SensorStatus.MISSING, Method.RAPL, f"{file} cannot be read ({self.problem})", fix)
        if self.mirrors is not None:
            why = f"shows the same counter as {self.mirrors} and is counted there, once"
            return Sensor(self.id, SensorStatus.MEASURED, Method.RAPL, why, details={"mirrors": self.mirrors})
        return Sensor(self.id, SensorStatus.MEASURED, Method.RAPL, f"hardware energy counter {file}")


def _discover(root: Path) -> list[_Domain]:
    """Package and dram domains in the order of their names, each once whatever links lead to it."""
    zones: dict[str, Path] = {}
    for pattern in _PATTERNS:
        for path in sorted(root.glob(pattern)):
            if _ZONE.fullmatch(path.name):
                zones.setdefault(path.name, path)
    domains: dict[str, _Domain] = {}
    control_of: dict[str, str] = {}
    for zone, kind, label in _labelled(zones):
        control = zone.split(":")[0]
        id_ = f"rapl-{label}"
        if id_ in domains:
            if control_of[id_] != control:
                continue  # the MMIO interface repeats the MSR's package under the same name
            id_ = f"{id_}@{zone}"
        control_of[id_] = control
        domains[id_] = _Domain(
            id_, label, kind, zones[zone], _number(zones[zone] / "max_energy_range_uj"), _max_power_w(zones[zone], kind)
        )
    return list(domains.values())


def _labelled(zones: Mapping[str, Path]) -> Iterator[tuple[str, str, str]]:
    """(zone, kind, label), MSR before MMIO: ``package-0``, and ``dram-0`` for the memory under it."""
    names = {zone: _text(path / "name") for zone, path in zones.items()}
    for zone in sorted(zones, key=lambda zone: ("mmio" in zone, [int(n) for n in zone.split(":")[1:]])):
        name = names[zone]
        if name.startswith("package"):
            yield zone, "package", name
        elif name.startswith("dram"):
            parent, _, _ = zone.rpartition(":")
            yield zone, "dram", names.get(parent, "").replace("package", "dram") or f"dram-{zone.split(':')[1]}"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isascii() and text.isdigit() and int(text) > 0 else None


def _max_power_w(zone: Path, kind: str) -> float:
    """The domain's thermal design power where the kernel says it, else a high guess."""
    power_uw = _number(zone / "constraint_0_max_power_uw")
    if power_uw is None or power_uw / 1e6 < _LEAST_BELIEVED_MAX_POWER_W:
        return _DEFAULT_MAX_POWER_W[kind]
    return power_uw / 1e6


def _mirrored(original: _Domain, copy: _Domain) -> bool:
    """Whether both show one counter (dies repeat the socket's): the copy lies between two looks at the original."""
    if original.kind != copy.kind or original.range_uj != copy.range_uj:
        return False
    before_uj, copy_uj, after_uj = original.read_uj(), copy.read_uj(), original.read_uj()
    ahead_uj, moved_uj = copy_uj - before_uj, after_uj - before_uj
    if original.range_uj is not None:
        half = original.range_uj // 2
        ahead_uj = (ahead_uj + half) % original.range_uj - half
        moved_uj %= original.range_uj
    return -_MIRROR_SLACK_UJ <= ahead_uj <= moved_uj + _MIRROR_SLACK_UJ


def _name_of(error: OSError) -> str:
    if error.errno == errno.EPERM:
        return "EACCES"
    return errno.errorcode.get(error.errno or 0, "EIO")
