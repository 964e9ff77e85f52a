"""botocore without boto3, with the small loader; the client made at import."""

from __future__ import annotations

import sys

import benchmark_lead_botocore_alone  # noqa: F401
import benchmark_lead_small_loader as small_loader

sys.modules["boto3"].client = lambda service, config=None: small_loader.session().create_client(service, config=config)
from benchmark_lead_client_in_init import handler  # noqa: E402

__all__ = ["handler"]
