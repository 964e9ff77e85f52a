"""TLS against a real PostgreSQL whose certificate an authority made for the tests has signed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

import database
import initializer
import pytest
from harness import tls
from harness.database import superuser_connection
from harness.process import deploy_elsewhere
from harness.server import Server, own_server
from harness.world import World, prepare, rows
from initializer import ConnectError

ENCRYPTED = "CREATE TABLE seen AS SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid();"
ELSEWHERE = {"DB_HOST": "db.example.com"}


@pytest.fixture(scope="module")
def server(server: Server) -> Iterator[Server]:
    """One of our own, where the one that was given does not show its authority's certificate."""
    if server.ca_file:
        yield server
        return
    with own_server() as ours:
        prepare(ours)
        yield ours


@pytest.fixture(autouse=True)
def _server_with_tls(world: World) -> None:
    world.environ.pop("PGSSLMODE", None)


def test_tls_is_used_without_any_setting(world: World) -> None:
    """A migration runs on an encrypted connection, with nothing set and no bundle there."""
    world.write("001_seen.sql", ENCRYPTED)

    world.deploy()

    assert [encrypted for encrypted, _ in world.sql("SELECT * FROM seen")] == [True]


@pytest.mark.parametrize(
    ("authority", "environ", "works"),
    [
        pytest.param("own", {}, True, id="the server's authority"),
        pytest.param("other", {}, False, id="another authority"),
        pytest.param("own", ELSEWHERE, False, id="another host"),
        pytest.param("own", {**ELSEWHERE, "PGSSLMODE": "verify-ca"}, True, id="another host, which is not asked for"),
    ],
)
def test_tls_with_a_bundle_in_the_folder_verifies_the_server(
    world: World, tmp_path: Path, authority: str, environ: dict[str, str], works: bool
) -> None:
    """A copy of the folder with global-bundle.pem in it connects to whom it can verify by authority and name, and to
    nobody else; the users' logins are tried in the same way."""
    assert world.server.ca_file is not None
    folder = tmp_path / "db_setup"
    shutil.copytree(Path(initializer.__file__).parent, folder)
    bundle = tls.issue_certificate(world.server.host).ca if authority == "other" else world.server.ca_file.read_text()
    (folder / "global-bundle.pem").write_text(bundle)
    address = {"PGHOSTADDR": "127.0.0.1"} if environ else {}

    done = deploy_elsewhere(world, folder, tmp_path, **environ, **address)

    if works:
        assert json.loads(done.stdout)["users"] == {"app_rw": "created", "app_tc": "created"}, done.stderr
    else:
        assert "RefusedError: cannot connect to" in done.stderr
        assert "certificate" in done.stderr
        assert world.sql("SELECT to_regclass('schema_migrations')") == [(None,)]


REFUSALS: dict[str, tuple[str, dict[str, Optional[str]]]] = {
    "another authority": ("other", {}),
    "another host": ("own", {**ELSEWHERE, "PGHOSTADDR": "127.0.0.1"}),
    "server without TLS": ("", {}),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_tls_that_is_refused_says_how_to_relax_it(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Whichever way it fails, the message names a value of PGSSLMODE for local work, and with that it works."""
    assert world.server.ca_file is not None
    monkeypatch.setattr(database, "CONNECT_PATIENCE_S", 0)
    authority, environ = REFUSALS[case]
    other = tmp_path / "other.pem"
    other.write_text(tls.issue_certificate(world.server.host).ca)
    if authority:
        monkeypatch.setattr(database, "CA_BUNDLE", other if authority == "other" else world.server.ca_file)
    with superuser_connection(world.server) as conn:
        try:
            if not authority:
                switch_tls(conn, "off")
            with pytest.raises(ConnectError, match=r"^cannot connect to ") as caught:
                world.deploy(**environ)
            advice = re.findall(r"PGSSLMODE=([a-z-]+)", str(caught.value))

            assert len(advice) == 1
            assert world.deploy(**{**environ, "PGSSLMODE": advice[0]})["status"] == "ok"
        finally:
            if not authority:
                switch_tls(conn, "on")


def switch_tls(conn: object, value: str) -> None:
    """Reload the server's settings, and wait until a new connection finds them so."""
    rows(conn, f"ALTER SYSTEM SET ssl = {value}")
    rows(conn, "SELECT pg_reload_conf()")
    for _ in range(500):
        if rows(conn, "SELECT setting FROM pg_settings WHERE name = 'ssl'") == [(value,)]:
            return
        rows(conn, "SELECT pg_sleep(0.02)")
    raise AssertionError(f"ssl is not {value}")
