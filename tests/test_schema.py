"""An application in another schema than public (DB_SCHEMA), and several of them in one database."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import initializer
import pytest
from common import ConfigError, LockError, MigrationError
from harness import clients
from harness.database import create_database, drop_database
from harness.logins import as_superuser
from harness.others import handlers
from harness.world import ADMIN, ADMIN_PASSWORD, Context, World, rows
from session import LOCK_KEY, lock_key

pytestmark = pytest.mark.public  # each test names its schemas itself

DB_SETUP = Path(initializer.__file__).parent
ORDERS = "CREATE TABLE orders (id serial PRIMARY KEY, note text);"


def in_schema(world: World, schema: str, **environ: str) -> World:
    """The same database, folder and secrets, for an application in this schema."""
    found = copy.copy(world)
    found.environ = {**world.environ, "DB_SCHEMA": schema, **environ}
    return found


def with_own_secrets(world: World, schema: str, prefix: str) -> World:
    """An application with roles and secrets of its own."""
    names = {"DB_USER_SECRET_NAME": f"{schema}/user", "DB_PROXY": f"{schema}/creator"}
    for name in names.values():
        world.secrets.create_secret(Name=name)
    return in_schema(world, schema, ROLE_PREFIX=prefix, **names)


def recorded(world: World, schema: str) -> list[str]:
    return [name for (name,) in world.sql(f"SELECT migration_name FROM {schema}.schema_migrations ORDER BY id")]


def relations(world: World, schema: str) -> list[str]:
    select = "SELECT relname FROM pg_class WHERE relnamespace = %s::regnamespace AND relkind = 'r' ORDER BY 1"
    return [name for (name,) in world.sql(select, schema)]


def ask(world: World, secret: str, question: str) -> list[tuple[Any, ...]]:
    with world.login(secret) as conn:
        return rows(conn, question)


@pytest.fixture
def shop(world: World) -> World:
    """An application in schema shop, before its first run."""
    world.write("001_orders.sql", ORDERS)
    return in_schema(world, "shop")


# --- One schema -----------------------------------------------------------------------------------------------------


def test_schema_is_created_and_holds_all_that_a_run_makes(shop: World, own_path: None) -> None:
    """It belongs to the admin; schema public gets nothing; a second run has nothing to do."""
    report = shop.deploy()

    assert [entry["name"] for entry in report["applied"]] == ["001_orders"]
    assert relations(shop, "shop") == [
        "orders",
        "schema_migrations",
        "schema_migrations_objects",
        "schema_migrations_progress",
    ]
    assert relations(shop, "public") == []
    assert shop.sql("SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'shop'") == [(ADMIN,)]
    assert shop.deploy()["users"] == {"app_rw": "kept", "app_tc": "kept"}


def test_schema_comes_first_in_a_file_and_again_after_reset(shop: World) -> None:
    """Each file, of whatever kind, begins with `schema, public`; RESET, DISCARD and TO DEFAULT come back to it."""
    shop.write("002_reset.sql", "SET search_path = public; RESET search_path; CREATE TABLE a ();")
    shop.write("003_all.sql", "SET search_path = public; RESET ALL; CREATE TABLE b ();")
    shop.write("004_default.sql", "SET search_path = public; SET search_path TO DEFAULT; CREATE TABLE c ();")
    shop.write("005_steps.sql", "-- no-transaction\nDISCARD ALL;\nCREATE TABLE d ();")
    shop.write("006_path.sql", "CREATE TABLE seen AS SELECT current_setting('search_path') AS path;")
    shop.write("007_public.sql", "CREATE TABLE public.e ();")

    shop.deploy()

    assert {"a", "b", "c", "d", "orders"} < set(relations(shop, "shop"))
    assert relations(shop, "public") == ["e"]
    assert shop.sql("SELECT path FROM shop.seen") == [("shop,public",)]


def test_schema_gives_the_logins_its_rights_and_its_path(shop: World) -> None:
    """The application reads and writes without naming the schema; what the table creator makes there later it can use;
    neither can write the tracking table, nor the application create a table."""
    shop.deploy()

    ask(shop, "user", "INSERT INTO orders (note) VALUES ('x')")
    ask(shop, "creator", "CREATE TABLE later (id serial)")
    assert ask(shop, "user", "INSERT INTO later DEFAULT VALUES RETURNING id") == [(1,)]
    assert relations(shop, "shop")[0] == "later"
    for secret in ("user", "creator"):
        assert ask(shop, secret, "SELECT migration_name FROM schema_migrations") == [("001_orders",)]
        with pytest.raises(Exception, match=r"permission denied for table schema_migrations"):
            ask(shop, secret, "DELETE FROM schema_migrations")
    with pytest.raises(Exception, match=r"permission denied for schema shop"):
        ask(shop, "user", "CREATE TABLE shop.mine ()")


def test_schema_of_somebody_else_is_refused(shop: World) -> None:
    """Whoever owns a schema can replace our tables in it; the message names the way out, which works."""
    as_superuser(
        shop, "CREATE ROLE tmp_owner; CREATE SCHEMA shop AUTHORIZATION tmp_owner; GRANT ALL ON SCHEMA shop TO PUBLIC"
    )

    with pytest.raises(ConfigError, match=f"schema shop belongs to tmp_owner.* ALTER SCHEMA shop OWNER TO {ADMIN}"):
        shop.deploy()

    assert relations(shop, "shop") == []
    as_superuser(shop, f"ALTER SCHEMA shop OWNER TO {ADMIN}")
    assert shop.deploy()["status"] == "ok"


def test_schema_that_exists_is_used_and_closed(shop: World) -> None:
    """One of the admin's stays as it is, but that not everybody can create there any more."""
    shop.sql("CREATE SCHEMA shop; GRANT ALL ON SCHEMA shop TO PUBLIC")

    shop.deploy()

    assert shop.sql("SELECT has_schema_privilege('readwrite', 'shop', 'CREATE')") == [(False,)]
    assert recorded(shop, "shop") == ["001_orders"]


@pytest.mark.parametrize(
    "name", ["Shop", "a-b", 'a"b', "a,b", "pg_shop", "information_schema", "x" * 64, "ü", "1a", "$user"]
)
def test_schema_with_another_name_than_a_plain_one_is_refused(shop: World, name: str) -> None:
    """The message says what a name may be; nothing was touched."""
    with pytest.raises(ConfigError, match=r"DB_SCHEMA is .* but must be lower-case letters, digits and _"):
        shop.deploy(DB_SCHEMA=name)

    assert shop.sql("SELECT count(*) FROM pg_namespace WHERE nspname !~ '^pg_'") == [(2,)]


@pytest.mark.parametrize("name", ["user", "order", "x" * 63])
def test_schema_can_have_the_name_of_a_keyword(shop: World, name: str) -> None:
    """It is quoted wherever it is written."""
    shop.deploy(DB_SCHEMA=name)

    assert shop.deploy(DB_SCHEMA=name)["applied"] == []
    assert ask(shop, "user", "SELECT * FROM orders") == []


def test_schema_keeps_the_options_of_the_environment(shop: World) -> None:
    """What PGOPTIONS says holds as well: for public it does."""
    shop.write("002_seen.sql", "CREATE TABLE seen AS SELECT current_setting('work_mem') AS it;")

    shop.deploy(PGOPTIONS="-c work_mem=7MB")

    assert shop.sql("SELECT it FROM shop.seen") == [("7MB",)]


@pytest.mark.parametrize("options", [(), ("--clean", "--if-exists")], ids=["plain", "clean"])
def test_schema_of_a_dump_is_not_created_twice(shop: World, options: tuple[str, ...]) -> None:
    """A dump of the schema alone begins with CREATE SCHEMA: it runs as the first migration, and is not edited then."""
    shop.sql("CREATE SCHEMA shop; CREATE TABLE shop.items (id int); INSERT INTO shop.items VALUES (1)")
    shop.remove("001_orders.sql")
    env = clients.environment(shop.server, ADMIN, ADMIN_PASSWORD, shop.dbname)
    program = clients.client("pg_dump", max(shop.server.version // 10000, min(clients.MAJORS)))
    dump = clients.run(program, "-n", "shop", *options, env=env)
    assert "CREATE SCHEMA shop;" in dump
    shop.sql("DROP SCHEMA shop CASCADE")
    shop.write("001_dump.sql", dump)

    shop.deploy()

    assert shop.deploy()["applied"] == []
    assert relations(shop, "shop") == [
        "items",
        "schema_migrations",
        "schema_migrations_objects",
        "schema_migrations_progress",
    ]


def test_schema_of_another_name_is_created_by_its_file(shop: World) -> None:
    """Only CREATE SCHEMA of the application's own schema is left out."""
    shop.write("002_more.sql", 'CREATE SCHEMA "shop"; CREATE SCHEMA other; CREATE SCHEMA third CREATE TABLE t ();')

    shop.deploy()

    assert relations(shop, "third") == ["t"]
    assert relations(shop, "other") == []


def test_schema_adopts_its_own_tables_alone(shop: World) -> None:
    """A table of the same name in public says nothing; one in the schema does."""
    shop.sql("CREATE TABLE public.orders (id int)")
    assert shop.deploy()["adopted"] == []

    shop.sql("CREATE SCHEMA other; CREATE TABLE other.orders (id int)")
    assert shop.deploy(DB_SCHEMA="other")["adopted"] == ["001_orders"]


def test_schema_status_and_dry_run_change_nothing_and_rotate_works(shop: World) -> None:
    """Also before the schema is there."""
    assert shop.deploy({"action": "status"})["pending"] == ["001_orders"]
    assert [entry["name"] for entry in shop.deploy({"action": "dry_run"})["tried"]] == ["001_orders"]
    assert shop.sql("SELECT to_regnamespace('shop')") == [(None,)]
    shop.deploy()

    assert [entry["name"] for entry in shop.deploy({"action": "status"})["applied"]] == ["001_orders"]
    shop.deploy({"action": "rotate"})
    assert ask(shop, "user", "SELECT current_user, * FROM (SELECT count(*) FROM orders) o") == [("app_rw_clone", 0)]


def test_schema_is_no_setting_of_its_own_that_a_login_keeps(shop: World) -> None:
    """The path that a run has given it is what it should have, also where that run was in another schema."""
    shop.deploy()
    shop.deploy(DB_SCHEMA="tenant")

    reports = [shop.deploy({"action": "rotate"}, DB_SCHEMA=schema) for schema in ("tenant", "shop", "shop")]

    assert [report["warnings"] for report in reports] == [[], [], []]
    ask(shop, "user", f"ALTER ROLE CURRENT_USER IN DATABASE {shop.dbname} SET search_path = elsewhere, public")
    shop.deploy({"action": "rotate"})
    (warning,) = shop.deploy({"action": "rotate"})["warnings"]
    assert "RESET search_path" in warning


def test_schema_that_is_missing_is_named_by_a_rotation(shop: World) -> None:
    """A rotation creates no schema: it says that a migration does."""
    with pytest.raises(Exception, match="Invoke a migration first: it creates the schema that DB_SCHEMA names"):
        shop.deploy({"action": "rotate"})


HIDING = {
    "a function": "CREATE FUNCTION shop.lower(varchar) RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$",
    "a function in public": "CREATE FUNCTION public.lower(varchar) RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$",
    "a table of the admin in public": "CREATE TABLE shop.lower ()",
}


@pytest.mark.parametrize("what", HIDING)
def test_schema_in_which_others_hide_postgresqls_own_or_the_admins_is_refused(shop: World, what: str) -> None:
    """What the table creator puts into the schema, or anybody into public, is not what the admin's file uses."""
    shop.deploy()
    shop.sql("CREATE TABLE public.lower ()")
    as_superuser(shop, "GRANT CREATE ON SCHEMA public TO app_tc")
    ask(shop, "creator", HIDING[what])
    shop.write("002_next.sql", "CREATE TABLE next ();")

    with pytest.raises(MigrationError, match=r"lower.* belongs to app_tc"):
        shop.deploy()


def test_schema_given_to_a_limited_user_is_taken_back(shop: World) -> None:
    """As public is: its owner could drop our tables."""
    shop.deploy()
    shop.sql("ALTER SCHEMA shop OWNER TO tablecreator")

    report = shop.deploy()

    assert "ALTER SCHEMA shop OWNER TO CURRENT_USER" in " ".join(report["warnings"])
    assert shop.sql("SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'shop'") == [(ADMIN,)]


# --- Moving over ----------------------------------------------------------------------------------------------------


def test_schema_is_moved_to_with_its_tracking_tables(world: World) -> None:
    """An application that is in public, or has its tables elsewhere, moves by SET SCHEMA: nothing runs again. Without
    the tracking tables it is refused."""
    world.write("001_orders.sql", "CREATE SCHEMA shop; CREATE TABLE shop.orders (id serial PRIMARY KEY);")
    world.write("002_more.sql", "CREATE TABLE shop.more ();")
    world.deploy()

    with pytest.raises(ConfigError, match=r"table public.schema_migrations records the files.*DB_SCHEMA changed"):
        world.deploy(DB_SCHEMA="shop")
    for table in ("schema_migrations", "schema_migrations_progress"):
        world.sql(f"ALTER TABLE public.{table} SET SCHEMA shop")
    world.write("003_here.sql", "CREATE TABLE here ();")
    report = world.deploy(DB_SCHEMA="shop")

    assert [entry["name"] for entry in report["applied"]] == ["003_here"]
    assert "here" in relations(world, "shop")
    ask(world, "user", "INSERT INTO shop.orders DEFAULT VALUES")
    with pytest.raises(ConfigError, match=r"SET SCHEMA public, or set DB_SCHEMA if its schema has changed"):
        world.deploy()


def test_schema_that_is_forgotten_is_asked_for(shop: World) -> None:
    """Our table of this schema was moved to another one: without its rows every file would run again."""
    shop.deploy()
    shop.sql("CREATE SCHEMA archive; ALTER TABLE shop.schema_migrations SET SCHEMA archive")

    with pytest.raises(ConfigError, match=r"ALTER TABLE archive.schema_migrations SET SCHEMA shop"):
        shop.deploy()


# --- Two schemas ----------------------------------------------------------------------------------------------------


def test_schemas_of_one_database_have_each_their_own_tracking(shop: World) -> None:
    """The same files run in each, public included, whatever comes first; the shared logins may use all of them."""
    for schema in ("shop", "public", "tenant"):
        assert [entry["name"] for entry in shop.deploy(DB_SCHEMA=schema)["applied"]] == ["001_orders"]
    shop.write("002_more.sql", "CREATE TABLE more ();")
    shop.deploy(DB_SCHEMA="tenant")

    assert recorded(shop, "shop") == recorded(shop, "public") == ["001_orders"]
    assert recorded(shop, "tenant") == ["001_orders", "002_more"]
    for schema in ("shop", "public", "tenant"):
        ask(shop, "user", f"INSERT INTO {schema}.orders DEFAULT VALUES")
        ask(shop, "creator", f"CREATE TABLE {schema}.later (); GRANT SELECT ON {schema}.orders TO CURRENT_USER")
        ask(shop, "user", f"SELECT * FROM {schema}.later")
    assert shop.versions("user") == 1
    assert ask(shop, "user", "SHOW search_path") == [("shop, public",)]


def test_schemas_do_not_wait_for_each_other(shop: World) -> None:
    """Each has its own lock; that of public is the one of all versions."""
    with shop.connection() as other:
        for held in (LOCK_KEY, lock_key("tenant")):
            rows(other, "SELECT pg_advisory_lock(%s)", held)
        shop.deploy(context=Context(30))
        for schema in ("public", "tenant"):
            with pytest.raises(LockError, match="another run"):
                shop.deploy(context=Context(3), DB_SCHEMA=schema)
    assert lock_key("public") == LOCK_KEY
    assert lock_key("shop") == 0x3C92566C37FC088E  # permanent: versions have to agree


def test_schemas_with_own_roles_are_closed_to_each_other(world: World) -> None:
    """With a ROLE_PREFIX each: no right on the other's schema, tables and tracking, for any of the logins; and what the
    one's table creator has made does not stop the other's deployment."""
    world.write("001_orders.sql", ORDERS)
    one, two = with_own_secrets(world, "one", "one_"), with_own_secrets(world, "two", "two_")
    for each in (one, two):
        each.deploy()
    ask(one, "one/creator", "CREATE FUNCTION one.lower(varchar) RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$")
    ask(one, "one/creator", "CREATE TABLE one.later ()")

    attacks = (
        "SELECT * FROM two.orders",
        "SELECT * FROM two.schema_migrations",
        "CREATE TABLE two.mine ()",
        "GRANT ALL ON SCHEMA two TO one_app_rw",
        "ALTER SCHEMA two OWNER TO one_tablecreator",
        "DROP TABLE two.orders",
        "COMMENT ON TABLE two.schema_migrations IS 'db_setup of schema one'",
        "SET ROLE two_readwrite",
    )
    for attack in attacks:
        for secret in ("one/user", "one/creator"):
            with pytest.raises(Exception, match=r"permission denied|must be owner|must be able to"):
                ask(one, secret, attack)
    world.write("002_more.sql", "CREATE TABLE more ();")
    assert [entry["name"] for entry in two.deploy()["applied"]] == ["002_more"]
    with pytest.raises(MigrationError, match=r"belongs to one_app_tc"):
        one.deploy()


@pytest.mark.slow
def test_schemas_deployed_at_the_same_moment_share_their_logins(shop: World) -> None:
    """Without a common lock: all end well, and what the secrets hold works in each of them."""
    schemas = ("one", "two", "three", "four")
    with ExitStack() as standing:
        started = [standing.enter_context(handlers(in_schema(shop, schema), 1)) for schema in schemas]
        for each in started:
            each.go(60)
        ended = [each.ended(90)[0] for each in started]

    assert [one.status for one in ended] == [0] * 4, [one.report for one in ended]
    for schema in schemas:
        ask(shop, "user", f"INSERT INTO {schema}.orders DEFAULT VALUES")
        ask(shop, "creator", f"CREATE TABLE {schema}.later ()")
    report = shop.deploy(DB_SCHEMA="one")
    assert report["users"] == {"app_rw": "kept", "app_tc": "kept"}


# --- Elsewhere ------------------------------------------------------------------------------------------------------


def test_schema_in_a_database_with_any_name(world: World) -> None:
    """A new login's path is set in this database, however it is written."""
    name = f'{world.dbname} "%s" %'
    other = in_schema(world, "shop", DB_NAME=name)
    other.dbname = name
    create_database(world.server, name, ADMIN)
    try:
        other.deploy()
        with other.login("user") as conn:
            assert rows(conn, "SHOW search_path") == [("shop, public",)]
    finally:
        other.hang_up()
        drop_database(world.server, name)


def test_schema_is_an_option_of_the_terminal(shop: World) -> None:
    """--schema counts, whatever the variable says."""
    host, port = shop.server.host, shop.server.port
    url = f"postgresql://{ADMIN}:{quote(ADMIN_PASSWORD, '')}@{quote(host, '')}:{port}/{shop.dbname}"
    environ = {"PATH": os.environ["PATH"], "DATABASE_URL": f"{url}?sslmode={shop.environ['PGSSLMODE']}"}
    folder = shop.folder.with_name("db_setup")
    shutil.copytree(DB_SETUP, folder, ignore=shutil.ignore_patterns("migrations"))
    (folder / "migrations").symlink_to(shop.folder)

    for words in (("migrate", "--schema", "shop"), ("status", "--schema", "shop", "--json")):
        command = [sys.executable, str(folder), *words]
        environ["DB_SCHEMA"] = "another"
        run = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
        assert run.returncode == 0, run.stderr

    assert [entry["name"] for entry in json.loads(run.stdout)["applied"]] == ["001_orders"]
    assert recorded(shop, "shop") == ["001_orders"]
