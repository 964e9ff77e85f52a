"""What the killed handler has to bring about: a folder, an empty database, two empty secrets; and what came of it."""

from __future__ import annotations

import difflib
import json
import re
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import psycopg2
from harness import clients
from harness.compare import without_noise
from harness.database import create_admin, create_database, drop_database, drop_roles, superuser_connection
from harness.server import Server
from harness.world import ADMIN, ADMIN_PASSWORD, AWS_ENVIRONMENT, REGION, rows

DATABASE, TEMPLATE = "chaos", "chaos_template"
ROLES = ("readwrite", "tablecreator", "app\\_rw", "app\\_tc")
SECRETS = ("user", "creator")
READY_TIMEOUT_S = 30
GONE_TIMEOUT_S = 10

FILES = {
    "001_initial_schema.sql": """
        CREATE TYPE state AS ENUM ('new', 'paid');
        CREATE TABLE items (id integer PRIMARY KEY, name text NOT NULL, price numeric(8, 2), state state DEFAULT 'new');
        CREATE TABLE counters (name text PRIMARY KEY, n integer NOT NULL);
        CREATE TABLE ledger (item integer, what text);
        CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN INSERT INTO ledger VALUES (NEW.id, TG_OP); RETURN NEW; END $$;
        CREATE TRIGGER touched AFTER INSERT ON items FOR EACH ROW EXECUTE FUNCTION touch();
        CREATE VIEW dear_items AS SELECT * FROM items WHERE price > 900;
        GRANT SELECT ON dear_items TO readwrite;""",
    # Twice would be twice: nothing here has a key that refuses it.
    "002_data.sql": """
        INSERT INTO items SELECT n, 'item ' || n, n FROM generate_series(1, 1000) n ON CONFLICT DO NOTHING;
        INSERT INTO counters VALUES ('files', 1) ON CONFLICT (name) DO UPDATE SET n = counters.n + 1;
        INSERT INTO ledger SELECT n, 'by hand' FROM generate_series(1, 100) n;""",
    "003_rows.sql": "COPY ledger (item, what) FROM stdin;\n1\tcopied\n2\tcopied\n\\.\n"
    "UPDATE counters SET n = n + 10 WHERE name = 'files';\n",
    "004_indexes.sql": """-- no-transaction
        CREATE INDEX CONCURRENTLY items_by_name ON items (name);
        UPDATE counters SET n = n + 100 WHERE name = 'files';
        CREATE UNIQUE INDEX CONCURRENTLY items_by_price ON items (price, id);
        BEGIN;
        UPDATE counters SET n = n + 1000 WHERE name = 'files';
        INSERT INTO ledger VALUES (0, 'between indexes');
        COMMIT;
        CREATE INDEX CONCURRENTLY IF NOT EXISTS ledger_by_item ON ledger (item) WHERE item > 5;""",
    "005_one_index.sql": "CREATE INDEX CONCURRENTLY items_by_state ON items (state);",
    "006_more.sql": """
        ALTER TABLE items ADD COLUMN weight integer NOT NULL DEFAULT 1;
        UPDATE items SET price = price + 1 WHERE id <= 10;
        REVOKE DELETE ON counters FROM readwrite;""",
}

# The tracking table without times, and without ids: a sequence does not go back when a transaction does.
QUERIES = {
    "tracking": "SELECT migration_name, checksum, file_sha256, adopted FROM public.schema_migrations ORDER BY id",
    "roles": "SELECT rolname, rolcanlogin, rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolvaliduntil "
    "FROM pg_roles WHERE rolname !~ '^pg_' ORDER BY 1",
    "memberships": "SELECT r.rolname, m.rolname, g.admin_option FROM pg_auth_members g "
    "JOIN pg_roles r ON r.oid = roleid JOIN pg_roles m ON m.oid = member WHERE r.rolname !~ '^pg_' ORDER BY 1, 2, 3",
    "database's rights": "SELECT a::text FROM pg_database, unnest(datacl) a "
    "WHERE datname = current_database() ORDER BY 1",
    "invalid indexes": "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid ORDER BY 1",
    "advisory locks": "SELECT classid, objid FROM pg_locks WHERE locktype = 'advisory'",
    "prepared transactions": "SELECT gid FROM pg_prepared_xacts",
}
OTHERS = "SELECT pid, state, query FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


@dataclass(frozen=True)
class Snapshot:
    """Everything that two runs must agree on, by a name for people; not the passwords, which are random."""

    parts: dict[str, str]

    def differences(self, other: Snapshot) -> list[str]:
        """What is otherwise in `other`."""
        found = []
        for name, ours in self.parts.items():
            lines = difflib.unified_diff(ours.splitlines(), other.parts[name].splitlines(), lineterm="", n=0)
            text = "\n".join(list(lines)[2:12])
            if text:
                found.append(f"{name} differs:\n{text}")
        return found


class Scenario:
    """One database on a real server, reached through a proxy, and the secrets in moto's server."""

    def __init__(self, server: Server, proxy_port: int, moto: str, folder: Path) -> None:
        self.server, self.folder = server, folder
        self._proxy_port, self._moto = proxy_port, moto
        self._secrets = boto3.client(
            "secretsmanager",
            region_name=REGION,
            endpoint_url=moto,
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )
        folder.mkdir()
        for name, text in FILES.items():
            (folder / name).write_text(text)
        create_admin(server, ADMIN, ADMIN_PASSWORD)
        drop_database(server, TEMPLATE)
        create_database(server, TEMPLATE, ADMIN)
        if server.log_file:  # started here, and will be crashed
            with superuser_connection(server) as conn:
                # The tests' servers save this time, at the price of what was committed last when they crash.
                rows(conn, "ALTER ROLE ALL SET synchronous_commit = on")

    def environ(self, secrets_url: str) -> dict[str, str]:
        """The variables of the handler, and of libpq and boto3 in its process."""
        ours = {"DB_SECRET_NAME": "admin", "DB_USER_SECRET_NAME": "user", "DB_PROXY": "creator"}
        plain = {"PGSSLMODE": "disable", "PGGSSENCMODE": "disable"}  # the proxy reads along
        return {**AWS_ENVIRONMENT, **ours, **plain, "AWS_ENDPOINT_URL": secrets_url}

    def reset(self) -> None:
        """An empty database, no roles, no credentials."""
        drop_database(self.server, DATABASE)
        drop_roles(self.server, *ROLES)
        create_database(self.server, DATABASE, ADMIN, template=TEMPLATE)
        reset = urllib.request.Request(f"{self._moto}/moto-api/reset", method="POST")
        urllib.request.urlopen(reset, timeout=10).close()
        login = {
            "engine": "postgres",
            "host": "127.0.0.1",
            "port": self._proxy_port,
            "dbname": DATABASE,
            "username": ADMIN,
            "password": ADMIN_PASSWORD,
        }
        self._secrets.create_secret(Name="admin", SecretString=json.dumps(login))
        for name in SECRETS:
            self._secrets.create_secret(Name=name)

    def remove(self) -> None:
        """Leave nothing on a server that goes on without us."""
        for name in (DATABASE, TEMPLATE):
            drop_database(self.server, name)
        drop_roles(self.server, *ROLES, ADMIN)

    def wait_until_ready(self) -> None:
        """Return when the server, which may be starting, lets us in; raises where it does not in time."""
        end = time.monotonic() + READY_TIMEOUT_S
        while True:
            try:
                with superuser_connection(self.server):
                    return
            except psycopg2.OperationalError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def snapshot(self) -> Snapshot:
        """What the runs so far have brought about."""
        env = clients.environment(self.server, self.server.user, self.server.password, DATABASE)
        newest = max(self.server.version // 10000, min(clients.MAJORS))
        dump = clients.run(
            *(clients.client("pg_dump", newest), "--exclude-table-data=public.schema_migrations"),
            "--exclude-table=public.schema_migrations_objects",  # missing or old where a run was killed before its end
            env=env,
            timeout=60,
        )
        # The note of granted rights names database and table by their numbers, which differ from case to case.
        dump = re.sub(r"(?<= IS 'rights granted in )[\d/]+", "…", without_noise(dump))
        # The position of the tracking table's sequence depends on the failures before, and is allowed to.
        kept = [line for line in dump.splitlines() if "schema_migrations_id_seq'," not in line]
        # pg_dump writes rights in the order of internal numbers, which differ from case to case.
        rights = ("GRANT ", "REVOKE ", "ALTER DEFAULT PRIVILEGES ")
        kept.sort(key=lambda line: (1, line) if line.startswith(rights) else (0, ""))
        with superuser_connection(self.server, DATABASE) as conn:
            parts = {"connections": "\n".join(map(str, _still_there(conn)))}
            parts.update({name: "\n".join(map(str, rows(conn, query))) for name, query in QUERIES.items()})
        values = {name: {**self._value(name), "password": "…"} for name in SECRETS}
        parts.update(dump="\n".join(kept), secrets=json.dumps(values, indent=1, sort_keys=True))
        return Snapshot(parts)

    def passwords(self) -> list[str]:
        """Those that the secrets hold now."""
        return [str(value["password"]) for value in map(self._value, SECRETS) if "password" in value]

    def complaints_of_logins(self) -> list[str]:
        """What the two logins in the secrets cannot do that they must, or can do that they must not."""
        found = []
        for name, may, must_not in (
            (
                "user",
                "INSERT INTO items (id, name) VALUES (-1, ''); DELETE FROM items WHERE id = -1",
                "DELETE FROM counters",
            ),
            ("creator", "CREATE TABLE made (); INSERT INTO counters VALUES ('x', 1)", "DELETE FROM schema_migrations"),
        ):
            try:
                with self._login(self._value(name)) as conn, conn.cursor() as cur:  # never committed
                    cur.execute(may)
                    cur.execute("SAVEPOINT here")
                    try:
                        cur.execute(must_not)
                        found.append(f"the login of secret {name} may {must_not}")
                    except psycopg2.errors.InsufficientPrivilege:
                        pass
                    conn.rollback()
            except (psycopg2.Error, KeyError) as exc:
                found.append(f"the login of secret {name} does not work: {type(exc).__name__} {exc}")
        return found

    def _login(self, value: dict[str, Any]) -> Any:
        return psycopg2.connect(
            host=self.server.host,
            port=self.server.port,
            dbname=DATABASE,
            user=value["username"],
            password=value["password"],
            connect_timeout=10,
        )

    def _value(self, name: str) -> dict[str, Any]:
        try:
            value: dict[str, Any] = json.loads(self._secrets.get_secret_value(SecretId=name)["SecretString"])
        except self._secrets.exceptions.ResourceNotFoundException:
            return {}
        return value


def _still_there(conn: Any) -> list[Any]:
    """The other connections to this database, once those that are about to go have gone."""
    end = time.monotonic() + GONE_TIMEOUT_S
    while True:
        others = rows(conn, OTHERS)
        if not others or time.monotonic() > end:
            return others
        time.sleep(0.02)
