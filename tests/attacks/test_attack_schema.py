"""What the users of one application can do against another one, in a schema of its own or in another database, and
what somebody does to a schema between two runs."""

from __future__ import annotations

import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import initializer
import limited_users
import pytest
from common import ConfigError, ConnectError, MigrationError, UserError
from database import Login
from harness.logins import as_superuser
from harness.world import ADMIN, Context, World, exactly, rows
from test_schema import ORDERS, ask, with_own_secrets

pytestmark = pytest.mark.public  # each test names its schemas itself

EVIL = "CREATE FUNCTION public.lower(varchar) RETURNS text LANGUAGE sql AS $$ SELECT current_user::text $$"


@pytest.fixture
def two_applications(world: World) -> tuple[World, World]:
    """With roles and secrets of their own; the first one has a reader. Everybody may create in public, as up to
    PostgreSQL 14."""
    world.write("001_orders.sql", ORDERS)
    one, two = with_own_secrets(world, "one", "one_"), with_own_secrets(world, "two", "two_")
    world.secrets.create_secret(Name="one/reader")
    one.environ["DB_READER_SECRET_NAME"] = "one/reader"
    for each in (one, two):
        each.deploy()
    as_superuser(world, "GRANT CREATE ON SCHEMA public TO PUBLIC")
    return one, two


def own_path_of(world: World, secret: str) -> list[Any]:
    """The search_path that the login has in this database; none where it has no setting."""
    select = (
        "SELECT substring(one FROM 'search_path=(.*)') FROM pg_db_role_setting "
        "JOIN pg_database d ON d.oid = setdatabase, unnest(setconfig) one "
        "WHERE setrole = %s::regrole AND datname = current_database()"
    )
    return world.sql(select, world.secret(secret)["username"])


# --- Another application's users ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("secret", "group"), [("one/user", "one_readwrite"), ("one/reader", "one_readonly")])
def test_group_of_another_application_hides_nothing(
    two_applications: tuple[World, World], secret: str, group: str
) -> None:
    """The admin can act for that group too, since it has made it; so can each of its logins."""
    one, two = two_applications
    with one.login(secret) as conn:
        rows(conn, f"SET ROLE {group}")
        rows(conn, EVIL)
    two.write("002_more.sql", "CREATE TABLE more AS SELECT lower('A'::varchar) AS by;")

    with pytest.raises(MigrationError, match=f"lower.* belongs to {group}, who is not the admin"):
        two.deploy()


def test_reader_of_another_application_hides_nothing(two_applications: tuple[World, World]) -> None:
    """Ending a login's sessions has made the admin a member of it."""
    one, two = two_applications
    as_superuser(one, f"GRANT one_app_ro TO {ADMIN}")
    ask(one, "one/reader", EVIL)
    two.write("002_more.sql", "CREATE TABLE more AS SELECT lower('A'::varchar) AS by;")

    with pytest.raises(MigrationError, match=r"lower.* belongs to one_app_ro, who is not the admin"):
        two.deploy()


def test_table_that_another_admin_keeps_to_itself_stops_no_adoption(world: World) -> None:
    """The database's owner has an application with the same files, whose tracking table nobody else may read."""
    world.write("001_orders.sql", ORDERS)
    world.deploy()
    as_superuser(
        world,
        f"CREATE ROLE tmp_other LOGIN CREATEROLE PASSWORD 'x'; GRANT CREATE ON DATABASE {world.dbname} TO tmp_other; "
        "CREATE SCHEMA shop AUTHORIZATION tmp_other; SET ROLE tmp_other; CREATE TABLE shop.orders (id int); RESET ROLE",
    )
    world.put_secret("admin", {**world.secret("admin"), "username": "tmp_other", "password": "x"})

    assert world.deploy(DB_SCHEMA="shop", CREATE_USERS="false")["adopted"] == ["001_orders"]


# --- Logins that several schemas share ------------------------------------------------------------------------------


def test_rotations_of_two_schemas_never_leave_a_secret_that_fails(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runs of two schemas do not wait for each other, but what they change is the same login: the second one gives
    it another password while the first one is about to write its own."""
    world.write("001_orders.sql", ORDERS)
    for schema in ("one", "two"):
        world.deploy(DB_SCHEMA=schema)
    before = world.secret("user")
    proved = {"one": threading.Event(), "two": threading.Event()}
    first_has_ended = threading.Event()
    prove = limited_users.LimitedUsers._prove

    def prove_and_wait(users: limited_users.LimitedUsers, login: Login, otherwise: str) -> None:
        prove(users, login, otherwise)
        schema = users._app.schema
        proved[schema].set()
        if schema == "one":
            proved["two"].wait(2)  # with a lock in common it does not come so far
        else:
            first_has_ended.wait(60)

    def rotate(schema: str) -> Any:
        return initializer.handler({"action": "rotate", "variables": {"DB_SCHEMA": schema}}, Context(100))

    monkeypatch.setattr(limited_users.LimitedUsers, "_prove", prove_and_wait)
    monkeypatch.setattr(initializer, "MIGRATIONS_DIR", world.folder)
    with exactly(world.environ), ThreadPoolExecutor(2) as pool:
        first = pool.submit(rotate, "one")
        assert proved["one"].wait(60)
        second = pool.submit(rotate, "two")
        try:
            report = first.result(60)
            with world.login("user") as conn:
                assert rows(conn, "SELECT current_user") == [("app_rw_clone",)]
        finally:
            first_has_ended.set()
        assert second.result(60)["users"] == {"app_rw_clone": "kept", "app_tc_clone": "kept"}

    assert report["users"] == {"app_rw_clone": "rotated", "app_tc_clone": "rotated"}
    for secret in (before, world.secret("user")):
        with world.connection(secret["username"], secret["password"]) as conn:
            assert rows(conn, "SELECT 1") == [(1,)]


@pytest.mark.parametrize("schema", ["shop", "user"])
def test_rotation_does_not_complain_of_the_path_that_db_setup_has_set(world: World, schema: str) -> None:
    """A login's own settings are named when it gets a password; another path of its own still is."""
    world.write("001_orders.sql", ORDERS)
    world.deploy(DB_SCHEMA=schema)

    warnings = [world.deploy({"action": "rotate"}, DB_SCHEMA=schema)["warnings"] for _ in range(2)]

    assert warnings == [[], []]
    ask(world, "user", f"ALTER ROLE app_rw IN DATABASE {world.dbname} SET search_path = public")
    world.deploy({"action": "rotate"}, DB_SCHEMA=schema)
    (warning,) = world.deploy({"action": "rotate"}, DB_SCHEMA=schema)["warnings"]
    assert f"ALTER ROLE app_rw IN DATABASE {world.dbname} RESET search_path" in warning


def test_secrets_of_another_schemas_application_are_not_overwritten(world: World) -> None:
    """Whoever copies a function for a second schema can forget the secrets: the first application would lose its
    logins. The same prefix shares them; another prefix in the same schema is the same application."""
    world.write("001_orders.sql", ORDERS)
    world.deploy(DB_SCHEMA="one", ROLE_PREFIX="one_")

    for schema, prefix in (("two", "two_"), ("public", None)):
        with pytest.raises(UserError, match=r"holds one_app_rw, which works.*Name another secret"):
            world.deploy(DB_SCHEMA=schema, ROLE_PREFIX=prefix)
        assert world.secret("user")["username"] == "one_app_rw"

    ask(world, "user", "INSERT INTO one.orders DEFAULT VALUES")
    assert world.deploy(DB_SCHEMA="one", ROLE_PREFIX="uno_")["users"] == {
        "uno_app_rw": "created",
        "uno_app_tc": "created",
    }


@pytest.mark.parametrize("first", ["one", "public"])
def test_login_of_another_schema_that_is_in_another_secret_keeps_its_password(world: World, first: str) -> None:
    """Whoever gives a second schema secrets of its own can forget ROLE_PREFIX: the login would work for the one or for
    the other. A secret that was lost is filled again, in a schema that the login serves."""
    world.write("001_orders.sql", ORDERS)
    world.deploy(DB_SCHEMA=first)
    two = with_own_secrets(world, "two", "")
    del two.environ["ROLE_PREFIX"]

    for event in (None, {"action": "dry_run"}):
        with pytest.raises(UserError, match=r"app_rw is used in other schemas of this database.* or set ROLE_PREFIX"):
            two.deploy(event)

    ask(world, "user", f"INSERT INTO {first}.orders DEFAULT VALUES")
    two.deploy(ROLE_PREFIX="two_")
    world.put_secret("user", "{}")
    assert world.deploy(DB_SCHEMA=first)["users"] == {"app_rw": "mended", "app_tc": "kept"}
    assert world.deploy(DB_SCHEMA="three")["users"] == {"app_rw": "kept", "app_tc": "kept"}


@pytest.mark.parametrize(("first", "path"), [("public", []), ("one", [("one, public",)])])
def test_login_begins_in_the_same_schema_after_a_rotation_by_another_one(
    world: World, first: str, path: list[Any]
) -> None:
    """An application that names no schema would read another tenant's tables otherwise."""
    world.write("001_orders.sql", ORDERS)
    for schema in (first, "two"):
        world.deploy(DB_SCHEMA=schema)

    world.deploy({"action": "rotate"}, DB_SCHEMA="two")

    for secret in ("user", "creator"):
        assert own_path_of(world, secret) == path


def test_login_of_a_path_of_its_own_is_followed_by_one_of_the_schema(world: World) -> None:
    """What somebody has set by hand is not copied: who can change a login could write anything there."""
    world.write("001_orders.sql", ORDERS)
    world.deploy(DB_SCHEMA="one")
    ask(world, "user", f"ALTER ROLE app_rw IN DATABASE {world.dbname} SET search_path = one")

    world.deploy({"action": "rotate"}, DB_SCHEMA="one")

    assert own_path_of(world, "user") == [("one, public",)]


def test_run_that_another_schema_overtakes_complains_of_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both make the login that they share; the one that comes second leaves it alone, and the path that it has."""
    world.write("001_orders.sql", ORDERS)
    change = limited_users.LimitedUsers._change_login
    others = ["one"]

    def change_late(users: limited_users.LimitedUsers, *args: Any, **kwargs: Any) -> bool:
        if others:
            world.deploy(DB_SCHEMA=others.pop())
        return change(users, *args, **kwargs)

    monkeypatch.setattr(limited_users.LimitedUsers, "_change_login", change_late)
    report = world.deploy(DB_SCHEMA="two")

    assert (report["users"], report["warnings"]) == ({"app_rw": "kept", "app_tc": "kept"}, [])
    assert own_path_of(world, "user") == [("one, public",)]


# --- Moved, renamed, dropped ----------------------------------------------------------------------------------------


def test_table_that_came_from_public_and_was_moved_on_is_asked_for(world: World) -> None:
    """It says of itself that it is of schema public; without its rows the files would run again."""
    world.write("001_orders.sql", ORDERS)
    world.write("002_more.sql", "CREATE TABLE IF NOT EXISTS more ();")
    world.deploy()
    world.sql("CREATE SCHEMA shop; CREATE SCHEMA archive")
    for table in ("orders", "more", "schema_migrations", "schema_migrations_progress"):
        world.sql(f"ALTER TABLE {table} SET SCHEMA shop")
    world.deploy(DB_SCHEMA="shop")
    world.sql("ALTER TABLE shop.schema_migrations SET SCHEMA archive")

    with pytest.raises(ConfigError, match=r"table archive.schema_migrations records the files of this folder"):
        world.deploy(DB_SCHEMA="shop")


@pytest.mark.parametrize("schema", ["public", "shop"])
@pytest.mark.parametrize(
    "statements",
    ["DROP SCHEMA {0} CASCADE; CREATE SCHEMA {0};", "ALTER SCHEMA {0} RENAME TO old;", "DROP TABLE schema_migrations;"],
)
def test_file_that_takes_the_tracking_table_away_is_told_so(world: World, schema: str, statements: str) -> None:
    """CREATE SCHEMA of the own schema, as a dump with --clean has it, is left out: the file is to blame, and the
    message says for what."""
    world.write("001_orders.sql", ORDERS)
    world.deploy(DB_SCHEMA=schema)
    as_superuser(world, f"ALTER SCHEMA {schema} OWNER TO {ADMIN}")
    world.write("002_again.sql", statements.format(schema))

    with pytest.raises(MigrationError) as error:
        world.deploy(DB_SCHEMA=schema)

    assert str(error.value).startswith(
        f"002_again.sql: {schema}.schema_migrations is gone: this file, or somebody meanwhile, has dropped, renamed "
        "or moved it, or its schema. The file ran, and is rolled back. Deploy again then."
    )
    assert world.sql(f"SELECT count(*) FROM {schema}.orders") == [(0,)]


def test_log_names_the_schema(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """In one log group the runs of several schemas could not be told apart."""
    world.deploy(DB_SCHEMA="shop")
    world.deploy()

    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("starting")]
    assert [line.rpartition(" ")[2] for line in lines] == ["schema=shop", "files=0"]


# --- Poolers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        "unsupported startup parameter: options",
        "Feature not supported: RDS Proxy currently doesn't support command-line options.",
    ],
)
def test_pooler_that_takes_no_options_is_named(world: World, said: str) -> None:
    """PgBouncer's and RDS Proxy's answers to the path that a session begins with; they say no more."""
    answer = b"SFATAL\0C08P01\0M" + said.encode() + b"\0\0"
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)

        def refuse() -> None:
            with suppress(TimeoutError), server.accept()[0] as client:
                client.recv(4096)
                client.sendall(b"E" + struct.pack("!I", len(answer) + 4) + answer)

        thread = threading.Thread(target=refuse)
        thread.start()
        with pytest.raises(ConnectError) as error:
            world.deploy(
                DB_SCHEMA="shop", DB_HOST="127.0.0.1", DB_PORT=str(server.getsockname()[1]), PGSSLMODE="disable"
            )
        thread.join()

    assert "set DB_HOST to the database's own endpoint" in str(error.value)
