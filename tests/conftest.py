"""One PostgreSQL per test process, a database per test (a copy of a template), Secrets Manager by moto."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import pickle
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import pytest
from harness.attackers import deploy_among_attackers, own_path_only
from harness.aws import played
from harness.database import SCHEMA, create_database, drop_database, drop_roles, in_public
from harness.server import NoServerError, Server, running_server
from harness.temporary import temporary_home
from harness.world import ADMIN, TEMPLATE, World, exactly, prepare

# Roles belong to the server, not to a database: every test removes its own.
ROLE_PATTERNS = ("%readwrite", "%tablecreator", "%readonly", "%app\\_ro%", "%app\\_rw%", "%app\\_tc%", "tmp\\_%")

_started = ExitStack()
_servers: list[Server] = []
_numbers = itertools.count(1)


@pytest.hookimpl(tryfirst=True)  # before pytest decides where its temporary folders are
def pytest_configure(config: pytest.Config) -> None:
    """Start the server, which the report's header names. A second process of pytest-xdist starts one of its own."""
    if config.pluginmanager.hasplugin("dsession"):
        config.pluginmanager.register(FirstWorker())
    shared = getattr(config, "workerinput", {}).get("server")
    try:
        home = _started.enter_context(temporary_home())
        if config.option.basetemp is None:  # else pytest keeps the folders of its last three runs
            config.option.basetemp = str(home / "pytest")
        given = config.pluginmanager.get_plugin("given")  # by tests/mutants: one server for many runs
        if given:
            _servers.append(given.server)
        elif shared:
            _servers.append(Server(**pickle.loads(shared)))
        else:
            _servers.append(_started.enter_context(running_server()))
    except NoServerError as exc:
        raise pytest.UsageError(str(exc)) from exc


def pytest_collection_finish() -> None:
    """What is imported by now stays: without it, looking through it for garbage is a sixth of all that the tests do."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    _started.close()


def pytest_report_header() -> str:
    return f"PostgreSQL for the tests: {_servers[0].how}"


class FirstWorker:
    """Lets the first process of pytest-xdist use the server that was started for the header."""

    def pytest_configure_node(self, node: Any) -> None:
        if node.workerinput["workerid"] == "gw0":
            node.workerinput["server"] = pickle.dumps(vars(_servers[0]))


@pytest.fixture(scope="session")
def server() -> Server:
    """A running PostgreSQL with an RDS-like admin and a template database that the admin owns."""
    prepare(_servers[0])
    return _servers[0]


@pytest.fixture(autouse=True)
def _schema(request: pytest.FixtureRequest) -> Iterator[None]:
    """What is about schema public has its application there, also where TEST_SCHEMA names another one."""
    with in_public() if request.node.get_closest_marker("public") else nullcontext():
        yield


@pytest.fixture
def world(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[World]:
    """A new database, empty secrets and an empty folder of migrations."""
    caplog.set_level(logging.INFO, logger="db_setup")
    dbname = f"db_setup_{os.getpid()}_{next(_numbers)}"
    create_database(server, dbname, ADMIN, template=TEMPLATE)
    try:
        with played():
            world = World(server, dbname, tmp_path / "migrations")
            if world.schema != SCHEMA:
                world.sql(f"DROP SCHEMA {SCHEMA}")
            with exactly(world.environ):
                yield world
    finally:
        drop_database(server, dbname)
        drop_roles(server, *ROLE_PATTERNS)


@pytest.fixture
def own_path() -> Iterator[None]:
    """No statement of ours meets a search path that others can write to."""
    with own_path_only():
        yield


@pytest.fixture
def deployed(world: World, own_path: None) -> World:
    """A world that has been deployed, with logins, and those who attack it."""
    deploy_among_attackers(world)
    return world
