"""boto3 with the small loader."""

from __future__ import annotations

from typing import Any

import benchmark_lead_small_loader as small_loader
import boto3
import initializer


def client(service: str, config: Any = None) -> Any:
    return boto3.Session(botocore_session=small_loader.session()).client(service, config=config)


boto3.client = client
handler = initializer.handler
