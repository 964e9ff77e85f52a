"""The schema of a database as one file of SQL, to be read in a pull request and kept in git.

    schema_sql(setup, status)   the schema, the same text whichever pg_dump and machine wrote it
    first_line(checksums)       the file's first line, which says of which migrations it is
    stale(home, checksums)      the dumps in a folder that are of other migrations
    write(path, text)           whole or not at all

Without owners and rights, which db_setup makes, and without db_setup's own tables. Nor is there
what can hold a password: user mappings and subscriptions.

Only the terminal needs this.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import database
import file_names
import migration_files
import sql_scanner
from common import ConfigError, InitializerError, log, shortened
from config import Setup
from psycopg2.extensions import make_dsn

OPTIONS = (
    *("--schema-only", "--no-owner", "--no-privileges", "--no-tablespaces", "--no-subscriptions"),
    *("--encoding=UTF8", "--no-password"),
)
# Of the settings that pg_dump writes, those that decide how the rest is read. The others differ
# from version to version, or are PostgreSQL's defaults.
SETTINGS = ("client_encoding", "standard_conforming_strings", "check_function_bodies", "xmloption")
# A mapping holds a password; the comment on an extension is the extension's own.
LEFT_OUT = (("CREATE", "USER", "MAPPING"), ("COMMENT", "ON", "EXTENSION"))


def first_line(checksums: Iterable[str]) -> str:
    """Of the migrations in the order in which they run. Their names and comments do not count."""
    digest = hashlib.sha256("\n".join(checksums).encode()).hexdigest()
    return f"{migration_files.DUMP}{digest}"


def stale(home: Path, checksums: Iterable[str]) -> Iterator[str]:
    """The names of the dumps in this folder that are of other migrations than these."""
    dumps = [path for path in sorted(home.glob("*.sql")) if migration_files.is_dump(path)]
    expected = first_line(checksums) if dumps else ""
    for path in dumps:
        with path.open(encoding="utf-8", errors="replace") as file:
            if file.readline().rstrip() != expected:
                yield path.name


def refuse_to_replace(path: Path, folder: Path) -> None:
    """Only a dump is overwritten; and nothing is written to `folder`, whose files are run."""
    if folder.resolve() in path.resolve().parents:
        raise ConfigError(f"{path} is in migrations/, where files are run: write it elsewhere")
    if path.exists() and not (path.is_file() and migration_files.is_dump(path)):
        raise ConfigError(f"{path} exists, and is not a dump of db_setup: move it away")


def write(path: Path, text: str) -> None:
    path = path.resolve()  # a link stays one
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(text.encode(errors="surrogateescape"))
        part.replace(path)
    except OSError as exc:
        part.unlink(missing_ok=True)
        raise InitializerError(f"{path}: {exc.strerror}") from exc


def schema_sql(setup: Setup, status: Mapping[str, Any]) -> str:
    """The file's text. `status` is the report on the same database.

    Raises InitializerError where the database has not what the folder has.
    """
    # What a repeatable file made is dropped when the file is.
    missing = [name for name in status["missing"] if not file_names.is_repeatable(name)]
    found = {"pending": status["pending"], "edited": status["edited"], "missing": missing}
    differences = [f"{what}: {shortened(names)}" for what, names in found.items() if names]
    if differences:
        raise InitializerError(
            f"this database does not have what the folder has ({'; '.join(differences)})",
            "Migrate a new, empty database and dump that one",
        )
    checksums = map(migration_files.tokens_checksum, setup.files)
    about = "-- Written by python3 db_setup dump. It is not run by a deployment: do not edit it."
    statements = normalised(pg_dump(setup, status["server_version"]))
    return "\n".join([first_line(checksums), about, "", *statements])


def normalised(text: str) -> Iterator[str]:
    """The statements, each as it is and with a blank line after it, without what is noise."""
    method = "heap"  # of tables: PostgreSQL's own, until a setting says otherwise
    for statement in sql_scanner.scan(text):
        name, value = statement.setting or ("", "")
        is_noise = name not in ("", *SETTINGS)
        if name == "default_table_access_method":
            is_noise, method = value == method, value
        if statement.is_meta_command or statement.is_column_stamp or is_noise:
            continue  # \restrict has a random word
        if statement.words[:3] in LEFT_OUT:
            continue
        sql = text[statement.start : statement.end]
        if sql_scanner.COLUMN_STAMP in statement.tokens:  # among other options
            sql = re.sub(r"pg_attver=\d+, |, pg_attver=\d+", "", sql)
        yield f"{sql};\n"


def pg_dump(setup: Setup, server_version: str) -> str:
    """What pg_dump writes of the same database. The password is not in its arguments, which others
    can see.
    """
    program = shutil.which("pg_dump")
    major = re.sub(r"\D.*", "", server_version)
    remedy = (
        f"Install the client of PostgreSQL {major} (postgresql-client-{major} of Debian or "
        f"apt.postgresql.org, or the image postgres:{major}), and put its folder first into PATH"
    )
    if program is None:
        raise ConfigError("pg_dump, which reads the schema, is not in PATH", remedy)
    connect = database.options(setup.login, database.CONNECT_TIMEOUT_S)
    # Its words are English, and points in time are shown in one zone, not in the database's.
    environ = {**os.environ, "LC_ALL": "C", "PGTZ": "UTC"}
    for name in ("password", "require_auth"):  # an older libpq knows the second as a variable only
        if value := connect.pop(name, ""):
            environ[f"PG{name}".upper().replace("_", "")] = value
    config = setup.config
    ours = [name for table in config.tables for name in (table, f"{table}_id_seq")]
    command = [program, *OPTIONS, f"--lock-wait-timeout={config.lock_timeout_ms}"]
    command += [f"--exclude-table={config.schema}.{name}" for name in ours]
    if config.schema != "public":
        command += [f"--schema={config.schema}", "--extension=*"]
    command.append(f"--dbname={make_dsn(**connect)}")
    done = subprocess.run(command, env=environ, capture_output=True, check=False)  # noqa: S603 - no shell
    said = " ".join(done.stderr.decode(errors="replace").split())[:1000]
    if "server version mismatch" in said:
        raise InitializerError(f"pg_dump is older than the server: {said}", remedy)
    if done.returncode:
        raise InitializerError(
            f"pg_dump failed with exit code {done.returncode}: {said or 'it said nothing'}"
        )
    if said:
        log("pg_dump says", logging.WARNING, text=said)
    return done.stdout.decode(errors="surrogateescape")
