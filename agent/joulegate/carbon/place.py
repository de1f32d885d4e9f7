"""A place that has a factor: a country, a region of one, a grid zone or a cloud's region."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from types import MappingProxyType

NEAR = 0.6
"""How alike two names are (difflib's ratio) for one to be offered in place of the other."""


class PlaceKind(StrEnum):
    """What sort of place a factor holds for."""

    COUNTRY = "country"
    REGION = "region"
    ZONE = "zone"
    CLOUD_REGION = "cloud_region"


@dataclass(frozen=True, slots=True)
class Place:
    """``code`` is unique within ``kind``: ``DEU``, ``USA/virginia``, ``SE3``, ``gcp/us-central1``.

    ``country`` is ISO 3166-1 alpha-3. ``aliases`` are other spellings that mean the same place. ``zone`` names the grid
    zone that a cloud region lies in, where its source says so.
    """

    kind: PlaceKind
    code: str
    country: str
    name: str
    aliases: tuple[str, ...] = ()
    zone: str = ""


_ISO_3166 = """
ABWAW AFGAF AGOAO AIAAI ALAAX ALBAL ANDAD AREAE ARGAR ARMAM ASMAS ATAAQ ATFTF ATGAG AUSAU AUTAT AZEAZ BDIBI BELBE
BENBJ BESBQ BFABF BGDBD BGRBG BHRBH BHSBS BIHBA BLMBL BLRBY BLZBZ BMUBM BOLBO BRABR BRBBB BRNBN BTNBT BVTBV BWABW
CAFCF CANCA CCKCC CHECH CHLCL CHNCN CIVCI CMRCM CODCD COGCG COKCK COLCO COMKM CPVCV CRICR CUBCU CUWCW CXRCX CYMKY
CYPCY CZECZ DEUDE DJIDJ DMADM DNKDK DOMDO DZADZ ECUEC EGYEG ERIER ESHEH ESPES ESTEE ETHET FINFI FJIFJ FLKFK FRAFR
FROFO FSMFM GABGA GBRGB GEOGE GGYGG GHAGH GIBGI GINGN GLPGP GMBGM GNBGW GNQGQ GRCGR GRDGD GRLGL GTMGT GUFGF GUMGU
GUYGY HKGHK HMDHM HNDHN HRVHR HTIHT HUNHU IDNID IMNIM INDIN IOTIO IRLIE IRNIR IRQIQ ISLIS ISRIL ITAIT JAMJM JEYJE
JORJO JPNJP KAZKZ KENKE KGZKG KHMKH KIRKI KNAKN KORKR KWTKW LAOLA LBNLB LBRLR LBYLY LCALC LIELI LKALK LSOLS LTULT
LUXLU LVALV MACMO MAFMF MARMA MCOMC MDAMD MDGMG MDVMV MEXMX MHLMH MKDMK MLIML MLTMT MMRMM MNEME MNGMN MNPMP MOZMZ
MRTMR MSRMS MTQMQ MUSMU MWIMW MYSMY MYTYT NAMNA NCLNC NERNE NFKNF NGANG NICNI NIUNU NLDNL NORNO NPLNP NRUNR NZLNZ
OMNOM PAKPK PANPA PCNPN PERPE PHLPH PLWPW PNGPG POLPL PRIPR PRKKP PRTPT PRYPY PSEPS PYFPF QATQA REURE ROURO RUSRU
RWARW SAUSA SDNSD SENSN SGPSG SGSGS SHNSH SJMSJ SLBSB SLESL SLVSV SMRSM SOMSO SPMPM SRBRS SSDSS STPST SURSR SVKSK
SVNSI SWESE SWZSZ SXMSX SYCSC SYRSY TCATC TCDTD TGOTG THATH TJKTJ TKLTK TKMTM TLSTL TONTO TTOTT TUNTN TURTR TUVTV
TWNTW TZATZ UGAUG UKRUA UMIUM URYUY USAUS UZBUZ VATVA VCTVC VENVE VGBVG VIRVI VNMVN VUTVU WLFWF WSMWS YEMYE ZAFZA
ZMBZM ZWEZW"""
"""ISO 3166-1: alpha-3 followed by alpha-2."""


@cache
def alpha2_by_alpha3() -> Mapping[str, str]:
    """``{"DEU": "DE", ...}`` for all of ISO 3166-1."""
    return MappingProxyType({pair[:3]: pair[3:] for pair in _ISO_3166.split()})


@cache
def alpha3_by_alpha2() -> Mapping[str, str]:
    """``{"DE": "DEU", ...}``."""
    return MappingProxyType({short: long for long, short in alpha2_by_alpha3().items()})


def is_country(code: str) -> bool:
    """Whether ``code`` is an ISO 3166-1 alpha-3 code, in capitals."""
    return code in alpha2_by_alpha3()


def country_of_zone(zone: str) -> str | None:
    """The country that a zone's name begins with: ``DEU`` for ``DE`` and ``DE-LU``, ``SWE`` for ``SE3``, else ``None``.

    Zones are named so by ENTSO-E, Electricity Maps and the GSF's tables.
    """
    head = zone.strip().upper()
    rest = head[2:]
    if rest and not (rest[0] in "-_" or rest.isdigit()):
        return None
    return alpha3_by_alpha2().get(head[:2])


def folded(name: str) -> str:
    """A name as it is compared: lower case, single spaces, ``_`` and ``-`` kept."""
    return " ".join(name.casefold().split())


def nearest(word: str, names: Mapping[str, str] | Iterable[str]) -> str:
    """`` ; did you mean X (Name)?`` for the code most like ``word``, else an empty text.

    ``names`` are codes, or codes with the name a person would have written.
    """
    table = names if isinstance(names, Mapping) else dict.fromkeys(names, "")
    spelled: dict[str, str] = {}
    for code, name in table.items():
        spelled.setdefault(folded(code), code)
        spelled.setdefault(folded(code.rpartition("/")[2]), code)
        if name:
            spelled.setdefault(folded(name), code)
    close = difflib.get_close_matches(folded(word), spelled, n=1, cutoff=NEAR)
    if not close:
        return ""
    code = spelled[close[0]]
    name = table[code]
    return f"; did you mean {code}{f' ({name})' if name else ''}?"
