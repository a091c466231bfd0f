"""A vendor that fails as asked, and its pytest fixture: the public face of `infermux.chaos`.

Use it as a plug-in: `pytest_plugins = ["infermux.testing"]` gives the fixture `faulty_vendor`.
"""

import sys

from .chaos.vendor import AFTER, BEFORE, FAULTS, Fault, FaultyVendor, Seen

__all__ = ["AFTER", "BEFORE", "FAULTS", "Fault", "FaultyVendor", "Seen"]

if "pytest" in sys.modules:  # pragma: no branch
    from .chaos.vendor import faulty_vendor as faulty_vendor
