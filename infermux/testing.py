"""A vendor that fails as asked, for tests: the public face of `infermux.chaos`."""

from .chaos.vendor import AFTER, BEFORE, FAULTS, Fault, FaultyVendor, Seen

__all__ = ["AFTER", "BEFORE", "FAULTS", "Fault", "FaultyVendor", "Seen"]
