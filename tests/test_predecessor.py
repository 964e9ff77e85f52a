"""What went wrong in the predecessor, on databases as it left them.

Faults that need no such database have their tests with the rule: import and Lambda (test_layout), optional
variables and CREATE_USERS (test_config), connect timeout and TLS (test_connection), order and `.SQL` (test_files),
`aaa` before `bbb` (test_identity), adoption, stray tables and BASELINE (test_adoption).
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Iterator
from typing import Any

import limited_users
import psycopg2
import pytest
from harness.database import create_database, drop_database, drop_roles
from harness.server import Server
from harness.world import ADMIN, ADMIN_PASSWORD, World, rows
from initializer import InitializerError, MigrationError
from session import LOCK_KEY

pytestmark = pytest.mark.public  # the only schema that it knew

PLACEHOLDER = {"username": "applicationUsername", "password": "applicationPassword"}
USERS = "CREATE TABLE users (id serial PRIMARY KEY, email text);"
ORDERS = "CREATE TABLE orders (id serial PRIMARY KEY, user_id int REFERENCES users);"
NICK = "ALTER TABLE users ADD nick text;"

TRACKING = """
    CREATE TABLE schema_migrations (id SERIAL PRIMARY KEY, migration_name VARCHAR(255) UNIQUE NOT NULL,
        applied_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP);
    INSERT INTO schema_migrations (migration_name) VALUES ('001_users'), ('002_orders'), ('003_add_nick');"""
GROUP = """
    CREATE ROLE {group};
    GRANT CONNECT ON DATABASE {database} TO {group};
    GRANT {rights} ON SCHEMA public TO {group};
    GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {group};
    GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO {group};
    ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {group};
    ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT USAGE, SELECT ON SEQUENCES TO {group};"""


@pytest.fixture
def random_logins(server: Server) -> Iterator[list[str]]:
    """Names of logins that are dropped when the database is gone (so this has to be made before a world)."""
    names = [secrets.token_hex(8) for _ in range(4)]
    yield names
    drop_roles(server, *names)


@pytest.fixture
def field(random_logins: list[str], world: World) -> World:
    """A database that the predecessor deployed twice, with its folder, roles and secrets."""
    write(world, **{"001_users": USERS, "002_orders": ORDERS, "add_nick": NICK})
    groups = (("readwrite", "USAGE"), ("tablecreator", "USAGE, CREATE"))
    granted = [GROUP.format(group=group, rights=rights, database=world.dbname) for group, rights in groups]
    world.sql("".join([USERS, ORDERS, NICK, TRACKING, *granted]))
    with world.superuser() as conn:
        rows(conn, "GRANT CONNECT ON DATABASE postgres TO readwrite, tablecreator")
    for name, kind in zip(random_logins, ("user", "creator") * 2):
        make_login(world, kind, name)
    return world


GROUPS = {"user": "readwrite", "creator": "tablecreator"}


def make_login(world: World, secret: str, name: str) -> None:
    """A login as the predecessor made it, in a secret that is the admin's with another name and password."""
    password = secrets.token_hex(8)
    world.sql(f'CREATE USER "{name}" WITH PASSWORD \'{password}\'; GRANT {GROUPS[secret]} TO "{name}"')
    world.put_secret(secret, {**world.secret("admin"), "username": name, "password": password})


def write(world: World, **files: str) -> None:
    for name, text in files.items():
        world.write(f"{name}.sql", text)


def applied(report: dict[str, Any]) -> list[str]:
    return [entry["name"] for entry in report["applied"]]


def logins(world: World) -> set[str]:
    return {name for (name,) in world.sql("SELECT rolname FROM pg_roles WHERE rolcanlogin")}


def as_login(world: World, secret: str, statement: str) -> list[tuple[Any, ...]]:
    """Run a statement as the application does that reads this secret."""
    with world.login(secret) as conn:
        return rows(conn, statement)


# --- What a database in the field looks like ------------------------------------------------------------------------


def test_field_database_deploys_without_a_change(field: World) -> None:
    """Swapping the folder is enough: nothing runs again, and no login and no secret changes."""
    before = (logins(field), field.secret("user"), field.secret("creator"))

    first, second = field.deploy(), field.deploy()

    assert [applied(report) + report["adopted"] for report in (first, second)] == [[], []]
    assert field.applied() == ["001_users", "002_orders", "003_add_nick"]
    assert (logins(field), field.secret("user"), field.secret("creator")) == before
    assert list(second["users"].values()) == ["kept", "kept"]


def test_field_database_takes_new_migrations(field: World) -> None:
    """Numbered and unnumbered files go on after what the predecessor recorded, and the application can use them."""
    field.deploy()
    write(field, **{"004_items": "CREATE TABLE items (id serial, name text);", "add_price": "CREATE TABLE prices ();"})

    report = field.deploy()

    assert applied(report) == ["004_items", "005_add_price"]
    assert as_login(field, "user", "INSERT INTO items (name) VALUES ('hat') RETURNING id") == [(1,)]


def test_field_logins_of_the_later_variant_are_kept(world: World) -> None:
    """`app_rw` and `app_tc` with working passwords stay as they are."""
    write(world, **{"001_users": USERS})
    world.sql(USERS + "CREATE ROLE readwrite; CREATE ROLE tablecreator")
    make_login(world, "user", "app_rw")
    make_login(world, "creator", "app_tc")
    before = (world.secret("user"), world.secret("creator"))

    report = world.deploy()

    assert report["users"] == {"app_rw": "kept", "app_tc": "kept"}
    assert (world.secret("user"), world.secret("creator")) == before


def test_field_application_reads_its_keys_from_the_secret(world: World) -> None:
    """Applications read username, password, port and dbname from the secret, and take the host from elsewhere."""
    write(world, **{"001_users": USERS})
    world.deploy()

    value = world.secret("user")

    login = {key: value[key] for key in ("password", "port", "dbname")}
    conn = psycopg2.connect(user=value["username"], host=world.server.host, **login)
    assert rows(conn, "SELECT current_user::text, count(*) FROM users GROUP BY 1 UNION SELECT 'any', 0") == [("any", 0)]
    conn.close()


# --- Failures -------------------------------------------------------------------------------------------------------


def test_fault_failed_migration_gave_a_green_deployment(field: World) -> None:
    """A failed migration raises, names the file and what was not tried, and is tried again at the next deployment."""
    write(field, **{"004_bad": "ALTER TABLE users\n  ADD nick text;", "005_items": "CREATE TABLE items ();"})

    with pytest.raises(MigrationError) as caught:
        field.deploy()
    write(field, **{"004_bad": "ALTER TABLE users ADD age int;"})
    report = field.deploy()

    assert str(caught.value).splitlines()[0] == (
        '004_bad.sql:1: column "nick" of relation "users" already exists (42701). Rolled back. '
        "It was made by hand, by another file, further up in this one, or by a run whose row is gone; leave it out, "
        "or write IF NOT EXISTS or "
        "OR REPLACE where that exists. Then deploy again. Applied in this run: nothing. Not tried: 005_items."
    )
    assert applied(report) == ["004_bad", "005_items"]


def test_fault_after_one_failure_every_warm_invocation_failed(field: World) -> None:
    """Nothing survives a failure: the same process deploys the repaired folder."""
    write(field, **{"004_bad": "SELECT oops;"})
    for _ in range(2):
        with pytest.raises(MigrationError, match=r"^004_bad\.sql:1:8: "):
            field.deploy()
    field.remove("004_bad.sql")

    assert field.deploy()["status"] == "ok"


def test_fault_second_console_invocation_connected_as_the_limited_user(field: World) -> None:
    """Every invocation connects as the admin, whose secret is never written."""
    admin = field.secret("admin")
    field.deploy()
    write(field, **{"004_who": "CREATE TABLE who AS SELECT current_user::text AS name;"})

    field.deploy()

    assert field.sql("SELECT name FROM who") == [(ADMIN,)]
    assert (field.secret("admin"), field.versions("admin")) == (admin, 1)


def test_fault_two_runs_at_the_same_time_the_later_one_failed(field: World) -> None:
    """The second run waits for the first one, and then finds nothing to do."""
    field.deploy()
    write(field, **{"004_items": "CREATE TABLE items ();"})
    reports: list[dict[str, Any]] = []
    loser = threading.Thread(target=lambda: reports.append(field.deploy()))
    with field.connection() as winner:
        rows(winner, "SELECT pg_advisory_lock(%s)", LOCK_KEY)
        loser.start()
        wait_until_polling(field)
        rows(winner, "CREATE TABLE items ()")
        rows(winner, "INSERT INTO schema_migrations (migration_name) VALUES ('004_items')")

    loser.join(timeout=20)

    assert [applied(report) for report in reports] == [[]]
    assert field.applied()[3:] == ["004_items"]


def wait_until_polling(world: World) -> None:
    """Return when a run asks for the lock, or for who holds it."""
    end = time.monotonic() + 15
    asking = "application_name = 'db_setup' AND query LIKE '%advisory%'"
    while not world.sql(f"SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND {asking}"):
        assert time.monotonic() < end, "no run asks for the lock"
        time.sleep(0.02)


def test_fault_port_was_ignored(world: World) -> None:
    """The secret's port counts, as a number or a string; DB_PORT counts more."""
    port, place = world.server.port, f"{ADMIN}@{world.server.host}:{world.server.port}/{world.dbname}"
    for form in (str, int):
        world.put_secret("admin", {**world.secret("admin"), "port": form(port)})
        by_secret = world.deploy()
        world.put_secret("admin", {**world.secret("admin"), "port": form(1)})
        by_variable = world.deploy(DB_PORT=str(port))

        assert (by_secret["database"], by_variable["database"]) == (place, place)
    assert world.secret("user")["port"] == port


# --- Numbers, names, order ------------------------------------------------------------------------------------------


def test_fault_unnumbered_file_ran_twice(field: World) -> None:
    """Recorded as 003_add_nick by the predecessor, `add_nick` stays that when a 009_ comes."""
    write(field, **{"009_items": "CREATE TABLE items ();"})

    first, second = field.deploy(), field.deploy()

    assert (applied(first), applied(second)) == (["009_items"], [])


def test_fault_unnumbered_file_that_had_run_twice_runs_no_third_time(field: World) -> None:
    """Where the fault has struck, both rows stay, and the file that both belong to is applied."""
    field.sql("INSERT INTO schema_migrations (migration_name) VALUES ('016_add_nick')")

    first, second = field.deploy(), field.deploy()

    assert (applied(first), applied(second)) == ([], [])
    assert field.applied()[2:] == ["003_add_nick", "016_add_nick"]


def test_fault_edited_file_had_no_effect(field: World) -> None:
    """An edit of an applied file, which would do nothing, is refused from the second run on."""
    field.deploy()
    write(field, add_nick=NICK + "ALTER TABLE users ADD age int;")

    with pytest.raises(MigrationError) as caught:
        field.deploy()

    assert str(caught.value).startswith("add_nick.sql: edited after it was applied (")


def test_fault_renumbered_file_ran_again(field: World, caplog: pytest.LogCaptureFixture) -> None:
    """After one deployment that fills in the checksums, a renumbered file is known."""
    field.deploy()
    field.remove("002_orders.sql")
    write(field, **{"005_orders": ORDERS})

    report = field.deploy()

    assert applied(report) == []
    assert "renumbered migration=005_orders was=002_orders" in caplog.text


def test_fault_squashed_files_ran_again(field: World) -> None:
    """Files squashed into the applied first one are an edit of it: nothing runs, and the way on is named."""
    field.deploy()
    for name in ("002_orders.sql", "add_nick.sql"):
        field.remove(name)
    write(field, **{"001_users": USERS + ORDERS + NICK})

    with pytest.raises(MigrationError, match=r"^001_users\.sql: edited after it was applied"):
        field.deploy()

    assert applied(field.deploy(ALLOW_EDITED_MIGRATIONS="true")) == []


# --- Files ----------------------------------------------------------------------------------------------------------


def test_fault_empty_file_blocked_everything_after_it(world: World) -> None:
    """A file of nothing, or with a BOM, is a migration like any other."""
    empty = ("", "-- later\n", "/* later */", ";", "\ufeff")
    files = {f"{number:03d}_empty": content for number, content in enumerate(empty, 2)}
    write(world, **{"001_users": USERS, **files, "007_bom": "\ufeff" + NICK, "008_orders": ORDERS})

    assert applied(world.deploy(CREATE_USERS="false")) == ["001_users", *files, "007_bom", "008_orders"]


def test_fault_concurrent_index_was_impossible(field: World) -> None:
    """CREATE INDEX CONCURRENTLY alone in a file needs nothing else."""
    write(field, **{"004_index": "CREATE INDEX CONCURRENTLY users_nick ON users (nick);"})

    assert applied(field.deploy()) == ["004_index"]
    assert field.sql("SELECT indisvalid FROM pg_index WHERE indexrelid = 'users_nick'::regclass") == [(True,)]


def test_fault_commit_in_a_file_left_its_first_half_without_a_row(field: World) -> None:
    """A file that ends its transaction goes on where it failed: its first half runs no second time."""
    write(field, **{"004_items": "CREATE TABLE items ();", "005_half": "CREATE TABLE half ();\n  COMMIT; SELECT oops;"})

    with pytest.raises(MigrationError) as caught:
        field.deploy()

    assert str(caught.value).startswith('005_half.sql:2:18: column "oops" does not exist (42703).')
    write(field, **{"005_half": "CREATE TABLE half ();\n  COMMIT;\nSELECT 1;"})
    assert applied(field.deploy()) == ["005_half"]
    assert field.tables() == ["half", "items", "orders", "users"]


def test_fault_common_errors_in_sql_were_hard_to_find(field: World) -> None:
    """The message begins with the place in the file."""
    errors = {
        "004_bad.sql:2:4: ": "SELECT 1;\nDO $\nBEGIN\n  NULL;\nEND $;\n",
        "004_bad.sql:2:12: ": "SELECT 1;\nSELECT 'don't';\nSELECT 'x';\n",
        "004_bad.sql:2: ": "SELECT 1;\nALTER TABLE users ADD CONSTRAINT users_pkey UNIQUE (id);",
    }
    for place, text in errors.items():
        write(field, **{"004_bad": text})

        with pytest.raises(MigrationError) as caught:
            field.deploy()

        assert str(caught.value).startswith(place)


def test_fault_foreign_key_was_added_at_each_run(field: World) -> None:
    """A nameless foreign key, which PostgreSQL adds as often as it is told to, is added once."""
    write(
        field,
        **{"004_key": "ALTER TABLE users ADD parent int; ALTER TABLE users ADD FOREIGN KEY (parent) REFERENCES users;"},
    )

    for _ in range(3):
        field.deploy()

    assert field.sql("SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND conrelid = 'users'::regclass") == [
        (1,)
    ]


# --- Users ----------------------------------------------------------------------------------------------------------


def test_fault_six_logins_after_three_runs(world: World) -> None:
    """Two logins are made at the first run, and none later."""
    before = logins(world)
    for number in (1, 2, 3):
        write(world, **{f"00{number}_t": f"CREATE TABLE t{number} ();"})
        world.deploy()

    assert logins(world) - before == {"app_rw", "app_tc"}
    assert (world.versions("user"), world.versions("creator")) == (1, 1)


def test_fault_every_deployment_changed_the_passwords(field: World) -> None:
    """A running application goes on with the password that it has read, random user or not."""
    read = {name: field.secret(name) for name in ("user", "creator")}
    for number in (4, 5):
        write(field, **{f"00{number}_t": f"CREATE TABLE t{number} ();"})
        field.deploy()

    for value in read.values():
        with field.connection(value["username"], value["password"]) as conn:
            assert rows(conn, "SELECT count(*) FROM t5") == [(0,)]


def test_fault_placeholder_stayed_in_the_secret(field: World) -> None:
    """A secret that was never completed is completed at the next run; the other one is left alone."""
    for secret, other, login in (("user", "creator", "app_rw"), ("creator", "user", "app_tc")):
        kept = field.secret(other)
        field.put_secret(secret, PLACEHOLDER)

        report = field.deploy()

        assert report["users"] == {login: "created", kept["username"]: "kept"}
        assert field.secret(other) == kept
        assert field.secret(secret)["username"] == login
        assert as_login(field, secret, "SELECT count(*) FROM users") == [(0,)]


def test_fault_crash_between_two_writes_was_never_repaired(world: World) -> None:
    """Roles that were made with passwords that no secret holds are given new ones."""
    write(world, **{"001_users": USERS})
    world.sql("CREATE ROLE readwrite; CREATE ROLE tablecreator")
    for secret, login in (("user", "app_rw"), ("creator", "app_tc")):
        make_login(world, secret, login)
        world.put_secret(secret, PLACEHOLDER)

    report = world.deploy()

    assert report["users"] == {"app_rw": "mended", "app_tc": "mended"}
    assert [as_login(world, secret, "SELECT count(*) FROM users") for secret in ("user", "creator")] == [[(0,)], [(0,)]]


def log_every_statement(world: World) -> None:
    """Let the server log all statements, and send to the client what it writes into its log."""
    with world.superuser() as conn:
        for setting in ("log_statement = 'all'", "client_min_messages = 'log'"):
            rows(conn, f"ALTER DATABASE {world.dbname} SET {setting}")


def test_fault_passwords_stood_in_the_server_log(field: World, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever the server logs of a statement, a password is not in it."""
    log_every_statement(field)
    for secret in ("user", "creator"):
        field.put_secret(secret, PLACEHOLDER)

    field.deploy()

    assert 'CREATE ROLE \\"app_rw\\" LOGIN PASSWORD' in caplog.text
    told = caplog.text + (field.server.log_file.read_text(errors="replace") if field.server.log_file else "")
    assert [name for name in ("user", "creator", "admin") if field.secret(name)["password"] in told] == []


def test_fault_passwords_stood_in_exception_texts(
    field: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A role that cannot be made is an error without the password that it should have had."""
    monkeypatch.setattr(limited_users.secrets, "token_urlsafe", lambda _: "open-sesame")
    field.deploy()
    log_every_statement(field)
    field.put_secret("user", PLACEHOLDER)
    with field.superuser() as superuser:
        rows(superuser, "ALTER ROLE rds_admin NOCREATEROLE")
        try:
            with pytest.raises(InitializerError) as caught:
                field.deploy()
        finally:
            rows(superuser, "ALTER ROLE rds_admin CREATEROLE")

    assert "permission denied to create role (42501)" in str(caught.value)
    assert 'CREATE ROLE \\"app_rw\\" LOGIN PASSWORD' in caplog.text
    assert "open-sesame" not in caplog.text + str(caught.value)
    assert field.secret("user") == PLACEHOLDER


def test_fault_rotation_broke_since_keys_of_the_secret_were_lost(world: World) -> None:
    """Keys that are in the secret stay there when its login is made."""
    write(world, **{"001_users": USERS})
    others = {"masterarn": "arn:aws:secretsmanager:eu-central-1:123456789012:secret:admin", "team": {"name": "shop"}}
    world.put_secret("user", {**PLACEHOLDER, **others})

    world.deploy()

    value = world.secret("user")
    assert {key: value[key] for key in others} == others
    assert sorted(set(value) - set(others)) == ["dbname", "engine", "host", "password", "port", "username"]
    assert as_login(world, "user", "SELECT count(*) FROM users") == [(0,)]


def test_fault_rotated_password_is_kept(world: World) -> None:
    """What AWS's rotation has made of a login and its secret stays as it is at the next deployment."""
    write(world, **{"001_users": USERS})
    world.deploy()
    world.sql("ALTER ROLE app_rw PASSWORD 'rotated'")
    rotated = {**world.secret("user"), "password": "rotated"}
    world.put_secret("user", rotated)

    report = world.deploy()

    assert report["users"]["app_rw"] == "kept"
    assert json.dumps(world.secret("user")) == json.dumps(rotated)


def test_fault_grant_to_readwrite_failed_on_a_fresh_database(world: World) -> None:
    """The group roles are there before the first migration."""
    write(
        world,
        **{"001_users": f"{USERS} GRANT TRUNCATE ON users TO readwrite; GRANT REFERENCES ON users TO tablecreator;"},
    )

    assert applied(world.deploy()) == ["001_users"]
    assert world.sql("SELECT has_table_privilege('readwrite', 'users', 'TRUNCATE')") == [(True,)]


def test_fault_revoke_of_a_migration_was_undone(world: World) -> None:
    """What a migration revokes stays revoked at every later deployment."""
    write(world, **{"001_users": USERS, "002_revoke": "REVOKE DELETE ON users FROM readwrite;"})
    for number in (3, 4):
        world.deploy()
        write(world, **{f"00{number}_t": f"CREATE TABLE t{number} ();"})

    assert as_login(world, "user", "SELECT count(*) FROM users") == [(0,)]
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        as_login(world, "user", "DELETE FROM users")


def test_fault_revoke_was_undone_when_the_folder_was_swapped(field: World) -> None:
    """What a migration had revoked on the predecessor's database is not granted by the first run on it."""
    field.sql("REVOKE DELETE ON users FROM readwrite")

    field.deploy()

    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        as_login(field, "user", "DELETE FROM users")


def test_fault_tables_of_the_table_creator_could_not_be_read(world: World) -> None:
    """What the table creator's login makes, with its sequences, is usable by readwrite."""
    write(world, **{"001_users": USERS})
    world.deploy()

    as_login(world, "creator", "CREATE TABLE made (id serial, note text)")

    assert as_login(world, "user", "INSERT INTO made (note) VALUES ('x') RETURNING id") == [(1,)]


def test_fault_tables_of_a_kept_random_table_creator_could_not_be_read(field: World) -> None:
    """The same for a login that the predecessor made: for its old tables and its new ones."""
    as_login(field, "creator", "CREATE TABLE old (id serial, note text)")
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        as_login(field, "user", "SELECT * FROM old")
    field.deploy()

    as_login(field, "creator", "CREATE TABLE new (id serial, note text)")

    for table in ("old", "new"):
        assert as_login(field, "user", f"INSERT INTO {table} (note) VALUES ('x') RETURNING id") == [(1,)]


def test_fault_default_privileges_without_sequences(field: World) -> None:
    """Rights that the predecessor's groups lack are added: a new table's serial column can be filled."""
    field.sql("ALTER DEFAULT PRIVILEGES IN SCHEMA public REVOKE USAGE, SELECT ON SEQUENCES FROM readwrite")
    write(field, **{"004_items": "CREATE TABLE items (id serial, name text);"})

    field.deploy()

    assert as_login(field, "user", "INSERT INTO items (name) VALUES ('hat') RETURNING id") == [(1,)]


def test_fault_limited_users_could_write_the_tracking_table(field: World) -> None:
    """The predecessor's grant on it is taken back."""
    writes = [
        "DELETE FROM schema_migrations",
        "INSERT INTO schema_migrations (migration_name) VALUES ('009_x')",
        "UPDATE schema_migrations SET migration_name = migration_name",
    ]
    for secret in GROUPS:
        for statement in writes:  # which the predecessor allows
            as_login(field, secret, f"BEGIN; {statement}; ROLLBACK")

    field.deploy()

    for secret in GROUPS:
        for statement in [*writes, "TRUNCATE schema_migrations"]:
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                as_login(field, secret, statement)


@pytest.fixture
def odd_world(world: World) -> Iterator[World]:
    """A world whose database has a name that needs quoting."""
    world.dbname = f'{world.dbname} "shop"-%s'
    create_database(world.server, world.dbname, ADMIN)
    world.put_secret("admin", {**world.secret("admin"), "dbname": world.dbname})
    yield world
    drop_database(world.server, world.dbname)


def test_fault_rights_were_granted_on_database_postgres(odd_world: World) -> None:
    """The groups may connect to the application's own database, whatever its name, and get nothing on another."""
    write(odd_world, **{"001_users": USERS})

    odd_world.deploy()

    granted = (
        "SELECT datname, rolname FROM pg_database, aclexplode(datacl) a JOIN pg_roles r ON r.oid = a.grantee "
        "WHERE privilege_type = 'CONNECT' AND rolname IN ('readwrite', 'tablecreator') ORDER BY 2"
    )
    assert odd_world.sql(granted) == [(odd_world.dbname, "readwrite"), (odd_world.dbname, "tablecreator")]
    assert as_login(odd_world, "user", "SELECT count(*) FROM users") == [(0,)]


def test_fault_stray_right_on_database_postgres_is_not_another_application(world: World) -> None:
    """Roles whose only right is the predecessor's stray one are not taken for another application's."""
    world.sql("CREATE ROLE readwrite; CREATE ROLE tablecreator")
    with world.superuser() as conn:
        rows(conn, "GRANT CONNECT ON DATABASE postgres TO readwrite, tablecreator")
    write(world, **{"001_users": USERS})

    assert world.deploy()["users"] == {"app_rw": "created", "app_tc": "created"}


def test_fault_admins_own_login_in_the_users_secret_is_replaced(field: World) -> None:
    """A secret that still holds a copy of the admin's login gets a limited one; the admin's stays as it is."""
    field.put_secret("user", field.secret("admin"))

    report = field.deploy()

    assert report["users"]["app_rw"] == "created"
    assert field.secret("user")["username"] == "app_rw"
    with field.connection(ADMIN, ADMIN_PASSWORD) as conn:
        assert rows(conn, "SELECT 1") == [(1,)]
