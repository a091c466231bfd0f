"""Public API for tests: a vendor that fails on purpose, its faults and a pytest fixture.

With `pytest_plugins = ["infermux.testing"]` the fixture is `faulty_vendor`.
"""

import sys

from .chaos.vendor import AFTER, BEFORE, FAULTS, Fault, FaultyVendor, Seen

__all__ = ["AFTER", "BEFORE", "FAULTS", "Fault", "FaultyVendor", "Seen"]

if "pytest" in sys.modules:  # pragma: no branch
    from .chaos.vendor import faulty_vendor as faulty_vendor
