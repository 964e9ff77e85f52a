"""Logical replication of a database carries rows and no DDL, so whoever receives the rows gets out
of step with what a migration changes here.

Knows PostgreSQL, nothing of AWS: a blue/green deployment of RDS shows as the slots that it makes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

NAMED = 5

# In one value, for a question that is asked anyway.
ACTIVE_SQL = f"""
    (SELECT coalesce(json_agg(what), '[]') FROM (
        SELECT 'slot ' || slot_name FROM pg_replication_slots
        WHERE slot_type = 'logical' AND NOT temporary AND database = current_database()
        UNION ALL
        SELECT format('publication %I', pubname) FROM pg_publication WHERE puballtables
        ORDER BY 1 LIMIT {NAMED}) active(what))"""


def warning(active: Sequence[str], with_ddl: Iterable[str]) -> list[str]:
    """What to say where replication is active and these files have DDL; at most one warning."""
    if not active:
        return []
    changing = list(with_ddl)
    if not changing:
        return []
    more = f" and {len(changing) - 1} more" if len(changing) > 1 else ""
    return [
        f"logical replication is active ({', '.join(active)}) and does not carry DDL, which is in "
        f"{changing[0]}{more}: apply it to each subscriber as well, new tables and columns there "
        "first. During a blue/green deployment wait for its end"
    ]
