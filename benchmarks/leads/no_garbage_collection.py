"""No garbage is looked for while modules and JSON are loaded: there is none, but much to look through."""

from __future__ import annotations

import gc

gc.disable()
import initializer  # noqa: E402

handler = initializer.handler
