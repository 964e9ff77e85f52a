"""A second application on the server of a world: a database, secrets and a folder of its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from harness.database import create_database, drop_database
from harness.world import ADMIN, World


@contextmanager
def second_application(world: World, name: str = "second") -> Iterator[World]:
    """Its secrets are called `second/user` and `second/creator`; its admin is the same."""
    second = copy.copy(world)
    second.dbname = f"{world.dbname}_{name}"
    second.folder = world.folder.with_name(name)
    second.folder.mkdir()
    secrets = {"DB_USER_SECRET_NAME": f"{name}/user", "DB_PROXY": f"{name}/creator"}
    second.environ = {**world.environ, **secrets, "DB_NAME": second.dbname}
    for secret in secrets.values():
        world.secrets.create_secret(Name=secret)
    create_database(world.server, second.dbname, ADMIN)
    try:
        yield second
    finally:
        drop_database(world.server, second.dbname)
