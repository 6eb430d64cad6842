"""Buckets: who is granted what, and commands that change nothing but what was found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cloud import Cloud
from reading import CHECKS_BY_NAME, NUMBER
from world import (
    OWNER,
    PARTNER,
    BucketData,
    Contents,
    World,
    group_grant,
    result_of,
    rows_of,
    statuses,
    user_grant,
)

from security_check import (
    ANY_AWS_ACCOUNT,
    EVERYONE,
    FAILED,
    LOG_DELIVERY,
    NOT_CHECKED,
    PASSED,
    Row,
    main,
)

CHECK = CHECKS_BY_NAME["s3-acls"]
IGNORE, RESTRICT = {"IgnorePublicAcls": True}, {"RestrictPublicBuckets": True}
OPEN = dict.fromkeys(("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy"), False)
CLOUDFRONT = "c4c1ede66af53448b93c283ce9448c4ba468c9432aa01d700d3878632f77d2d0"
CLOUDFRONT_CHINA = "a52cb28745c0c06e84ec548334e44bfa7fc2a85c54af20cd59e4969344b7af56"
REFUSED = ("GetPublicAccessBlock", NUMBER), ("GetPublicAccessBlock", "logs")


def bucket(*grants: Any, **about: Any) -> Contents:
    return Contents(buckets={"logs": BucketData(grants, **about)})


def only_row(contents: Contents) -> Row:
    (row,) = result_of(CHECK, World(contents)).rows
    return row


# --- grants ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grant", "severity", "control", "result"),
    [
        pytest.param(
            group_grant(EVERYONE, "READ"),
            *("Critical", "S3.2, S3.12", "Everyone on the Internet may list it"),
            id="everyone",
        ),
        pytest.param(
            group_grant(ANY_AWS_ACCOUNT, "WRITE"),
            *("Critical", "S3.3, S3.12", "Anyone with an AWS account may write to it"),
            id="any account",
        ),
        pytest.param(
            group_grant(EVERYONE, "FULL_CONTROL"),
            *(
                "Critical",
                "S3.2, S3.3, S3.12",
                "Everyone on the Internet may have full control of it",
            ),
            id="full control",
        ),
        pytest.param(
            group_grant(EVERYONE, "WRITE_ACP"),
            *("Critical", "S3.3, S3.12", "Everyone on the Internet may change its ACL"),
            id="the ACL, which may then grant the rest",
        ),
        pytest.param(
            user_grant(PARTNER, "READ"),
            *("Medium", "S3.12", "Another AWS account may list it"),
            id="a partner",
        ),
        pytest.param(
            group_grant("http://example.com/new", "READ"),
            *("Medium", "S3.12", "The group http://example.com/new may list it"),
            id="a group that nobody knows",
        ),
        pytest.param(
            group_grant(LOG_DELIVERY, "WRITE"), "", "", "S3 log delivery has WRITE", id="logs of S3"
        ),
        pytest.param(
            user_grant(CLOUDFRONT, "FULL_CONTROL"),
            *("", "", "CloudFront log delivery has FULL_CONTROL"),
            id="logs of CloudFront",
        ),
        pytest.param(
            user_grant(CLOUDFRONT_CHINA, "FULL_CONTROL"),
            *("", "", "CloudFront log delivery has FULL_CONTROL"),
            id="logs of CloudFront in China",
        ),
        pytest.param(
            user_grant(OWNER, "FULL_CONTROL"), "", "", "Owner has FULL_CONTROL", id="owner"
        ),
    ],
)
def test_a_grant(grant: Any, severity: str, control: str, result: str) -> None:
    row = only_row(bucket(grant))
    assert (row.severity, row.control, row.result) == (severity, control, result)
    failed = {name for name, one in statuses(CHECK, bucket(grant)).items() if one == FAILED}
    assert failed == {*control.split(", ")} - {""}


def test_a_group_that_nobody_knows_is_not_asked() -> None:
    row = only_row(bucket(group_grant("http://example.com/new", "READ")))
    assert row.remediation.manual == "remove the grant by hand"


# --- blocks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [IGNORE, None])
def test_a_block_that_is_refused_costs_only_what_it_is_about(block: Any) -> None:
    """The grant is there (S3.12); whether it is public nobody knows, and neither is said."""
    contents = bucket(group_grant(EVERYONE, "READ"), block=block)
    row, gap = rows_of(CHECK, contents, *REFUSED)
    assert (row.severity, row.control, row.cells["Blocked by"]) == ("Medium", "S3.12", NOT_CHECKED)
    sentence = "Everyone on the Internet may list it, unless a public access block makes that void"
    assert (row.result, row.fully_read) == (sentence, False)
    assert gap.id == "logs/AllUsers/READ/not-checked"
    expected = {"S3.2": NOT_CHECKED, "S3.3": PASSED, "S3.12": FAILED}
    assert statuses(CHECK, contents, *REFUSED) == expected


def test_an_acl_that_is_refused_hides_no_public_policy() -> None:
    """Whoever makes a bucket public by its policy may deny the reading of its ACL in it too."""
    contents = Contents(buckets={"logs": BucketData(policy=True)})
    row, gap = rows_of(CHECK, contents, ("GetBucketAcl", "logs"))
    assert (row.severity, row.item, row.cells["Owner"]) == ("Critical", "policy", "")
    assert (gap.id, gap.result) == ("logs/not-checked", "AccessDenied: s3 GetBucketAcl")


def test_a_block_makes_it_void_but_the_acl_still_has_users() -> None:
    contents = bucket(group_grant(EVERYONE, "READ"), block=IGNORE)
    (row,) = rows_of(CHECK, contents)
    assert (row.severity, row.control) == ("Low", "S3.12")
    assert row.result.endswith("but the bucket public access block makes that void")
    assert statuses(CHECK, contents) == {"S3.2": PASSED, "S3.3": PASSED, "S3.12": FAILED}


# --- policies --------------------------------------------------------------------------------


def test_a_public_policy_says_what_its_command_also_stops() -> None:
    (row,) = rows_of(CHECK, bucket(policy=True, block=OPEN))
    assert (row.severity, row.control) == ("Critical", "")
    assert row.result == (
        "Its policy lets in everyone on the Internet;"
        " RestrictPublicBuckets also shuts out a web site's visitors, and named accounts"
    )
    assert row.remediation.command


def test_whether_a_policy_lets_them_read_or_write_is_not_known() -> None:
    expected = {"S3.2": NOT_CHECKED, "S3.3": NOT_CHECKED, "S3.12": PASSED}
    assert statuses(CHECK, bucket(policy=True)) == expected
    assert {*statuses(CHECK, bucket(policy=True, block=RESTRICT)).values()} == {PASSED}


def test_where_a_bucket_has_no_settings_they_are_made_by_hand() -> None:
    """A command could not tell that they are missing from that it may not read them."""
    (row,) = rows_of(CHECK, bucket(policy=True))
    assert row.remediation == ("", "turn on Block Public Access of the bucket by hand")


# --- commands, after somebody else was there --------------------------------------------------

BASH, DASH = (name if Path(name).exists() else "/bin/sh" for name in ("/bin/bash", "/bin/dash"))


def findings(*arguments: str) -> dict[str, str]:
    """The commands of the findings, by ID."""
    main(["--json", "x.json", "--output", "x.xls", "--check", "s3-acls", *arguments])
    (report,) = json.loads(Path("x.json").read_text())["accounts"]
    rows = [row for result in report["results"] for row in result["rows"]]
    return {row["id"]: row["remediation"]["command"] for row in rows if row["status"] == "FINDING"}


def in_shell(line: str, shell: str = DASH) -> int:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path}
    return subprocess.run([shell, "-c", line], env=env, capture_output=True, check=False).returncode


def grants_of(cloud: Cloud) -> set[tuple[str, str]]:
    acl = cloud.client("s3").get_bucket_acl(Bucket="covers")
    grantees = ((one["Grantee"], one["Permission"]) for one in acl["Grants"])
    return {(who.get("URI") or who["ID"], permission) for who, permission in grantees}


def put_acl(cloud: Cloud, *grants: tuple[dict[str, str], str]) -> None:
    s3 = cloud.client("s3")
    owner = s3.get_bucket_acl(Bucket="covers")["Owner"]
    wanted = [{"Grantee": who, "Permission": permission} for who, permission in grants]
    s3.put_bucket_acl(Bucket="covers", AccessControlPolicy={"Owner": owner, "Grants": wanted})


@pytest.mark.posix
def test_a_grant_is_removed_and_nothing_that_changed_since_is_undone(cloud: Cloud) -> None:
    cloud.client("s3").create_bucket(Bucket="covers")
    public = group_grant(EVERYONE, "READ")
    acl = group_grant(EVERYONE, "READ_ACP")
    put_acl(cloud, public, acl, user_grant(PARTNER, "FULL_CONTROL"))
    line = findings()["s3-acls/covers/AllUsers/READ"]
    # meanwhile somebody takes full control from the partner, and lets the logs in
    logs = group_grant(LOG_DELIVERY, "WRITE")
    put_acl(cloud, public, acl, user_grant(PARTNER, "READ"), logs)
    assert in_shell(line) == 0
    kept = {(EVERYONE, "READ_ACP"), (PARTNER, "READ"), (LOG_DELIVERY, "WRITE")}
    assert grants_of(cloud) == kept
    assert "s3-acls/covers/AllUsers/READ" not in findings()


@pytest.mark.posix
def test_an_acl_that_may_not_be_read_is_not_replaced(cloud: Cloud) -> None:
    from cloud import Fault

    cloud.client("s3").create_bucket(Bucket="covers")
    put_acl(cloud, group_grant(EVERYONE, "READ"), user_grant(PARTNER, "READ"))
    line = findings()["s3-acls/covers/AllUsers/READ"]
    before = grants_of(cloud)
    cloud.layer.faults = [Fault("AccessDenied", "s3", "GetBucketAcl")]
    assert in_shell(line) != 0
    cloud.layer.faults = []
    assert grants_of(cloud) == before


@pytest.mark.posix
def test_settings_that_somebody_turned_on_since_stay_on(cloud: Cloud) -> None:
    s3 = cloud.client("s3")
    s3.create_bucket(Bucket="covers")
    everyone = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": "*"}
    s3.put_bucket_policy(Bucket="covers", Policy=json.dumps({"Statement": [everyone]}))
    off = {**OPEN, "RestrictPublicBuckets": False}
    s3.put_public_access_block(Bucket="covers", PublicAccessBlockConfiguration=off)
    line = findings()["s3-acls/covers/policy"]
    meanwhile = {**off, "BlockPublicAcls": True, "BlockPublicPolicy": True}
    s3.put_public_access_block(Bucket="covers", PublicAccessBlockConfiguration=meanwhile)
    assert in_shell(line, BASH) == 0
    settings = s3.get_public_access_block(Bucket="covers")["PublicAccessBlockConfiguration"]
    assert settings == {**meanwhile, "RestrictPublicBuckets": True}
    # meanwhile somebody removes them: nothing is put in their place
    s3.delete_public_access_block(Bucket="covers")
    assert in_shell(line, BASH) != 0
