"""The kill matrix: whatever happens to a run, at whatever step, the next one puts everything right. `make chaos`.

A run of the handler is observed once: each message to PostgreSQL and each call to Secrets Manager is a step, each step
has places around it (harness/proxy.py). A case is an action (chaos/actions.py) at a place. It starts on an empty
database, lets the action strike, runs the handler once more, undisturbed, and compares database and secrets with
what an undisturbed run brings about.

    CHAOS_SECONDS   begin no further case after so many seconds: a sample, drawn evenly from all actions (default: all)
    CHAOS_SEED      draws the same sample again; printed in any case
    CHAOS_SHARD     "1/2" takes one half of the cases and "2/2" the other, for two processes side by side
    TEST_POSTGRES…  which PostgreSQL, as for the tests

Arguments are cases by name (kill@1.17.sent), which are run alone, or names of actions; `list` shows the places.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from pathlib import Path
from typing import Optional
from zlib import crc32

HERE = Path(__file__).resolve()
if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parents[2] / "db_setup"), str(HERE.parents[1])]

from harness.process import secrets_manager  # noqa: E402
from harness.proxy import Link, Place, Proxy, proxy_to  # noqa: E402
from harness.server import running_server  # noqa: E402
from harness.world import ADMIN_PASSWORD, AWS_ENVIRONMENT  # noqa: E402

from chaos.actions import ACTIONS, Action, Host, Victim, strikes_at  # noqa: E402
from chaos.forked import Ending, Forked, forked_runs  # noqa: E402
from chaos.scenario import Scenario, Snapshot  # noqa: E402
from chaos.secrets_front import SECRETS, Reply, SecretsFront, secrets_front  # noqa: E402

LIMIT_S = 90.0  # the function's timeout; with more than 60 s Secrets Manager is asked three times
SHORT_FACTOR = 8  # where all of it has to pass: so many times what an undisturbed run takes
SHORTEST_S = 3.0  # a call of Secrets Manager is given a second at least, and two of them have to end
SECOND_RUN_S = 30  # promised: the next run has ended after that
KILLED_S = 60  # after kill -9 it is a matter of milliseconds
LINE = 500  # characters of the handler's log that a failure shows
LAST_WORDS_S = 3  # Lambda ends a process at its limit; one that was frozen gets this to do harm


@dataclass(frozen=True)
class Case:
    """An action at a place, and what is being said there."""

    action: Action
    place: Place
    words: str = field(compare=False)

    def __str__(self) -> str:
        return f"{self.action.name}@{self.place}"


@dataclass(frozen=True)
class Result:
    """What came of a case: complaints, none if all is well."""

    case: Case
    complaints: Sequence[str]
    second_s: float
    first: Optional[Ending]
    second: Optional[Ending]


@dataclass(frozen=True)
class Observed:
    """An undisturbed run: its places, what it brought about, how long it took."""

    places: dict[Place, str]
    authenticated: frozenset[Place]
    snapshot: Snapshot
    seconds: float


@dataclass
class Laboratory:
    """Everything that stays from case to case."""

    scenario: Scenario
    host: Host
    proxy: Proxy
    front: SecretsFront
    first: Forked
    second: Forked

    def observe(self) -> Observed:
        """One undisturbed run; raises RuntimeError where it fails."""
        places: dict[Place, str] = {}
        authenticated = set()

        def note(place: Place, link: Link) -> None:
            places[place] = link.said
            if link.backend_pid:
                authenticated.add(place)

        def note_call(place: Place, what: str) -> None:
            places[place] = what

        self.scenario.reset()
        self.proxy.watch(note)
        self.front.watch(note_call)
        started = time.monotonic()
        self.start(self.first, LIMIT_S)
        ending = self.first.wait(LIMIT_S)
        seconds = time.monotonic() - started
        if ending is None or not ending.report:
            raise RuntimeError(f"an undisturbed run fails: {ending}")
        self.proxy.drain()
        return Observed(places, frozenset(authenticated), self.scenario.snapshot(), seconds)

    def start(self, runs: Forked, limit_s: float) -> int:
        return runs.start(self.scenario.environ(self.front.url), self.scenario.folder, limit_s)

    def strike(self, case: Case, limit_s: float) -> tuple[Victim, Optional[Ending]]:
        """The first run, which the action strikes; returns when it has ended, or when its time is over."""
        victim = Victim(self.host, self.proxy)

        def hook(place: Place, link: Optional[Link]) -> Optional[Reply]:
            if not strikes_at(case.action, case.place, place):
                return None
            victim.struck.set()
            try:
                return case.action.strike(victim, link)
            except Exception as exc:  # on a thread that carries bytes: told where all is told
                victim.troubles.append(f"the action itself failed: {exc!r}")
                return None

        def database(place: Place, link: Link) -> None:
            hook(place, link)

        def secrets(place: Place, what: str) -> Optional[Reply]:
            return hook(place, None)

        self.proxy.watch(database)
        self.front.watch(secrets)
        end = time.monotonic() + limit_s
        victim.pid = self.start(self.first, limit_s)
        victim.started.set()
        ending = self.first.wait(end - time.monotonic())
        if ending is None and case.action.wakes_at_limit:
            victim.signal(signal.SIGCONT)
            ending = self.first.wait(LAST_WORDS_S)
        if ending:
            self.proxy.drain()  # its last message may still be on its way to the hook
        return victim, ending

    def run(self, case: Case, expected: Observed) -> Result:
        """One case from the empty database to the comparison."""
        self.scenario.reset()
        limit_s = max(SHORTEST_S, SHORT_FACTOR * expected.seconds) if case.action.short else LIMIT_S
        victim, ending = self.strike(case, limit_s)
        if not case.action.stays_stopped:
            _end(victim.pid)
        self.proxy.watch(None)
        self.front.watch(None)
        started = time.monotonic()
        second_pid = self.start(self.second, LIMIT_S)
        second = self.second.wait(LIMIT_S)
        second_s = time.monotonic() - started
        if case.action.wakes_late:
            victim.signal(signal.SIGCONT)
            ending = self.first.wait(LAST_WORDS_S)
        _end(victim.pid)
        first = ending or self.first.wait(KILLED_S)
        if second is None:
            _end(second_pid)
            second = self.second.wait(KILLED_S)
        self.proxy.close_links()
        self.scenario.wait_until_ready()
        complaints = [
            *([] if victim.struck.is_set() else ["the place was not reached: the case says nothing"]),
            *victim.troubles,
            *_complaints_of_first(case, ending),
            *_complaints_of_second(second, second_s),
            *_leaks([ADMIN_PASSWORD, *self.scenario.passwords()], first, second),
        ]
        if second and second.report:  # else all the rest follows from that
            complaints += expected.snapshot.differences(self.scenario.snapshot())
            complaints += self.scenario.complaints_of_logins()
        return Result(case, complaints, second_s, first, second)


def _end(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _complaints_of_first(case: Case, ending: Optional[Ending]) -> Iterator[str]:
    if ending is None:
        if case.action.ends_itself:
            yield "the first run did not end by itself"
    elif ending.error and not ending.is_ours:
        yield f"the first run ended in an error that is not one of ours: {ending.error}"


def _complaints_of_second(second: Optional[Ending], seconds: float) -> Iterator[str]:
    if second is None or not second.report:
        yield f"the second run failed after {seconds:.1f} s"
    if seconds > SECOND_RUN_S:
        yield f"the second run took {seconds:.0f} s"


def _leaks(passwords: Sequence[str], *endings: Optional[Ending]) -> Iterator[str]:
    said = "".join(f"{ending.log}{ending.error}{ending.report}" for ending in endings if ending)
    if any(password in said for password in passwords):
        yield "a password is in the log or in the error"


# --- Which cases ----------------------------------------------------------------------------------------------------


def all_cases(observed: Observed, can_restart: bool) -> list[Case]:
    """Each action at each place where it can come."""
    return [
        Case(action, place, words)
        for action in ACTIONS.values()
        for place, words in sorted(observed.places.items())
        if place.phase in (action.secrets if place.connection == SECRETS else action.database)
        and (can_restart or not action.needs_host)
        and (place.connection == SECRETS or not action.needs_backend or place in observed.authenticated)
    ]


def drawn(cases: Sequence[Case], rng: random.Random) -> list[Case]:
    """All of them, so that each beginning is a fair sample: the actions take turns, their places come at random."""
    by_action: dict[str, list[Case]] = {}
    for case in cases:
        by_action.setdefault(case.action.name, []).append(case)
    for some in by_action.values():
        rng.shuffle(some)
    return [case for case in chain.from_iterable(zip_longest(*by_action.values())) if case]


def chosen(cases: Sequence[Case], names: Sequence[str]) -> list[Case]:
    """The cases that are named, by themselves or by their action; all where no names are given."""
    found = [
        case
        for case in cases
        if str(case) in names or case.action.name in names or not (names or case.action.only_by_name)
    ]
    missing = [name for name in names if not any(name in (str(case), case.action.name) for case in cases)]
    if missing:
        sys.exit(f"no such case: {', '.join(missing)}")
    return found


# --- The program ----------------------------------------------------------------------------------------------------


@contextmanager
def laboratory() -> Iterator[Laboratory]:
    """Servers, proxies and processes, all of them gone afterwards."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # moto's server tells of each call
    with ExitStack() as stack:
        server = stack.enter_context(running_server())
        print(f"PostgreSQL: {server.how}")
        host = Host(server)
        stack.callback(host.close)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        moto = stack.enter_context(secrets_manager())
        front = stack.enter_context(secrets_front(moto))
        proxy = stack.enter_context(proxy_to(server.host, server.port))
        runs = [stack.enter_context(forked_runs(folder / name, AWS_ENVIRONMENT)) for name in ("first", "second")]
        scenario = Scenario(server, proxy.port, moto, folder / "migrations")
        if not host.is_ours:
            stack.callback(scenario.remove)
        yield Laboratory(scenario, host, proxy, front, *runs)


def run_cases(lab: Laboratory, cases: Iterable[Case], expected: Observed, end: Optional[float]) -> Iterator[Result]:
    """One after the other, until the time is over; each failure is reported immediately."""
    for case in cases:
        if end is not None and time.monotonic() > end:
            return
        result = lab.run(case, expected)
        if result.complaints:
            tell(result)
        yield result


def tell(result: Result) -> None:
    """A failure, and how to see it again."""
    print(f"\nFAILED {result.case}  ({result.case.words[:160]!r})")
    for complaint in result.complaints:
        print(f"  {complaint}".replace("\n", "\n    "))
    for name, ending in (("first", result.first), ("second", result.second)):
        print(f"  {name} run:")
        for line in ending.log.splitlines() if ending else ():
            print(f"    {line[:LINE]}")


def table(results: Sequence[Result], seconds: float) -> str:
    """Cases, failures and the longest second run of each action."""
    lines = [f"{'action':14} {'cases':>6} {'failed':>7} {'second run at most':>19}"]
    for name in [*ACTIONS, "all"]:
        some = [result for result in results if name in (result.case.action.name, "all")]
        failed = sum(bool(result.complaints) for result in some)
        if some:
            longest = max(result.second_s for result in some)
            lines.append(f"{name:14} {len(some):6} {failed:7} {longest:17.1f} s")
    return "\n".join([*lines, f"{seconds:.0f} s"])


def survey(lab: Laboratory) -> tuple[Observed, list[Case]]:
    """What an undisturbed run does, and all that can befall it; exits where two such runs do not agree."""
    observed, again = lab.observe(), lab.observe()
    differences = [
        *(f"place {place} is not always there" for place in sorted(observed.places.keys() ^ again.places.keys())),
        *observed.snapshot.differences(again.snapshot),
        *lab.scenario.complaints_of_logins(),
    ]
    if differences:
        sys.exit("\n".join(["the handler fails or is not the same twice, undisturbed:", *differences]))
    cases = all_cases(observed, lab.host.is_ours)
    steps = len({(place.connection, place.message) for place in observed.places})
    whole = len(chosen(cases, []))
    print(f"{steps} steps, {len(observed.places)} places, {whole} cases; a run takes {observed.seconds:.1f} s")
    if not lab.host.is_ours:
        print("left out, as this server was not started here: crash, restart")
    return observed, cases


def main() -> int:
    """Run what the variables and arguments ask for; 1 if a case failed or none was run."""
    seconds, seed = os.environ.get("CHAOS_SECONDS"), os.environ.get("CHAOS_SEED") or str(random.randrange(10**6))
    part, of = map(int, os.environ.get("CHAOS_SHARD", "1/1").split("/"))
    print(f"CHAOS_SEED={seed}")
    started = time.monotonic()
    end = started + float(seconds) if seconds else None
    results: list[Result] = []
    with laboratory() as lab:
        observed, cases = survey(lab)
        if sys.argv[1:] == ["list"]:
            for place, words in sorted(observed.places.items()):
                print(f"{place!s:18} {words[:100]!r}")
            return 0
        # By name, so that two processes agree, though the one may see a message more than the other.
        mine = [case for case in chosen(cases, sys.argv[1:]) if crc32(str(case).encode()) % of == part - 1]
        wanted = drawn(mine, random.Random(seed))
        try:
            for result in run_cases(lab, wanted, observed, end):
                results.append(result)  # each one immediately: an interruption loses none
                if len(results) % 100 == 0:
                    print(f"{len(results)} of {len(wanted)} cases, {time.monotonic() - started:.0f} s")
        except KeyboardInterrupt:
            print("interrupted")
        finally:
            print("\n" + table(results, time.monotonic() - started))
    failed = [str(result.case) for result in results if result.complaints]
    if failed:
        print(f"\n{len(failed)} cases failed. Again: python {HERE.relative_to(HERE.parents[2])} {' '.join(failed)}")
    return 1 if failed or not results else 0


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # what is found is told while it runs
    sys.exit(main())
