"""Everything that stays with botocore: no garbage collection, small loader, client made at import, the scanner loaded
when needed, the logins side by side."""

from __future__ import annotations

import gc

gc.disable()
import benchmark_lead_later_modules  # noqa: E402, F401, I001
import benchmark_lead_botocore_small  # noqa: E402, F401
from benchmark_lead_logins_side_by_side import handler  # noqa: E402

__all__ = ["handler"]
