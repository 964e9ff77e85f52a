"""What a run needs around it: a PostgreSQL that is thrown away, databases on it, Secrets Manager by moto."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import boto3
from harness.database import create_admin, create_database, drop_database
from harness.process import secrets_manager
from harness.server import Server, own_server
from harness.world import AWS_ENVIRONMENT, REGION

from benchmarks.secrets_front import front

ADMIN, PASSWORD = "bench_admin", "bench"  # a word that every peer's URL takes as it is
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Target:
    """A database, how to come to it, and the three secrets that belong to it."""

    host: str
    port: int
    dbname: str
    secrets_url: str
    user: str = ADMIN
    password: str = field(default=PASSWORD, repr=False)

    @property
    def login(self) -> dict[str, Any]:
        """As RDS writes it into a secret."""
        return {
            "engine": "postgres",
            "host": self.host,
            "port": self.port,
            "dbname": self.dbname,
            "username": self.user,
            "password": self.password,
        }

    @property
    def url(self) -> str:
        return f"postgresql://{self.user}:{self.password}@{self.host}:{self.port}/{self.dbname}"

    def secret(self, kind: str) -> str:
        return f"{self.dbname}-{kind}"

    @property
    def libpq(self) -> dict[str, str]:
        """For all alike: no TLS, which not all of them can, and which `make bench` looks at by itself."""
        return {
            "PGHOST": self.host,
            "PGPORT": str(self.port),
            "PGUSER": self.user,
            "PGPASSWORD": self.password,
            "PGDATABASE": self.dbname,
            "PGSSLMODE": "disable",
        }

    @property
    def aws(self) -> dict[str, str]:
        return {**AWS_ENVIRONMENT, "AWS_ENDPOINT_URL": self.secrets_url}


class Ground:
    """Makes databases, each with an admin's secret and two empty ones."""

    def __init__(self, server: Server, secrets_url: str) -> None:
        self.server, self.secrets_url = server, secrets_url
        self._secrets = boto3.client(
            "secretsmanager",
            region_name=REGION,
            endpoint_url=secrets_url,
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )
        create_admin(server, ADMIN, PASSWORD)

    def database(self) -> Target:
        """A new, empty one, owned by the admin."""
        target = Target(self.server.host, self.server.port, f"bench_{next(_numbers)}", self.secrets_url)
        create_database(self.server, target.dbname, ADMIN)
        self._secrets.create_secret(Name=target.secret("admin"), SecretString=json.dumps(target.login))
        for kind in ("user", "creator"):
            self._secrets.create_secret(Name=target.secret(kind))
        return target

    def at(self, target: Target, port: int) -> Target:
        """The same database on another port; the admin's secret names that port too."""
        there = replace(target, port=port)
        self._secrets.put_secret_value(SecretId=target.secret("admin"), SecretString=json.dumps(there.login))
        return there

    def drop(self, target: Target) -> None:
        drop_database(self.server, target.dbname)


@contextmanager
def ground() -> Iterator[Ground]:
    """All of it, gone afterwards."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    with own_server() as server, secrets_manager() as moto, front(moto) as url:
        yield Ground(server, url)
