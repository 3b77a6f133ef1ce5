"""The one error of the data room."""

from __future__ import annotations


class DataError(ValueError):
    """Data that cannot be used as it stands; the message names the file or row, the field and the mend."""
