"""Everything without botocore: no garbage collection, signed by hand, the scanner loaded when needed, the logins side
by side."""

from __future__ import annotations

import gc

gc.disable()
import benchmark_lead_later_modules  # noqa: E402, F401
import benchmark_lead_signed_by_hand  # noqa: E402, F401
from benchmark_lead_logins_side_by_side import handler  # noqa: E402

__all__ = ["handler"]
