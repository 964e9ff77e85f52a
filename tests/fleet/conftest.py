"""A fleet for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chain.lambda_service import LambdaService
from chain.parts import runtimes
from harness.process import secrets_manager
from harness.world import World

from fleet.fleet import Fleet


@pytest.fixture(scope="session")
def synthesised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("synthesised")


@pytest.fixture
def fleet(world: World, tmp_path: Path, synthesised: Path) -> Iterator[Fleet]:
    """Without databases yet."""
    for name in ("code", "logs"):
        (tmp_path / name).mkdir()
    service = LambdaService(tmp_path / "logs")
    variables = {} if world.server.tls else {"PGSSLMODE": world.environ["PGSSLMODE"]}
    with secrets_manager() as url:
        variables["AWS_ENDPOINT_URL"] = url
        made = Fleet(world, service, runtimes()[-1], tmp_path / "code", synthesised, variables)
        try:
            yield made
        finally:
            service.close()
            made.drop_databases()
