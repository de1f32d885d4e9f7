"""Software carbon intensity, ISO/IEC 21031: SCI = (E x I + M) / R with R = one image.

E and M count the hardware that was reserved, idle or not; I is the location's average, and no certificate lowers it.
"""

from __future__ import annotations

from joulegate.carbon.figure import Figure, Missing

PER_IMAGE = "gCO2e/image"


def sci(operational: Figure, embodied: Figure, images: float | None) -> Figure:
    """(E x I + M) / R from the location-based and embodied figures of reserved hardware, idle included.

    Over a period, ``images`` is what was delivered in it. Missing where any part is.
    """
    if isinstance(operational, Missing):
        return Missing(operational.why, PER_IMAGE)
    if isinstance(embodied, Missing):
        return Missing(embodied.why, PER_IMAGE)
    if not images or images < 0:
        return Missing("how many images were made is not known, or none were", PER_IMAGE)
    total = operational + embodied
    return type(total)(total.low / images, total.central / images, total.high / images, PER_IMAGE, total.tier)
