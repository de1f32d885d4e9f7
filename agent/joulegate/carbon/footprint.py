"""What a joule means: CO2e by location and by market, embodied, water and money, each as a range with its reasons.

Pure views on energy: no figure here ever changes a joule (law 6), and what cannot be known is missing with a reason and
takes nothing from the rest (law 7).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from joulegate.carbon.embodied import DeviceFigure, device_figure, embodied_g
from joulegate.carbon.energy_use import KWH, EnergyUse, MeteredRequest, Slice, joined, use_of
from joulegate.carbon.figure import Figure, Missing, Range, exactly
from joulegate.carbon.intensity import G_PER_KWH, G, Weighted
from joulegate.carbon.record import Assumed, Footprint
from joulegate.carbon.sci import PER_IMAGE, sci
from joulegate.carbon.site import Site
from joulegate.carbon.tier import Tier
from joulegate.carbon.view import View
from joulegate.units import MJ_PER_J

LITRE = "L"
GPU = "gpu"
HOST = "host"
_WHOLE = 1e-9
_NO_CURRENCY = "currency not set"
_NO_IDLE = (
    "idle hardware is part of the SCI and is not attributed to this request; "
    "it is in the figures of a period, or set site.utilization and site.idle_w"
)


@dataclass(frozen=True, slots=True)
class Held:
    """Hardware in use: ``device_s`` is seconds times devices, each second shared among those that ran in it.

    ``upper_bound``: who else ran is not known, and the whole of each second is counted.
    """

    device_s: float
    gpu_name: str | None = None
    upper_bound: bool = False


@dataclass(frozen=True, slots=True)
class Idle:
    """The reserved and unused hardware that a request or a period has to carry."""

    energy: EnergyUse
    device_s: float


def footprint_of(
    request: MeteredRequest,
    view: View,
    *,
    gpu_name: str | None = None,
    images: int | None = None,
    held_s: float | None = None,
    host: EnergyUse | None = None,
    idle: Idle | None = None,
    scopes: Collection[str] = (GPU,),
) -> Footprint:
    """The footprint of one request.

    ``held_s`` is its device-seconds; without it the run counts on each of its devices, which for a request that shared
    them is an upper bound and listed as assumed. ``scopes`` are what its devices' energy covers (``Device.scope``).
    """
    alone = request.quality == Tier.MEASURED
    if held_s is None:
        run_s = max(0.0, request.ended_s - request.started_s)
        held = Held(run_s * len(request.devices), gpu_name, upper_bound=not alone)
    else:
        held = Held(held_s, gpu_name)
    return footprint(use_of(request), view, held=held, images=images, host=host, idle=idle, scopes=scopes)


def footprint(
    use: EnergyUse | Missing,
    view: View,
    *,
    held: Held | None = None,
    images: float | None = None,
    host: EnergyUse | None = None,
    idle: Idle | None = None,
    scopes: Collection[str] = (GPU,),
) -> Footprint:
    """The footprint of any energy: a request, a group of them, an hour, a month. Additive over energy and time."""
    device = device_figure(view.site, held.gpu_name if held else None)
    embodied = embodied_g(view.site, device, held.device_s) if held else Missing("the reserved time is not known", G)
    case = _Case(view, held, device, embodied, images, idle, boundary_of(scopes, host=host is not None))
    if isinstance(embodied, Range):
        case.co2e += device.assumed
        case.excluded += device.excluded
        if held and held.upper_bound:
            case.co2e.append("embodied: the request had its devices to itself (upper bound)")
    if isinstance(use, Missing):
        return _without_energy(case, use.why)
    if host is None:
        return _with_energy(case, use)
    return _with_energy(case, joined((use, host)))


def boundary_of(scopes: Collection[str], *, host: bool) -> str:
    """``gpu only``, ``gpu+host``, ``host``, ...: whose energy is counted."""
    names = sorted({*scopes, *((HOST,) if host else ())}, key=lambda name: (name == HOST, name))
    return f"{names[0]} only" if len(names) == 1 and names[0] != HOST else "+".join(names)


@dataclass(slots=True)
class _Case:
    """One footprint in the making; what is assumed for energy, CO2e and water is collected on the way."""

    view: View
    held: Held | None
    device: DeviceFigure
    embodied: Figure
    images: float | None
    idle: Idle | None
    boundary: str
    energy: list[str] = field(default_factory=list)
    co2e: list[str] = field(default_factory=list)
    water: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)

    @property
    def site(self) -> Site:
        return self.view.site

    def notes(self) -> Assumed:
        return Assumed(*(tuple(dict.fromkeys(lines)) for lines in (self.energy, self.co2e, self.water)))

    def with_overhead(self, figure: Range) -> Range:
        """A figure of IT energy with the facility's overhead: the one place where the PUE is applied."""
        if self.site.pue is None:
            return figure
        return figure.times(exactly(self.site.pue, "", Tier.MODELLED), figure.unit)


def _without_energy(case: _Case, why: str) -> Footprint:
    return Footprint(
        energy=Missing(why, KWH),
        location_based=Missing(why, G),
        market_based=Missing(why, G),
        embodied=case.embodied,
        total_sci=Missing(why, PER_IMAGE),
        water_onsite=Missing(why, LITRE),
        water_offsite=Missing(why, LITRE),
        cost=Missing(why, case.site.currency or _NO_CURRENCY),
        boundary=case.boundary,
        pue=case.site.pue,
        assumed=case.notes(),
        excluded=tuple(dict.fromkeys(case.excluded)),
    )


def _with_energy(case: _Case, use: EnergyUse) -> Footprint:
    site, it_energy = case.site, use.kwh
    facility, intensity = case.with_overhead(it_energy), case.view.intensity(use)
    _note_limits(case, use)
    location = _location_based(case, intensity)
    found = intensity if isinstance(intensity, Weighted) else None
    return Footprint(
        energy=it_energy,
        location_based=location,
        market_based=_market_based(case, facility, location),
        embodied=case.embodied,
        total_sci=_total_sci(case, use, location),
        water_onsite=_times(it_energy, site.wue_onsite_l_per_kwh, LITRE, "site.wue_onsite_l_per_kwh"),
        water_offsite=_water_offsite(case, facility),
        cost=_times(facility, site.price_per_kwh, site.currency or _NO_CURRENCY, "site.price_per_kwh"),
        boundary=case.boundary,
        pue=site.pue,
        factor=case.view.reference(found) if found else None,
        intensity=found,
        assumed=case.notes(),
        excluded=tuple(dict.fromkeys(case.excluded)),
    )


def _note_limits(case: _Case, use: EnergyUse) -> None:
    if case.site.pue is None:
        case.excluded.append("the facility's overhead (site.pue is not set)")
    if HOST not in case.boundary:
        case.excluded.append("the host's own energy")
    if not use.u_known:
        case.energy.append("the uncertainty of some of the energy is not known; the range leaves it out")


def _location_based(case: _Case, intensity: Weighted | Missing) -> Figure:
    if isinstance(intensity, Missing):
        return Missing(intensity.why, G)
    factor = case.view.choice.factor
    if intensity.covered < 1 and factor is not None:
        case.co2e += case.view.choice.assumed
        if case.view.steps:
            case.co2e.append(
                f"no grid intensity for {1 - intensity.covered:.0%} of the energy; "
                f"the factor of {factor.place.code} {factor.period} stands in"
            )
    return case.with_overhead(intensity.grams)


def _market_based(case: _Case, facility: Range, location: Figure) -> Figure:
    site = case.site
    if not site.instruments:
        return Missing("no contractual instruments are entered (site.instruments)", G)
    bought = sum(instrument.share * instrument.g_per_kwh for instrument in site.instruments)
    counted = facility.times(exactly(bought, G_PER_KWH, Tier.MODELLED), G)
    rest = 1 - sum(instrument.share for instrument in site.instruments)
    if rest <= _WHOLE:
        return counted
    if site.residual_g_per_kwh is not None:
        return counted + facility.times(exactly(site.residual_g_per_kwh * rest, G_PER_KWH, Tier.MODELLED), G)
    if isinstance(location, Missing):
        return Missing(f"no residual mix for the {rest:.0%} that no instrument covers, and {location.why}", G)
    case.co2e.append(
        f"market-based: the grid average stands in for the residual mix of {rest:.0%} "
        "(site.residual_g_per_kwh is not set)"
    )
    return counted + location.scaled(rest)


def _times(energy: Range, rate: float | None, unit: str, key: str) -> Figure:
    if rate is None:
        return Missing(f"{key} is not set", unit)
    return energy.times(exactly(rate, f"{unit}/{KWH}", Tier.MODELLED), unit)


def _water_offsite(case: _Case, facility: Range) -> Figure:
    factor = case.view.water.factor
    if case.site.wue_offsite_l_per_kwh is not None or factor is None:
        return _times(facility, case.site.wue_offsite_l_per_kwh, LITRE, "site.wue_offsite_l_per_kwh")
    case.water += case.view.water.assumed
    return facility.times(Range(factor.low, factor.value, factor.high, factor.unit.value, case.view.water.tier), LITRE)


def _total_sci(case: _Case, use: EnergyUse, location: Figure) -> Figure:
    if isinstance(location, Missing) or isinstance(case.embodied, Missing) or case.held is None:
        return sci(location, case.embodied, case.images)
    idle = case.idle or _modelled_idle(case, use, case.held)
    if idle is None:
        return Missing(_NO_IDLE, PER_IMAGE)
    intensity = case.view.intensity(idle.energy)
    if isinstance(intensity, Missing):
        return Missing(intensity.why, PER_IMAGE)
    idle_g = case.with_overhead(intensity.grams)
    whole = embodied_g(case.site, case.device, case.held.device_s + idle.device_s)
    return sci(location + idle_g, whole, case.images)


def _modelled_idle(case: _Case, use: EnergyUse, held: Held) -> Idle | None:
    """The idle time that goes with ``held`` at the operator's utilization, spread as the energy itself is."""
    utilization, idle_w = case.site.utilization, case.site.idle_w
    if not utilization or idle_w is None or not use.slices:
        return None
    idle_s = held.device_s * (1 / utilization - 1)
    idle_mj, used_mj = idle_w * MJ_PER_J * idle_s, use.energy_mj
    case.co2e.append(f"SCI: GPUs work {utilization:.0%} of the reserved time and idle at {idle_w:g} W")
    shares = [part.energy_mj / used_mj if used_mj > 0 else 1 / len(use.slices) for part in use.slices]
    slices = (Slice(p.start_s, p.end_s, share * idle_mj) for p, share in zip(use.slices, shares, strict=True))
    return Idle(EnergyUse(tuple(slices), Tier.MODELLED), idle_s)
