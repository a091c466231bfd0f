"""Public API for tests: a vendor that fails on purpose, and its faults.

`pytest_plugins = ["infermux.testing"]` adds the fixture `faulty_vendor`.
"""

import sys

from .chaos.vendor import AFTER, BEFORE, FAULTS, Fault, FaultyVendor, Seen

__all__ = ["AFTER", "BEFORE", "FAULTS", "Fault", "FaultyVendor", "Seen"]

if "pytest" in sys.modules:  # pragma: no branch
    from .chaos.vendor import faulty_vendor as faulty_vendor
