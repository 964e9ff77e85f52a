"""The users' logins are tried side by side; the groups' state is asked for once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from typing import Any

import initializer
import limited_users
from database import ConnectError, connect

group_states = limited_users.group_states


def working_logins(conn: Any, app: Any, kept: Any, deadline: Any) -> Any:
    """All that is asked of the admin's connection, while the logins are tried on their own."""

    def tried(value: Any) -> bool:
        try:
            connect(replace(app.admin, username=value["username"], password=value["password"]), deadline).close()
            return True
        except ConnectError as exc:
            if exc.login_refused:
                return False
            raise

    with ThreadPoolExecutor(2) as threads:
        works = [threads.submit(tried, value) for value in kept.values()]
        states = lru_cache(None)(lambda: tuple(group_states(conn, app)))
        limited_users.group_states = lambda conn, app: list(states())
        try:
            fine = limited_users.groups_are_fine(conn, app) and all(
                limited_users.login_is_fine(conn, app, kind, value["username"])
                and limited_users.is_followed(conn, app, kind, value["username"])
                for kind, value in kept.items()
            )
        finally:
            limited_users.group_states = group_states
        return [value["username"] for value in kept.values()] if all(w.result() for w in works) and fine else None


limited_users.working_logins = working_logins
handler = initializer.handler
