"""Deploy, deploy again, change, fail, fix."""

from __future__ import annotations

from harness.world import World

USERS = "CREATE TABLE users (id int PRIMARY KEY, email text UNIQUE);\n"


def test_run_on_empty_database_applies_everything_in_order(world: World) -> None:
    """A first deployment applies every file and makes both logins."""
    world.write("001_users.sql", USERS)
    world.write("002_orders.sql", "CREATE TABLE orders (user_id int REFERENCES users);")

    report = world.deploy()

    assert [entry["name"] for entry in report["applied"]] == ["001_users", "002_orders"]
    assert report["users"] == {"app_rw": "created", "app_tc": "created"}
    assert world.applied() == ["001_users", "002_orders"]
    with world.login("user") as conn, conn.cursor() as cur:
        cur.execute("SELECT * FROM orders")


def test_run_again_changes_nothing(world: World) -> None:
    """A second deployment finds nothing to do."""
    world.write("001_users.sql", USERS)
    world.deploy()

    report = world.deploy()

    assert (report["applied"], report["adopted"], report["users"]) == ([], [], {"app_rw": "kept", "app_tc": "kept"})
    assert world.versions("user") == 1
