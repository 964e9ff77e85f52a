"""The example's variant without any password or secret: tokens from the real trigger to the limited user's login."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.iam import Front, admin_by_iam, front_of, server_with_iam
from harness.server import Server
from harness.world import ADMIN, AWS_ENVIRONMENT, World

from chain.lambda_service import LambdaService
from chain.parts import Runtime, Synthesised, node_modules, synthesise
from chain.stack import Provider, Stack

pytestmark = pytest.mark.timeout(600)  # the first one may have to install everything


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with server_with_iam() as ours:
        yield ours


@pytest.fixture(scope="module")
def synthesised(tmp_path_factory: pytest.TempPathFactory) -> Synthesised:
    return synthesise(tmp_path_factory.mktemp("synthesised"), database="iam")


@pytest.fixture
def front(world: World, tmp_path: Path) -> Iterator[Front]:
    with admin_by_iam(world.server), front_of(world.server, tmp_path) as standing:
        standing.keys = dict(AWS_ENVIRONMENT)
        yield standing


@pytest.fixture
def stack(world: World, front: Front, synthesised: Synthesised, runtime: Runtime, tmp_path: Path) -> Iterator[Stack]:
    """Deployed as the template says, in the place of whose database the front stands. Secrets Manager is nowhere."""
    runtime.install()
    for name in ("code", "logs"):
        (tmp_path / name).mkdir()
    said = synthesised.function["Environment"]["Variables"]
    variables = {**said, **front.variables, "DB_NAME": world.dbname, "DB_USER": ADMIN}
    variables["AWS_ENDPOINT_URL"] = "http://127.0.0.1:1"
    service = LambdaService(tmp_path / "logs")
    provider = Provider(synthesised, node_modules(), service.url, tmp_path / "provider.log")
    (bundle,) = (path.read_text() for path in front.roots.iterdir())
    try:
        yield Stack(world, runtime, synthesised, service, provider, tmp_path / "code", variables, bundle)
    finally:
        provider.close()
        service.close()


def test_chain_without_a_secret_migrates_and_makes_users(stack: Stack, world: World, front: Front) -> None:
    """What `-c database=iam` synthesises: a first deployment, and one that finds everything as it is."""
    world.write("001_orders.sql", "CREATE TABLE orders (id serial PRIMARY KEY);")

    events = [stack.deploy(), stack.trigger_again()]

    assert [event.status for event in events] == ["SUCCESS"] * 2, events
    users: list[Any] = [invocation.answer["users"] for invocation in stack.service.invocations]
    assert users == [{"app_rw": "created", "app_tc": "created"}, {"app_rw": "kept", "app_tc": "kept"}]
    assert world.applied() == ["001_orders"]
    assert (len(front.tokens), front.refusals) == (6, [])
    assert "X-Amz" not in stack.service.log()
