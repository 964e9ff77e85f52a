"""CloudFormation gets an answer to every request that it sends itself, and nobody else gets it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import botocore.loaders
import custom_resource
import pytest
from harness.cloudformation import SIGNATURE, Bucket, waiting
from harness.database import SCHEMA
from harness.world import Context, World
from initializer import ConfigError, ConnectError, MigrationError

ITEMS = "CREATE TABLE items (id int);"


@pytest.fixture
def bucket(world: World, tmp_path: Path) -> Iterator[Bucket]:
    """Where CloudFormation waits for the answer."""
    with waiting(tmp_path) as bucket:
        yield bucket


# --- Answers --------------------------------------------------------------------------------------------------------


def test_custom_resource_create_migrates_and_is_answered(world: World, bucket: Bucket) -> None:
    """The answer has what CloudFormation asks for: its own ids, word for word, and no Reason, which may not be null."""
    world.write("001_items.sql", ITEMS)

    report = world.deploy(bucket.request("Create"))

    assert world.applied() == ["001_items"] == [entry["name"] for entry in report["applied"]]
    request = bucket.request("Create")
    assert bucket.answers == [
        {
            "Status": "SUCCESS",
            "PhysicalResourceId": "db_setup-Migrations",
            **{key: request[key] for key in ("StackId", "RequestId", "LogicalResourceId")},
        }
    ]


def test_custom_resource_answer_fits_the_signature_of_its_address(world: World, bucket: Bucket) -> None:
    """CloudFormation signs an empty Content-Type: S3 refuses what has another."""
    world.deploy(bucket.request("Delete"))

    [(path, headers, _)] = bucket.puts
    assert (path, headers["Content-Type"]) == (f"/answer?{SIGNATURE}", "")


def test_custom_resource_keeps_its_id_from_create_to_delete(world: World, bucket: Bucket) -> None:
    """With another id CloudFormation would take an update for a replacement."""
    world.deploy(bucket.request("Create"))
    own = bucket.answers[0]["PhysicalResourceId"]

    world.deploy(bucket.request("Update", PhysicalResourceId=own))
    world.deploy(bucket.request("Delete", PhysicalResourceId=own))

    assert [answer["PhysicalResourceId"] for answer in bucket.answers] == [own] * 3


def test_custom_resource_of_another_provider_keeps_the_id_that_it_got_there(world: World, bucket: Bucket) -> None:
    """A stack that had another function before does not see a replacement."""
    world.deploy(bucket.request("Update", PhysicalResourceId="from-before"))

    assert bucket.answers[0]["PhysicalResourceId"] == "from-before"


def test_custom_resource_update_applies_what_is_new(world: World, bucket: Bucket) -> None:
    """A folder that changed changes a property, and CloudFormation sends Update."""
    world.write("001_items.sql", ITEMS)
    world.deploy(bucket.request("Create"))
    world.write("002_orders.sql", "CREATE TABLE orders (id int);")

    world.deploy(bucket.request("Update"))

    assert world.applied() == ["001_items", "002_orders"]
    assert [answer["Status"] for answer in bucket.answers] == ["SUCCESS", "SUCCESS"]


def test_custom_resource_request_that_comes_twice_is_applied_once(world: World, bucket: Bucket) -> None:
    """Asynchronous invocations may be delivered more than once."""
    world.write("001_items.sql", ITEMS)

    for _ in range(2):
        world.deploy(bucket.request("Create"))

    assert world.applied() == ["001_items"]
    assert bucket.answers[0] == bucket.answers[1]


def test_custom_resource_delete_does_nothing_and_succeeds(world: World, bucket: Bucket) -> None:
    """A stack can be deleted even where nothing is right any more: no variable is read, no database asked."""
    world.write("001_items.sql", ITEMS)

    report = world.deploy(bucket.request("Delete"), DB_SECRET_NAME=None, DB_PORT="wrong")

    assert report == {"status": "ok", "action": "none"}
    assert [answer["Status"] for answer in bucket.answers] == ["SUCCESS"]
    assert world.sql(f"SELECT count(*) FROM pg_tables WHERE schemaname = '{SCHEMA}'") == [(0,)]


# --- Failures -------------------------------------------------------------------------------------------------------


def test_custom_resource_failed_migration_is_answered_and_raised(world: World, bucket: Bucket) -> None:
    """The stack fails with the place in the file, and the invocation counts as failed, too."""
    world.write("001_items.sql", ITEMS)
    world.write("002_wrong.sql", "SELECT 1;\nSELECT wrong;")

    with pytest.raises(MigrationError):
        world.deploy(bucket.request("Create"))

    [answer] = bucket.answers
    assert answer["Status"] == "FAILED"
    assert answer["Reason"].startswith('MigrationError: 002_wrong.sql:2:8: column "wrong" does not exist (42703).')
    assert answer["PhysicalResourceId"] == "db_setup-Migrations"


def test_custom_resource_wrong_configuration_is_answered(world: World, bucket: Bucket) -> None:
    """What is found before anything is touched must not leave the stack waiting either."""
    with pytest.raises(ConfigError):
        world.deploy(bucket.request("Create"), DB_SECRET_NAME=None, DB_PORT="wrong")

    [answer] = bucket.answers
    assert answer["Status"] == "FAILED"
    assert "DB_PORT is 'wrong'" in answer["Reason"]
    assert "DB_SECRET_NAME is missing" in answer["Reason"]


@pytest.mark.slow
def test_custom_resource_run_out_of_time_is_answered_in_time(world: World, bucket: Bucket) -> None:
    """A run stops itself before Lambda's limit, and the answer goes out in what is left."""
    world.write("001_slow.sql", "CREATE TABLE items (id int);\nSELECT pg_sleep(60);")
    started = time.monotonic()

    with pytest.raises(MigrationError):
        world.deploy(bucket.request("Create"), Context(6))

    assert time.monotonic() - started < 6
    [answer] = bucket.answers
    assert answer["Status"] == "FAILED"
    assert "out of time" in answer["Reason"]
    assert world.tables() == []


def test_custom_resource_unknown_request_is_refused_by_an_answer(world: World, bucket: Bucket) -> None:
    """What it does not understand it refuses, and says so to whom waits."""
    world.write("001_items.sql", ITEMS)

    with pytest.raises(ConfigError):
        world.deploy(bucket.request("Replace"))

    [answer] = bucket.answers
    assert answer["Status"] == "FAILED"
    assert "action 'Replace' is not for db_setup" in answer["Reason"]
    assert world.tables() == []


@pytest.mark.parametrize("message", ["x" * 100_000, "„ü“ " * 5_000, '"\\\n' * 5_000])
def test_custom_resource_answer_is_never_too_long_for_cloudformation(bucket: Bucket, message: str) -> None:
    """Above 4,096 bytes CloudFormation refuses the answer, and the stack fails without a reason."""

    def fail(event: object, context: object) -> dict[str, Any]:
        raise RuntimeError(message)

    with pytest.raises(RuntimeError):
        custom_resource.answer(bucket.request("Update", PhysicalResourceId="p" * 1024), None, fail)

    [(_, _, data)] = bucket.puts
    assert 3_900 < len(data) <= 4_000
    assert bucket.answers[0]["Reason"].startswith(f"RuntimeError: {message[:3]}")


def test_custom_resource_answer_can_hold_the_name_of_any_file() -> None:
    """A name that is not UTF-8 comes as lone surrogates, which no JSON can hold."""
    data = custom_resource.body(Bucket().request("Create"), {"Status": "FAILED"}, "ConfigError: \udcff.sql " * 900)

    assert 3_900 < len(data) <= 4_000
    assert json.loads(data)["Reason"].startswith("ConfigError: ?.sql ")


# --- Where the answer goes ------------------------------------------------------------------------------------------


def test_custom_resource_addresses_of_all_partitions_are_amazons() -> None:
    """Every region that botocore knows, in both forms that S3 has for it."""
    partitions = botocore.loaders.create_loader().load_data("partitions")["partitions"]
    regions = [
        (region, partition["outputs"]["dnsSuffix"])
        for partition in partitions
        for region in partition["regions"]
        if not region.endswith("-global")
    ]
    hosts = ["https://cloudformation-custom-resource-response-useast1.s3.amazonaws.com"]
    for region, suffix in regions:
        name = f"cloudformation-custom-resource-response-{region.replace('-', '')}"
        hosts += [f"https://{name}.s3.{region}.{suffix}", f"https://{name}.s3-{region}.{suffix}"]
        hosts.append(f"https://s3.{region}.{suffix}/{name}")

    assert len(regions) > 40
    path = f"/arn%3Aaws%3Acloudformation%3Aus-east-1%3A1%3Astack/shop/5b%7CMigrations?{SIGNATURE}"
    assert [host for host in hosts if not custom_resource.S3.fullmatch(host + path)] == []


STRANGERS = (
    "http://bucket.s3.amazonaws.com/answer",
    "https://example.com/answer",
    "https://bucket.s3.amazonaws.com.example.com/answer",
    "https://bucket.s3.amazonaws.com@example.com/answer",
    "https://example.com\\@bucket.s3.amazonaws.com/answer",
    "https://example.com#@bucket.s3.amazonaws.com/answer",
    "https://example.com?bucket.s3.amazonaws.com/answer",
    "https://bucket.s3.amazonaws.com:8443/answer",
    "https://bucket.s3.amazonaws.com/answer\r\nX-More: 1",
    "https://bucket.s3.amazonaws.org/answer",
    "https://bucket.s3-amazonaws.com/answer",
    "https://abc.execute-api.eu-central-1.amazonaws.com/answer",
    "https://s3-mine.eu-central-1.elb.amazonaws.com/answer",
    "https://169.254.169.254/latest",
    "file:///etc/passwd",
    "...",
    "",
    None,
    7,
)


@pytest.mark.parametrize("url", STRANGERS)
def test_custom_resource_answer_goes_to_nobody_but_amazon_s3(world: World, url: object) -> None:
    """An event cannot make the function send data to another address: it is refused before anything is done."""
    world.write("001_items.sql", ITEMS)
    send = mock.patch.object(custom_resource, "send", side_effect=AssertionError("it sends"))
    with send, pytest.raises(ConfigError) as caught:
        world.deploy({**Bucket().request("Create"), "ResponseURL": url})

    assert str(caught.value) == (
        "'Create' request: its ResponseURL is not an https address of Amazon S3, so nothing is sent there. "
        "Nothing has been touched."
    )
    assert world.tables() == []


def test_custom_resource_answer_is_not_sent_to_a_server_that_nobody_vouches_for(world: World, tmp_path: Path) -> None:
    """The name is Amazon's only where a certificate proves it."""
    with waiting(tmp_path, trusted=False) as bucket, pytest.raises(ConnectError) as caught:
        world.deploy(bucket.request("Delete"))

    assert bucket.puts == []
    assert "certificate verify failed" in str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_custom_resource_answer_follows_nobody_elsewhere(world: World, bucket: Bucket, status: int) -> None:
    """An answer that is sent on could end anywhere."""
    bucket.statuses = [status] * custom_resource.ATTEMPTS

    with pytest.raises(ConnectError):
        world.deploy(bucket.request("Delete"))

    assert {path for path, _, _ in bucket.puts} == {f"/answer?{SIGNATURE}"}


# --- When S3 does not take it ---------------------------------------------------------------------------------------


def test_custom_resource_answer_is_repeated_when_s3_is_busy(world: World, bucket: Bucket) -> None:
    """An answer that is lost leaves the stack waiting."""
    bucket.statuses = [503, 500]
    world.write("001_items.sql", ITEMS)

    world.deploy(bucket.request("Create"))

    assert [answer["Status"] for answer in bucket.answers] == ["SUCCESS"] * 3
    assert world.applied() == ["001_items"]


def test_custom_resource_answer_that_cannot_be_given_fails_with_what_to_do(
    world: World, bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says why the stack waits. The address is a credential, and no message has it."""
    bucket.statuses = [403] * 3

    with pytest.raises(ConnectError) as caught:
        world.deploy(bucket.request("Delete"))

    assert str(caught.value) == (
        f"CloudFormation was not answered (Status SUCCESS) and waits until its timeout: localhost:{bucket.port} cannot "
        "be reached or refuses the answer (HTTP Error 403: Forbidden). Give the function a way to Amazon S3: a NAT "
        "gateway, or a gateway endpoint for S3 in the route tables of its subnets, and port 443 open in its security "
        "group."
    )
    assert "CloudFormation not answered yet attempt=2" in caplog.text
    assert SIGNATURE not in caplog.text


def test_custom_resource_patience_with_s3_is_less_than_what_a_run_keeps_back() -> None:
    """A run that stopped at its deadline still has the time to give all attempts."""
    longest = custom_resource.ATTEMPTS * custom_resource.TIMEOUT_S + custom_resource.ATTEMPTS * custom_resource.PAUSE_S

    assert longest < 20 - 3  # database.RESERVE_S, less what stopping takes
