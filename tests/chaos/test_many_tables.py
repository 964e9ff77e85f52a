"""A table creator with more tables than one transaction can lock."""

from __future__ import annotations

import pytest
from harness.attackers import close_schema
from harness.logins import as_superuser, works
from harness.world import World, rows

ROTATE = {"action": "rotate"}
pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def deployed(world: World) -> World:
    close_schema(world)
    world.deploy()
    return world


def test_rotation_is_not_kept_up_by_thousands_of_tables(deployed: World) -> None:
    """More than one transaction can lock: they change their owner in portions."""
    with deployed.login("creator") as conn:
        for number in range(11):
            create = f"EXECUTE 'CREATE TABLE many_{number}_' || i || ' ()'"
            rows(conn, f"DO $$ BEGIN FOR i IN 1..2000 LOOP {create}; END LOOP; END $$")

    report = deployed.deploy(ROTATE)

    assert report["users"]["app_tc_clone"] == "rotated"
    assert works(deployed, deployed.secret("creator"))
    left = as_superuser(deployed, "SELECT count(*) FROM pg_class WHERE relowner = 'app_tc'::regrole AND relkind = 'r'")
    assert left == [(0,)]
