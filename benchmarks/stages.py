"""The stages of a cold start, one after the other, each with its seconds on the clock and of CPU, as JSON.

Run by cold_start.py in a process of its own, with a function's folder and Lambda's packages on the path.
"""

import gc
import json
import sys
import time
from contextlib import contextmanager

found = []


@contextmanager
def stage(name):
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    found.append((name, time.perf_counter() - wall, time.process_time() - cpu))


@contextmanager
def collected(name, owner, method):
    """What all calls of a method take together, while the block lasts."""
    original, total = getattr(owner, method), [0.0, 0.0]

    def timed(*args, **kwargs):
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            return original(*args, **kwargs)
        finally:
            total[0] += time.perf_counter() - wall
            total[1] += time.process_time() - cpu

    setattr(owner, method, timed)
    yield
    setattr(owner, method, original)
    found.append((f"… {name}", *total))


collecting = [0.0, 0.0]


def collection(phase, info):
    """Adds up what the garbage collector takes: it strikes in whatever stage has made the one object too many."""
    sign = -1 if phase == "start" else 1
    collecting[0] += sign * time.perf_counter()
    collecting[1] += sign * time.process_time()


gc.callbacks.append(collection)
found.append(("Python itself", time.process_time(), time.process_time()))
with stage("import awslambdaric"):
    import awslambdaric.bootstrap  # noqa: F401
with stage("import boto3"):
    import boto3  # noqa: F401
with stage("import psycopg2"):
    import psycopg2
    import psycopg2.extensions
    import psycopg2.sql  # noqa: F401
with stage("import of the standard library's rest (concurrent.futures, unicodedata …)"):
    import concurrent.futures.thread  # noqa: F401
    import mmap  # noqa: F401
    import random  # noqa: F401
    import secrets  # noqa: F401
    import unicodedata  # noqa: F401
for module in (
    "sql_scanner",
    "database",
    "watcher",
    "session",
    "limited_users",
    "script_runner",
    "migration_files",
    "tracking",
    "initializer",
):
    with stage(f"import {module}"):
        __import__(module)

import os  # noqa: E402
import ssl  # noqa: E402

import botocore.loaders  # noqa: E402
import database  # noqa: E402
import initializer  # noqa: E402
import migration_files  # noqa: E402
import planning  # noqa: E402
import secret_store  # noqa: E402
import tracking  # noqa: E402
from common import Deadline  # noqa: E402
from config import Config, Setup, kept_credentials  # noqa: E402
from report import Report  # noqa: E402
from session import Session  # noqa: E402

Loader = botocore.loaders.Loader
original = Loader.load_data_with_path


def endpoints_or_other(self, name):
    return (endpoints if name == "endpoints" else other)(self, name)


def endpoints(self, name):
    return original(self, name)


def other(self, name):
    return original(self, name)


class Split:
    """Tells the loading of endpoints.json from that of the service's own model."""

    endpoints, other = staticmethod(endpoints), staticmethod(other)


Loader.load_data_with_path = lambda self, name: (Split.endpoints if name == "endpoints" else Split.other)(self, name)
deadline = Deadline()
with (
    collected("endpoints.json", Split, "endpoints"),
    collected("the service's model, rules, retries", Split, "other"),
    collected("list of 430 services", Loader, "list_available_services"),
    stage("Secrets Manager's client"),
):
    client = secret_store.secrets_client(deadline)
config = Config.from_env(os.environ, [])
with collected("140 certificates", ssl.SSLContext, "load_verify_locations"), stage("first secret (TLS, signature)"):
    admin = secret_store.read_secret(client, config.admin_secret)
with stage("second and third secret"):
    targets = {kind: secret_store.read_secret(client, name) for kind, name in config.user_secret_names.items()}
with stage("list of files"):
    files = migration_files.load_migrations(initializer.MIGRATIONS_DIR, [], [])
login = config.login(admin.value, [])
session = Session(login, deadline, config.lock_timeout_ms)
with stage("connecting (TCP, TLS, SCRAM)"):
    database.connect(login, deadline).close()
with stage("connecting again, and the session set up"):
    (tables,) = session.open(tracking.our_tables_question(config))
with stage("tracking table"):
    state = tracking.read_state(session, config, tables)
with stage("plan (100 files read and hashed)"):
    plan = planning.make_plan(files, state.rows)
setup = Setup(config, login, targets, files, client)
with stage("users (3 queries, 2 logins)"):
    users = initializer.Run(setup, session, Report("")).users.working_logins(kept_credentials(setup))
assert plan.pending == ()
assert users is not None
session.close()
found.append(("of all this: garbage collection", *collecting))
os.environ["PGSSLMODE"] = "disable"
with stage("for comparison: connecting without TLS"):
    database.connect(login, deadline).close()
import hashlib  # noqa: E402

with stage("for comparison: PBKDF2, 4,096 rounds"):
    hashlib.pbkdf2_hmac("sha256", b"bench", b"salt" * 4, 4096)
json.dump(found, sys.stdout)
