"""What can befall a run of the handler, and at which places."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Optional

import harness
import psycopg2
from harness.database import superuser_connection
from harness.proxy import ANSWERED, BEFORE, SENT, Link, Place, Proxy
from harness.server import Server
from harness.world import rows

from chaos.scenario import DATABASE
from chaos.secrets_front import Reply

STEP_TIMEOUT_S = 30
KEEPER = Path(harness.__file__).with_name("keeper.py")


@dataclass
class Host:
    """The server's machine: its PostgreSQL can crash and be restarted. Only for one that this process started."""

    server: Server
    keeper: Optional[subprocess.Popen[bytes]] = None  # of the server as it was restarted last

    @property
    def is_ours(self) -> bool:
        return self.server.log_file is not None

    def crash(self) -> None:
        """Kill one of the server's processes, whereupon it ends all others and recovers; returns once it is at that."""
        with suppress(psycopg2.OperationalError), superuser_connection(self.server) as conn:
            ((pid,),) = rows(conn, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'")
            os.kill(pid, signal.SIGKILL)
            rows(conn, "SELECT pg_sleep(%s)", STEP_TIMEOUT_S)  # ends when we are thrown out

    def restart(self) -> None:
        """Stop the server as `pg_ctl restart -m fast` does, and start it; returns when it is starting."""
        assert self.server.log_file
        folder = self.server.log_file.parent
        pid_file, options = folder / "data" / "postmaster.pid", folder / "data" / "postmaster.opts"
        # One line: the program and its arguments, these in quotes.
        program, *arguments = options.read_text().rstrip("\n").split(' "')
        command = [program, *(argument.rstrip('"') for argument in arguments)]
        os.kill(int(pid_file.read_text().splitlines()[0]), signal.SIGINT)
        _until(lambda: not pid_file.exists(), "the server does not stop")
        if self.keeper:
            self.keeper.wait(STEP_TIMEOUT_S)
        owner = folder.stat()
        with self.server.log_file.open("ab") as log:
            self.keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", KEEPER, folder, str(owner.st_uid), str(owner.st_gid), *command],
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, "LC_ALL": "C"},
                start_new_session=True,
            )

    def close(self) -> None:
        """End the server if it was restarted; its first keeper has ended already."""
        if self.keeper and self.keeper.stdin:
            self.keeper.stdin.close()
            self.keeper.wait(STEP_TIMEOUT_S)

    def terminate(self, pid: Optional[int]) -> None:
        """End this backend, or every one in the scenario's database; returns when they are gone."""
        which = "datname = %s AND pid = coalesce(%s, pid) AND pid <> pg_backend_pid()"
        with superuser_connection(self.server) as conn:
            rows(conn, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {which}", DATABASE, pid)
            count = f"SELECT count(*) FROM pg_stat_activity WHERE {which}"
            _until(lambda: rows(conn, count, DATABASE, pid)[0][0] == 0, "a backend does not end")


def _until(condition: Callable[[], bool], complaint: str) -> None:
    end = time.monotonic() + STEP_TIMEOUT_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(complaint)
        time.sleep(0.01)


@dataclass
class Victim:
    """A run that is going on, and its surroundings. `troubles` are the harness's own."""

    host: Host
    proxy: Proxy
    started: threading.Event = field(default_factory=threading.Event)
    struck: threading.Event = field(default_factory=threading.Event)
    troubles: list[str] = field(default_factory=list)
    pid: int = 0

    def signal(self, signum: int) -> None:
        assert self.started.wait(STEP_TIMEOUT_S)
        os.kill(self.pid, signum)


Strike = Callable[[Victim, Optional[Link]], Optional[Reply]]


@dataclass(frozen=True)
class Action:
    """One kind of harm. With `lasting` each later call of Secrets Manager suffers it too."""

    name: str
    strike: Strike
    database: tuple[str, ...] = ()  # the phases of a message at which it can come
    secrets: tuple[str, ...] = ()  # the phases of a call
    lasting: bool = False
    ends_itself: bool = True  # the run does, with an error or without
    short: bool = False  # with little time, since all of it has to pass
    wakes_at_limit: bool = False  # it was stopped, and goes on when its time is over
    stays_stopped: bool = False  # while the next run works
    wakes_late: bool = False  # it goes on when the next run has ended
    only_by_name: bool = False
    needs_host: bool = False
    needs_backend: bool = False


def _kill(victim: Victim, link: Optional[Link]) -> None:
    victim.signal(signal.SIGKILL)


def _stop(victim: Victim, link: Optional[Link]) -> None:
    victim.signal(signal.SIGSTOP)


def _cut(victim: Victim, link: Optional[Link]) -> None:
    assert link
    link.cut()


def _silence(victim: Victim, link: Optional[Link]) -> None:
    assert link
    victim.proxy.silent = True
    victim.proxy.silence_links()


def _terminate(victim: Victim, link: Optional[Link]) -> None:
    victim.host.terminate(link.backend_pid if link else None)


def _crash(victim: Victim, link: Optional[Link]) -> None:
    victim.host.crash()


def _restart(victim: Victim, link: Optional[Link]) -> None:
    victim.host.restart()


def _replies(reply: Reply) -> Strike:
    return lambda victim, link: reply


ERROR = Reply(500, "InternalServiceError")
BOTH = (BEFORE, ANSWERED)

ACTIONS = {
    action.name: action
    for action in (
        Action("kill", _kill, (SENT, ANSWERED), BOTH, ends_itself=False),
        Action("stop", _stop, (ANSWERED,), BOTH, ends_itself=False, short=True, stays_stopped=True),
        Action("pause", _stop, (ANSWERED,), BOTH, ends_itself=False, short=True, wakes_at_limit=True),
        # What Lambda does not do: a process that goes on long after its deadline, at the same time as its successor.
        Action(
            "zombie",
            _stop,
            (ANSWERED,),
            BOTH,
            ends_itself=False,
            short=True,
            stays_stopped=True,
            wakes_late=True,
            only_by_name=True,
        ),
        Action("cut", _cut, (BEFORE, SENT, ANSWERED)),
        Action("silence", _silence, (BEFORE, ANSWERED), ends_itself=False, short=True),
        Action("terminate", _terminate, (BEFORE, SENT, ANSWERED), BOTH, needs_backend=True),
        Action("crash", _crash, (SENT, ANSWERED), BOTH, needs_host=True),
        Action("restart", _restart, (SENT, ANSWERED), BOTH, needs_host=True),
        Action("sm-500", _replies(ERROR), secrets=BOTH, lasting=True),
        Action("sm-500-once", _replies(ERROR), secrets=BOTH),
        Action("sm-throttled", _replies(Reply(400, "ThrottlingException")), secrets=(BEFORE,), lasting=True),
        Action("sm-silent", _replies(Reply(never=True)), secrets=BOTH, lasting=True, short=True),
        Action("sm-closed", _replies(Reply()), secrets=BOTH),
    )
}


def strikes_at(action: Action, target: Place, place: Place) -> bool:
    """Whether the action is due here."""
    if action.lasting and place.connection == target.connection:
        return place.phase == target.phase and place.message >= target.message
    return place == target
