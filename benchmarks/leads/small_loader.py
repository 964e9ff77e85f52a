"""A botocore loader that knows Secrets Manager alone: no list of 430 services, no 1.2 MB of endpoints.

Where a request goes is decided by Secrets Manager's own rule set and partitions.json, which stay.
"""

from __future__ import annotations

from typing import Any

import botocore.loaders
import botocore.session

NO_ENDPOINTS = {
    "version": 3,
    "partitions": [
        {
            "partition": "aws",
            "dnsSuffix": "amazonaws.com",
            "regionRegex": r"^[a-z]+(-[a-z]+)+-\d+$",
            "defaults": {
                "hostname": "{service}.{region}.{dnsSuffix}",
                "protocols": ["https"],
                "signatureVersions": ["v4"],
            },
            "regions": {},
            "services": {},
        }
    ],
}


class Loader(botocore.loaders.Loader):
    def list_available_services(self, type_name: str) -> list[str]:
        return ["secretsmanager"]

    def load_data_with_path(self, name: str) -> Any:
        return (NO_ENDPOINTS, "") if name == "endpoints" else super().load_data_with_path(name)


def session() -> botocore.session.Session:
    """With this loader."""
    made = botocore.session.Session()
    made.register_component("data_loader", Loader())
    return made
