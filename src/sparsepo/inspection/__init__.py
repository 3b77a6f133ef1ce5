"""What the masks chose: one collection of every number, and the pages, tables and terminal views made of it."""

from .collect import collect
from .notebook import Pairs, show
from .page import write_page
from .records import QUANTITIES, PairRecord, SideRecord
from .storing import RecordWriter, read_records

__all__ = [
    "QUANTITIES",
    "PairRecord",
    "Pairs",
    "RecordWriter",
    "SideRecord",
    "collect",
    "read_records",
    "show",
    "write_page",
]
