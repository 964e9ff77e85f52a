"""botocore without boto3, which brings the machinery for S3 along (s3transfer, multiprocessing) and resources."""

from __future__ import annotations

import sys
import types
from typing import Any

import botocore.session


def client(service: str, config: Any = None) -> Any:
    return botocore.session.Session().create_client(service, config=config)


sys.modules["boto3"] = types.ModuleType("boto3")
sys.modules["boto3"].client = client  # type: ignore[attr-defined]
import initializer  # noqa: E402

handler = initializer.handler
