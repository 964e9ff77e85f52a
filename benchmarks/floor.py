"""The floor: the least that a migration runner in Python can do. Nothing is checked, nothing is locked.

One connection; for each file that is not recorded one message, `BEGIN; file; INSERT; COMMIT`. With FLOOR_SECRET the
login is read from Secrets Manager before. Configured like ours, by variables.
"""

import json
import os
import sys

import psycopg2


def login() -> dict:
    """From the secret, or from FLOOR_LOGIN."""
    if "FLOOR_SECRET" not in os.environ:
        return json.loads(os.environ["FLOOR_LOGIN"])
    import boto3  # noqa: PLC0415

    client = boto3.client("secretsmanager")
    return json.loads(client.get_secret_value(SecretId=os.environ["FLOOR_SECRET"])["SecretString"])


def main() -> None:
    folder, to = sys.argv[1], login()
    conn = psycopg2.connect(
        host=to["host"], port=to["port"], dbname=to["dbname"], user=to["username"], password=to["password"]
    )
    conn.autocommit = True
    cur = conn.cursor()
    cur.execute("CREATE TABLE IF NOT EXISTS floor (name text PRIMARY KEY); SELECT name FROM floor")
    applied = {name for (name,) in cur.fetchall()}
    for name in sorted(os.listdir(folder)):
        if name not in applied:
            with open(os.path.join(folder, name)) as file:
                cur.execute(f"BEGIN; {file.read()}; INSERT INTO floor VALUES ('{name}'); COMMIT")
    conn.close()


main()
