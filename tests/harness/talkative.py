"""A PostgreSQL that tells all it knows: every statement in its log, plans included, and statistics of statements."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from harness import server
from harness.database import superuser_connection
from harness.server import Server
from harness.world import rows

SETTINGS = {
    "log_statement": "all",
    "log_min_duration_statement": "0",
    "log_min_error_statement": "debug5",
    "log_error_verbosity": "verbose",
    "log_connections": "on",
    "log_parameter_max_length_on_error": "-1",
    "shared_preload_libraries": "pg_stat_statements,auto_explain",
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_nested_statements": "on",
    "pg_stat_statements.track": "all",
    "track_activity_query_size": "65536",
    # The server writes files of its own, which a superuser can read through it, in a container as well.
    "logging_collector": "on",
    "log_directory": "told",
    "log_filename": "server.log",
}


@contextmanager
def talkative_server() -> Iterator[Server]:
    """A second server, besides the one of the tests."""
    with mock.patch.dict(server.SETTINGS, SETTINGS), server.own_server() as running:
        with superuser_connection(running) as conn:
            rows(conn, "CREATE EXTENSION pg_stat_statements")
        yield running


def told(running: Server) -> str:
    """The server's log, and the texts of the statements that it remembers."""
    with superuser_connection(running) as conn:
        texts = rows(conn, "SELECT pg_read_file('told/server.log', 0, 500000000)")
        texts += rows(conn, "SELECT query FROM pg_stat_statements UNION ALL SELECT query FROM pg_stat_activity")
    return "\n".join(text for (text,) in texts if text)
