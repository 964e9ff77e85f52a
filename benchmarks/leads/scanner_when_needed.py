"""sql_scanner and script_runner, with their regular expressions, are loaded when there is a file to apply."""

from __future__ import annotations

import benchmark_lead_later_modules  # noqa: F401
from initializer import handler

__all__ = ["handler"]
