"""Millijoules, joules, watts and grams: the only conversions and the only formatting of quantities.

Energy is an ``int`` of millijoules wherever it is counted or stored, and a ``float`` of joules only where a person or a
wire contract asks for joules.
"""

from __future__ import annotations

MJ_PER_J = 1000
J_PER_WH = 3600.0
J_PER_KWH = 3.6e6
S_PER_HOUR = 3600

_SI_STEPS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def mj_from_j(energy_j: float) -> int:
    """Joules to the nearest whole millijoule."""
    return round(energy_j * MJ_PER_J)


def j_from_mj(energy_mj: float) -> float:
    """Millijoules to joules."""
    return energy_mj / MJ_PER_J


def optional_j(energy_mj: float | None) -> float | None:
    """Millijoules to joules, where a missing figure stays missing (law 2)."""
    return None if energy_mj is None else energy_mj / MJ_PER_J


def kwh_from_mj(energy_mj: float) -> float:
    """Millijoules to kilowatt hours."""
    return energy_mj / MJ_PER_J / J_PER_KWH


def format_energy(energy_mj: float | None) -> str:
    """Energy for a person to read: ``1.80 kJ``, ``12.3 J``, ``4 mJ``, or ``not known`` when there is no figure."""
    if energy_mj is None:
        return "not known"
    energy_j = abs(energy_mj) / MJ_PER_J
    sign = "-" if energy_mj < 0 else ""
    if energy_j < 1:
        return f"{sign}{abs(energy_mj):.0f} mJ"
    for size, prefix in _SI_STEPS:
        if energy_j >= size:
            return f"{sign}{energy_j / size:.3g} {prefix}J"
    return f"{sign}{energy_j:.3g} J"


def format_mass(mass_g: float | None) -> str:
    """Mass for a person to read: ``1.2 kg``, ``0.25 g`` as ``250 mg``, ``12 ug``, or ``not known``."""
    if mass_g is None:
        return "not known"
    for size, unit in ((1e3, "kg"), (1.0, "g"), (1e-3, "mg")):
        if abs(mass_g) >= size:
            return f"{mass_g / size:.3g} {unit}"
    return f"{mass_g * 1e6:.3g} ug"


def format_power(power_w: float | None) -> str:
    """Power for a person to read: ``652 W``, ``1.2 kW``, or ``not known``."""
    if power_w is None:
        return "not known"
    return f"{power_w / 1e3:.2f} kW" if abs(power_w) >= 1e4 else f"{power_w:.3g} W"
