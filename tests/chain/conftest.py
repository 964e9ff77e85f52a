"""A stack for each test and each Python: the real provider, the real runtime client, PostgreSQL over TLS."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.process import secrets_manager
from harness.world import World

from chain.lambda_service import LambdaService
from chain.parts import PYTHONS, Runtime, Synthesised, node_modules, runtimes, synthesise
from chain.stack import Provider, Stack


def pytest_report_header() -> str:
    found = runtimes()
    absent = set(PYTHONS) - {each.version for each in found}
    missing = f"; not found: {', '.join(sorted(absent))}" if absent else ""
    return f"the chain runs on: {', '.join(map(str, found))}{missing}"


@pytest.fixture(scope="session")
def synthesised(tmp_path_factory: pytest.TempPathFactory) -> Synthesised:
    return synthesise(tmp_path_factory.mktemp("synthesised"))


@pytest.fixture(scope="session")
def secrets_url() -> Iterator[str]:
    """Where every world's secrets are found over HTTP, each in its test."""
    with secrets_manager() as url:
        yield url


@pytest.fixture(params=runtimes(), ids=str)
def runtime(request: pytest.FixtureRequest) -> Runtime:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def stack(
    world: World, synthesised: Synthesised, runtime: Runtime, secrets_url: str, tmp_path: Path
) -> Iterator[Stack]:
    """Nothing is deployed yet. Whatever was started is gone afterwards."""
    runtime.install()
    for name in ("code", "logs"):
        (tmp_path / name).mkdir()
    rules = _endpoint_rules(tmp_path / "botocore", secrets_url)
    variables = {"AWS_ENDPOINT_URL": secrets_url, "AWS_DATA_PATH": str(rules)}
    if not world.server.tls:
        variables["PGSSLMODE"] = world.environ["PGSSLMODE"]
    authority = world.server.ca_file
    service = LambdaService(tmp_path / "logs")
    provider = Provider(synthesised, node_modules(), service.url, tmp_path / "provider.log")
    bundle = authority.read_text() if authority else ""
    try:
        yield Stack(world, runtime, synthesised, service, provider, tmp_path / "code", variables, bundle)
    finally:
        provider.close()
        service.close()


def _endpoint_rules(folder: Path, url: str) -> Path:
    """What leads a botocore before 1.31 to this URL, which knows no AWS_ENDPOINT_URL."""
    rules = {
        "version": "1.0",
        "parameters": {"Region": {"builtIn": "AWS::Region", "required": False, "documentation": "", "type": "String"}},
        "rules": [{"conditions": [], "endpoint": {"url": url, "properties": {}, "headers": {}}, "type": "endpoint"}],
    }
    service = folder / "secretsmanager" / "2017-10-17"
    service.mkdir(parents=True)
    (service / "endpoint-rule-set-1.json").write_text(json.dumps(rules))
    return folder
