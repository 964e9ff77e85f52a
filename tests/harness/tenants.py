"""Databases of tenants, next to the one of a world."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from harness.database import create_database, drop_database
from harness.world import ADMIN, World


@contextmanager
def databases(world: World, suffixes: Sequence[str], made: bool = True) -> Iterator[list[str]]:
    """Their names, which begin with that of the world's; where they are not `made`, a test makes them."""
    names = [world.dbname + suffix for suffix in suffixes]
    try:
        for name in names if made else ():
            create_database(world.server, name, ADMIN)
        yield names
    finally:
        for name in names:
            drop_database(world.server, name)
