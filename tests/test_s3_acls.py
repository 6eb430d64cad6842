"""Check 6: who is granted what on every bucket, and which policies make one public."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from cloud import Cloud
from conftest import NUMBER, Canned, audited
from making import finding, fine, not_checked, run_check, seen

from security_check import (
    ANY_AWS_ACCOUNT,
    EVERYONE,
    LOG_DELIVERY,
    Row,
    bucket_regions,
    check_s3_acls,
    failed_bucket_controls,
    grantee_names,
)

BUCKET, REGION = "my.bucket", "eu-west-1"
OWNER, OTHER = "a" * 64, "b" * 64


def canonical(id: str, **about: str) -> dict[str, str]:
    return {"Type": "CanonicalUser", "ID": id, **about}


def everyone(uri: str = EVERYONE) -> dict[str, str]:
    return {"Type": "Group", "URI": uri}


# --- the rules ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grantee", "words"),
    [
        (everyone(), ("AllUsers", "Everyone (AllUsers)")),
        (everyone(ANY_AWS_ACCOUNT), ("AuthenticatedUsers", "Any AWS account (AuthenticatedUsers)")),
        (everyone(LOG_DELIVERY), ("LogDelivery", "S3 log delivery")),
        (everyone("http://example/new"), ("http://example/new", "http://example/new")),
        (canonical(OWNER), ("Owner", "Owner")),
        (canonical(OWNER, DisplayName="me"), ("Owner", "Owner")),
        (canonical(OTHER), (OTHER, OTHER)),
        (canonical(OTHER, DisplayName="them"), (OTHER, f"them ({OTHER})")),
        (
            {"Type": "AmazonCustomerByEmail", "EmailAddress": "a@example.com"},
            ("a@example.com", "a@example.com"),
        ),
    ],
)
def test_grantees_in_words(grantee: dict[str, str], words: tuple[str, str]) -> None:
    assert grantee_names(grantee, OWNER) == words


PERMISSIONS = {
    "READ": "S3.2",
    "READ_ACP": "S3.2",
    "WRITE": "S3.3",
    "WRITE_ACP": "S3.3",
    "FULL_CONTROL": "S3.2, S3.3",
}


@pytest.mark.parametrize(("permission", "control"), PERMISSIONS.items())
def test_controls_that_a_grant_fails(permission: str, control: str) -> None:
    for uri in (EVERYONE, ANY_AWS_ACCOUNT):
        public = failed_bucket_controls(everyone(uri), OWNER, permission)
        assert public == [*control.split(", "), "S3.12"]
    for other in (canonical(OTHER), everyone("http://example/new")):
        assert failed_bucket_controls(other, OWNER, permission) == ["S3.12"]
    for harmless in (canonical(OWNER), everyone(LOG_DELIVERY)):
        assert failed_bucket_controls(harmless, OWNER, permission) == []


# --- scenarios ------------------------------------------------------------------------------------


@pytest.fixture
def s3(aws: Canned) -> Canned:
    aws.answer("s3", "ListBuckets", {"Buckets": [{"Name": BUCKET, "BucketRegion": REGION}]})
    return aws


def answer_acl(aws: Canned, *grants: tuple[dict[str, str], str], **owner: str) -> None:
    found = [{"Grantee": grantee, "Permission": permission} for grantee, permission in grants]
    answer = {"Owner": {"ID": OWNER, **owner}, "Grants": found}
    aws.answer("s3", "GetBucketAcl", answer, REGION, {"Bucket": BUCKET})


def answer_policy(aws: Canned, public: bool | None = None) -> None:
    """None: there is no policy."""
    if public is None:
        aws.refuse("s3", "GetBucketPolicyStatus", "NoSuchBucketPolicy", REGION)
    else:
        status = {"PolicyStatus": {"IsPublic": public}}
        aws.answer("s3", "GetBucketPolicyStatus", status, REGION, {"Bucket": BUCKET})


ABSENT, DENIED = "NoSuchPublicAccessBlockConfiguration", "AccessDenied"
SETTINGS = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")


def answer_block(aws: Canned, level: str, on: list[str] | str) -> None:
    service, region = ("s3control", "") if level == "account" else ("s3", REGION)
    sent = {"AccountId": NUMBER} if level == "account" else {"Bucket": BUCKET}
    if isinstance(on, str):
        aws.refuse(service, "GetPublicAccessBlock", on, region)
        return
    block = {"PublicAccessBlockConfiguration": {name: name in on for name in SETTINGS}}
    aws.answer(service, "GetPublicAccessBlock", block, region, sent)


def grant_cells(grantee: str, permission: str, *, blocked_by: str = "") -> dict[str, Any]:
    return {
        "Bucket": BUCKET,
        "Region": REGION,
        "Owner": OWNER,
        "Grantee": grantee,
        "Permission": permission,
        "Blocked by": blocked_by,
    }


OWNERS = (canonical(OWNER), "FULL_CONTROL")
OWNERS_ROW = fine(
    BUCKET,
    item="Owner/FULL_CONTROL",
    message="Owner has FULL_CONTROL",
    cells=grant_cells("Owner", "FULL_CONTROL"),
)


def public_read(*, severity: str, blocked_by: str) -> Row:
    return finding(
        BUCKET,
        item="AllUsers/READ",
        message=f"everyone on the Internet may list it{void(blocked_by)}",
        severity=severity,
        control="S3.12" if blocked_by else "S3.2, S3.12",
        cells=grant_cells("Everyone (AllUsers)", "READ", blocked_by=blocked_by),
    )


def void(blocked_by: str) -> str:
    return f", but the {blocked_by} makes that void" if blocked_by else ""


@pytest.mark.parametrize(
    ("grantee", "permission", "said", "item"),
    [
        *(
            (everyone(), permission, f"Everyone on the Internet may {may}", may)
            for permission, may in (
                ("READ", "list it"),
                ("WRITE", "write to it"),
                ("READ_ACP", "read its ACL"),
                ("WRITE_ACP", "change its ACL"),
                ("FULL_CONTROL", "have full control of it"),
            )
        ),
        (everyone(ANY_AWS_ACCOUNT), "READ", "Anyone with an AWS account may list it", "list it"),
        (canonical(OTHER), "READ", "Another AWS account may list it", "list it"),
    ],
)
def test_a_grant_in_words(
    s3: Canned, grantee: dict[str, str], permission: str, said: str, item: str
) -> None:
    answer_acl(s3, (grantee, permission))
    if "URI" in grantee:
        answer_block(s3, "account", [])
        answer_block(s3, "bucket", [])
    answer_policy(s3)
    (row,) = check_s3_acls(s3, BUCKET)
    assert (row.result, row.message.item) == (said, item)


@pytest.mark.parametrize("policy", [None, False], ids=["no policy", "a policy that is not public"])
def test_a_private_bucket_is_asked_two_questions(s3: Canned, policy: bool | None) -> None:
    """As with ACLs disabled: the ACL that AWS then answers is the owner's alone."""
    answer_acl(s3, OWNERS)
    answer_policy(s3, policy)
    assert seen(check_s3_acls(s3, BUCKET)) == seen([OWNERS_ROW])


def test_every_grant_is_a_row(s3: Canned) -> None:
    answer_acl(
        s3,
        OWNERS,
        (everyone(LOG_DELIVERY), "WRITE"),
        (canonical(OTHER), "READ_ACP"),
        DisplayName="me",
    )
    answer_policy(s3)
    rows = list(check_s3_acls(s3, BUCKET))
    shown = [(row.cells["Owner"], row.cells["Grantee"], row.status, row.control) for row in rows]
    assert shown == [
        ("me", "Owner", "OK", ""),
        ("me", "S3 log delivery", "OK", ""),
        ("me", OTHER, "FINDING", "S3.12"),
    ]


BLOCKED = {
    "nothing blocks": ([], [], ""),
    "no blocks at all": (ABSENT, ABSENT, ""),
    "the account blocks": (["IgnorePublicAcls"], [], "account public access block"),
    "the bucket blocks": (ABSENT, ["IgnorePublicAcls"], "bucket public access block"),
    "BlockPublicAcls undoes no grant": (["BlockPublicAcls"], ["BlockPublicAcls"], ""),
    "RestrictPublicBuckets is of policies": (["RestrictPublicBuckets"], [], ""),
    "the account's is enough when the bucket's is denied": (
        *(["IgnorePublicAcls"], DENIED),
        "account public access block",
    ),
    "the bucket's is enough when the account's is denied": (
        *(DENIED, ["IgnorePublicAcls"]),
        "bucket public access block",
    ),
}


@pytest.mark.parametrize(("account", "bucket", "blocked"), BLOCKED.values(), ids=BLOCKED)
def test_a_public_grant_and_what_blocks_it(
    s3: Canned, account: Any, bucket: Any, blocked: str
) -> None:
    answer_acl(s3, OWNERS, (everyone(), "READ"))
    answer_block(s3, "account", account)
    if not blocked.startswith("account"):  # else nobody asks
        answer_block(s3, "bucket", bucket)
    answer_policy(s3)
    expected = public_read(severity="Low" if blocked else "Critical", blocked_by=blocked)
    assert seen(check_s3_acls(s3, BUCKET)) == seen([OWNERS_ROW, expected])


@pytest.mark.parametrize(("account", "bucket"), [(DENIED, []), ([], DENIED), (DENIED, ABSENT)])
def test_a_block_that_may_not_be_read_is_neither_blocked_nor_open(
    s3: Canned, account: Any, bucket: Any
) -> None:
    answer_acl(s3, OWNERS, (everyone(), "READ"))
    answer_block(s3, "account", account)
    answer_block(s3, "bucket", bucket)
    answer_policy(s3)
    service = "s3control" if account == DENIED else "s3"
    granted = finding(
        BUCKET,
        item="AllUsers/READ",
        message="everyone on the Internet may list it"
        ", unless a public access block makes that void",
        severity="Medium",
        control="S3.12",
        cells=grant_cells("Everyone (AllUsers)", "READ", blocked_by="NOT CHECKED"),
    )
    unknown = not_checked(
        BUCKET,
        item="AllUsers/READ",
        error=f"AccessDenied: {service} GetPublicAccessBlock",
        cells=grant_cells("Everyone (AllUsers)", "READ"),
    )
    assert seen(check_s3_acls(s3, BUCKET)) == seen([OWNERS_ROW, granted, unknown])


@pytest.mark.parametrize(
    ("setting", "severity", "blocked"),
    [
        ("RestrictPublicBuckets", "Low", "bucket public access block"),
        ("IgnorePublicAcls", "Critical", ""),
        ("BlockPublicPolicy", "Critical", ""),
    ],
)
def test_a_public_policy(s3: Canned, setting: str, severity: str, blocked: str) -> None:
    answer_acl(s3, OWNERS)
    answer_policy(s3, True)
    answer_block(s3, "account", [])
    answer_block(s3, "bucket", [setting])
    also = "; RestrictPublicBuckets also shuts out a web site's visitors, and named accounts"
    expected = finding(
        BUCKET,
        item="policy",
        message=f"its policy lets in everyone on the Internet{void(blocked) or also}",
        severity=severity,
        cells=grant_cells("Everyone (bucket policy)", "policy", blocked_by=blocked),
    )
    assert seen(check_s3_acls(s3, BUCKET)) == seen([OWNERS_ROW, expected])


def test_blocks_are_asked_once_whatever_number_of_grants_they_void(s3: Canned) -> None:
    answer_acl(
        s3, *((everyone(uri), p) for uri in (EVERYONE, ANY_AWS_ACCOUNT) for p in PERMISSIONS)
    )
    answer_block(s3, "account", [])
    answer_block(s3, "bucket", list(SETTINGS))
    answer_policy(s3, True)
    rows = list(check_s3_acls(s3, BUCKET))
    assert [row.severity for row in rows] == ["Low"] * 11
    assert [row.control for row in rows] == ["S3.12"] * 10 + [""]  # it has users, all the same


@pytest.mark.parametrize("call", ["GetBucketAcl", "GetBucketPolicyStatus"])
def test_a_bucket_that_may_not_be_read(s3: Canned, call: str) -> None:
    if call == "GetBucketPolicyStatus":
        answer_acl(s3, OWNERS)
    s3.refuse("s3", call, "AccessDenied", REGION)
    rows = run_check("s3-acls", s3, threads=1).rows
    denied = not_checked(BUCKET, error=f"AccessDenied: s3 {call}", cells={"Bucket": BUCKET})
    before = [OWNERS_ROW] if call == "GetBucketPolicyStatus" else []
    assert seen(rows) == seen([*before, denied])


def test_a_bucket_deleted_meanwhile_gives_no_row(s3: Canned) -> None:
    answer_acl(s3, OWNERS)
    s3.refuse("s3", "GetBucketPolicyStatus", "NoSuchBucket", REGION)
    found = run_check("s3-acls", s3, threads=1)
    assert [row.id for row in found.rows] == ["<nothing>"]


def test_no_buckets(aws: Canned) -> None:
    aws.answer("s3", "ListBuckets", {"Buckets": []})
    nothing = fine("<nothing>", message="No grant on any of 0 buckets")
    assert seen(run_check("s3-acls", aws).rows) == seen([nothing])


def test_the_buckets_of_all_pages_are_listed_with_their_regions(aws: Canned) -> None:
    regions = {f"bucket.{n:04}": ("us-east-1", REGION)[n % 2] for n in range(2000)}
    known = [{"Name": name, "BucketRegion": region} for name, region in regions.items()]
    aws.answer("s3", "ListBuckets", {"Buckets": known[:1000], "ContinuationToken": "more"})
    aws.answer("s3", "ListBuckets", {"Buckets": known[1000:]})
    assert bucket_regions(aws) == regions


# --- over HTTP ----------------------------------------------------------------------------------


def test_each_bucket_is_asked_about_in_its_own_region_and_a_private_one_not_for_blocks(
    cloud: Cloud,
) -> None:
    regions = {f"bucket.{n:02}": ("us-east-1", REGION)[n % 2] for n in range(40)}
    for name, region in regions.items():
        place: Any = {"CreateBucketConfiguration": {"LocationConstraint": region}}
        s3 = cloud.client("s3", region)
        s3.create_bucket(Bucket=name, **(place if region != "us-east-1" else {}))
    cloud.layer.calls.clear()
    (result,) = audited("--check", "s3-acls").results
    assert [row.status for row in result.rows] == ["OK"] * 40
    assert {row.cells["Bucket"]: row.cells["Region"] for row in result.rows} == regions
    calls = [call for call in cloud.layer.calls if call.operation == "GetBucketAcl"]
    assert Counter(call.region for call in calls) == Counter(regions.values())
    assert cloud.layer.count()["s3:GetPublicAccessBlock"] == 0
    assert cloud.layer.count()["s3control:GetPublicAccessBlock"] == 0
