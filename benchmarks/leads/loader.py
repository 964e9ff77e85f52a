"""boto3 with a loader that knows Secrets Manager alone: no list of 430 services, no 1.2 MB of endpoints.

Not taken: botocore asks the same loader for STS and SSO, through which it gets credentials, and without its endpoints
Secrets Manager is looked for at the wrong address in China, in government regions and with FIPS.
"""

from __future__ import annotations

from typing import Any

import boto3
import botocore.loaders
import botocore.session
import initializer

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


def client(service: str, config: Any = None) -> Any:
    session = botocore.session.Session()
    session.register_component("data_loader", Loader())
    return boto3.Session(botocore_session=session).client(service, config=config)


boto3.client = client
handler = initializer.handler
