"""Two applications on one server, deployed at the same instant, time and again: roles are the server's, and theirs."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import initializer
import pytest
from harness.logins import as_superuser, works
from harness.second import second_application
from harness.world import World
from report import Report

TIMES = 10


@pytest.fixture
def second(world: World) -> Iterator[World]:
    """Both with the same folder of migrations; libpq's variables do not change, since runs in threads read them."""
    world.write("001_things.sql", "CREATE TABLE IF NOT EXISTS things (id serial); GRANT TRUNCATE ON things TO PUBLIC;")
    folder = mock.patch.object(initializer, "MIGRATIONS_DIR", world.folder)
    with second_application(world) as second, folder, mock.patch.dict(os.environ, world.environ):
        yield second


def together(event: Any, *environs: dict[str, str]) -> list[Any]:
    """Runs that start at the same instant, each in a thread; returns what became of the users, or the errors."""
    start = threading.Barrier(len(environs))

    def deploy(environ: dict[str, str]) -> Any:
        report = Report("test")
        start.wait(timeout=10)
        try:
            initializer.run(environ, event, None, report)
        except initializer.InitializerError as exc:
            return exc
        return report.users

    with ThreadPoolExecutor(len(environs)) as threads:
        return list(threads.map(deploy, environs))


def environs(world: World, second: World, one: str, two: str) -> list[dict[str, str]]:
    return [{**world.environ, "ROLE_PREFIX": one}, {**second.environ, "ROLE_PREFIX": two}]


def all_work(world: World, second: World) -> bool:
    mine = [works(world, world.secret(name)) for name in ("user", "creator")]
    return all(mine + [works(second, second.secret(name)) for name in ("second/user", "second/creator")])


@pytest.mark.slow
def test_deployed_together_both_have_their_roles_made(world: World, second: World) -> None:
    """Ten times over, with roles that are new each time, both succeed, and all four logins work."""
    for number in range(TIMES):
        one, two = f"one{number}_", f"two{number}_"

        done = together(None, *environs(world, second, one, two))

        assert done == [{f"{prefix}app_rw": "created", f"{prefix}app_tc": "created"} for prefix in (one, two)]
        assert all_work(world, second)


@pytest.mark.slow
def test_deployed_together_both_have_their_roles_repaired_or_rotated(world: World, second: World) -> None:
    """Ten times over, with logins that were lost or are to be rotated, both succeed, and all four logins work."""
    pair = environs(world, second, "one_", "two_")
    together(None, *pair)
    logins = [f"{prefix}app_{kind}" for prefix in ("one_", "two_") for kind in ("rw", "tc")]
    for number in range(TIMES):
        rotated = number % 3 > 0  # twice, which leads back to the first logins
        if not rotated:
            as_superuser(world, "; ".join(f"ALTER ROLE {login} NOLOGIN" for login in logins))

        done = together({"action": "rotate"} if rotated else None, *pair)

        assert [isinstance(users, dict) and set(users.values()) for users in done] == [
            {"rotated" if rotated else "mended"}
        ] * 2
        assert all_work(world, second)
