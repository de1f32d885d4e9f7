"""Where entries are kept: the ledger."""

from joulegate.stores.fault import LedgerFault
from joulegate.stores.ledger import Ledger
from joulegate.stores.reader import LedgerReader

__all__ = ["Ledger", "LedgerFault", "LedgerReader"]
