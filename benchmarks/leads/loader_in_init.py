"""boto3 with the small loader; the client made at import."""

from __future__ import annotations

import benchmark_lead_small_loader as small_loader
import boto3

boto3.client = lambda service, config=None: small_loader.session().create_client(service, config=config)
from benchmark_lead_client_in_init import handler  # noqa: E402

__all__ = ["handler"]
