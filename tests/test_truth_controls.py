"""Controls and sheets agree, in whatever account, and whatever of it may not be read."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import world
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reading import CHECKS_BY_NAME, NUMBER
from world import (
    IRELAND,
    OTHER_ACCOUNT,
    OWNER,
    PARTNER,
    VIRGINIA,
    BucketData,
    Contents,
    TrailData,
    User,
    World,
    controls_of,
    group,
    group_grant,
    interface,
    result_of,
    rule,
    selector,
    user_grant,
)

from security_check import (
    ANY_AWS_ACCOUNT,
    EVERYONE,
    FAILED,
    FINDING,
    LOG_DELIVERY,
    NOT_CHECKED,
    PASSED,
    Check,
    CheckResult,
    rank_of,
)

# --- random accounts -------------------------------------------------------------------------

SOURCES = (
    *("0.0.0.0/0", "::/0", "0.0.0.0/1", "128.0.0.0/1", "8.0.0.0/8", "9.0.0.0/8"),
    *("10.0.0.0/8", "203.0.113.0/24", "2000::/4", "2001:db8::/32", "pl-1", "pl-2"),
)
LISTS = {"pl-1": ["0.0.0.0/1", "128.0.0.0/1"], "pl-2": ["0.0.0.0/0", "::/0"]}
PORTS = ((22, 22), (20, 30), (80, 80), (443, 443), (3389, 3389), (5000, 9000), (53, 53))

rules = st.one_of(
    st.builds(
        lambda protocol, ports, sources: rule(protocol, *ports, *sources),
        st.sampled_from(["tcp", "udp", "6"]),
        st.sampled_from(PORTS),
        st.lists(st.sampled_from(SOURCES), max_size=3, unique=True),
    ),
    st.builds(
        lambda protocol, source: rule(protocol, None, None, source),
        st.sampled_from(["-1", "47"]),
        st.sampled_from(SOURCES),
    ),
)
groups = st.lists(
    st.builds(
        lambda rules, vpc, owner: group(*rules, vpc=vpc, owner=owner),
        st.lists(rules, max_size=3),
        st.sampled_from(["vpc-1", "vpc-2", "vpc-shared", ""]),
        st.sampled_from([NUMBER, NUMBER, OTHER_ACCOUNT]),
    ),
    max_size=3,
).map(lambda found: tuple(one | {"GroupId": f"sg-{n}"} for n, one in enumerate(found)))
interfaces = st.lists(
    st.builds(interface, st.sampled_from(["sg-0", "sg-1"]), subnet=st.sampled_from(["subnet-1"])),
    max_size=2,
).map(tuple)
users = st.dictionaries(
    st.sampled_from(["alice", "bob", "carol"]),
    st.builds(
        User,
        st.booleans(),
        st.sampled_from(["", "virtual", "passkey"]),
        st.one_of(st.none(), st.tuples(st.booleans(), st.booleans())),
        st.lists(
            st.tuples(st.sampled_from([1, 90, 91, 400]), st.sampled_from(["Active", "Inactive"])),
            max_size=2,
        ).map(tuple),
    ),
)
selectors = st.one_of(
    st.none(),
    st.lists(
        st.builds(
            lambda kind, left_out: selector(kind, *left_out),
            st.sampled_from(["All", "ReadOnly", "WriteOnly"]),
            st.lists(st.just("kms.amazonaws.com"), max_size=1),
        ),
        max_size=2,
    ).map(tuple),
)
trails = st.lists(
    st.builds(
        TrailData,
        name=st.sampled_from(["main", "audit", "team"]),
        home=st.sampled_from([IRELAND, VIRGINIA]),
        owner=st.sampled_from([NUMBER, OTHER_ACCOUNT]),
        multi_region=st.booleans(),
        validated=st.booleans(),
        logging=st.booleans(),
        selectors=selectors,
        delivery_error=st.sampled_from(["", "", "NoSuchBucket"]),
        digest_error=st.sampled_from(["", "", "AccessDenied"]),
    ),
    max_size=3,
    unique_by=lambda one: one.arn,
).map(tuple)
grants = st.one_of(
    st.builds(
        group_grant,
        st.sampled_from([EVERYONE, ANY_AWS_ACCOUNT, LOG_DELIVERY, "http://example.com/unknown"]),
        st.sampled_from(["READ", "WRITE", "READ_ACP", "WRITE_ACP", "FULL_CONTROL"]),
    ),
    st.builds(user_grant, st.sampled_from([OWNER, PARTNER]), st.just("FULL_CONTROL")),
)
blocks = st.one_of(
    st.none(),
    st.dictionaries(st.sampled_from(["IgnorePublicAcls", "RestrictPublicBuckets"]), st.booleans()),
)
buckets = st.dictionaries(
    st.sampled_from(["logs", "site"]),
    st.builds(BucketData, st.lists(grants, max_size=3).map(tuple), st.booleans(), blocks),
)
accounts = st.builds(
    Contents,
    groups=groups,
    interfaces=interfaces,
    lists=st.just(LISTS),
    block_mode=st.sampled_from(["off", "off", "block-bidirectional", "block-ingress"]),
    excluded=st.sampled_from([(), ("vpc-1",), ("subnet-1",)]),
    users=users,
    root=st.fixed_dictionaries(
        {},
        optional={
            "AccountMFAEnabled": st.sampled_from([0, 1]),
            "AccountAccessKeysPresent": st.sampled_from([0, 1]),
            "AccountPasswordPresent": st.sampled_from([0, 1]),
        },
    ),
    fresh_report=st.booleans(),
    trails=trails,
    buckets=buckets,
    account_block=blocks,
)
REFUSABLE = [
    *itertools.product(
        (
            *("DescribeSecurityGroups", "DescribeNetworkInterfaces", "DescribeTrails"),
            *("DescribeVpcBlockPublicAccessOptions", "GetTrailStatus", "GetEventSelectors"),
        ),
        (IRELAND, VIRGINIA),
    ),
    *itertools.product(["GetManagedPrefixListEntries"], LISTS),
    *itertools.product(
        ("ListAccessKeys", "ListMFADevices", "GetLoginProfile"), ("alice", "bob", "carol")
    ),
    *itertools.product(["GetAccessKeyLastUsed"], ("AKIAalice0", "AKIAbob1")),
    *itertools.product(["GetBucketAcl", "GetBucketPolicyStatus"], ("logs", "site")),
    *itertools.product(["GetPublicAccessBlock"], ("logs", "site", NUMBER)),
    *itertools.product(
        (
            *("ListUsers", "GetAccountSummary", "GenerateCredentialReport", "ListBuckets"),
            *("DescribeRegions", "ListVirtualMFADevices"),
        ),
        [VIRGINIA],
    ),
]
refusals = st.frozensets(st.sampled_from(REFUSABLE), max_size=4)

# Why a row may be less severe than the control that it names.
REASONS = (
    *("no interface has it now", "stops it", "makes that void"),
    "unless a public access block makes that void",
)
slow = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[*HealthCheck],
)


def assert_rows_name_their_controls(result: CheckResult) -> None:
    named = set[str]()
    for row in result.rows:
        failed = [name for name in row.control.split(", ") if name]
        if row.status == FINDING:
            named |= {*failed}
        else:
            assert not failed, row
        if not failed:
            continue
        ranks = [rank_of(result.check.controls[name].severity) for name in failed]
        assert ranks == sorted(ranks), "the one that gives the severity comes first"
        assert rank_of(row.severity) >= ranks[0]
        if rank_of(row.severity) > ranks[0]:
            assert any(reason in row.result for reason in REASONS), row
    statuses = controls_of(result)
    assert {name for name, one in statuses.items() if one.status == FAILED} == named


@pytest.mark.parametrize("name", CHECKS_BY_NAME)
@slow
@given(contents=accounts, refused=refusals, max_key_age=st.sampled_from([30, 90, 365]))
def test_a_control_failed_if_and_only_if_a_finding_names_it(
    name: str, contents: Contents, refused: frozenset[tuple[str, str]], max_key_age: int
) -> None:
    check = CHECKS_BY_NAME[name]
    if name == "ec2-classic":
        return
    result = result_of(check, World(contents, refused, max_key_age=max_key_age))
    assert_rows_name_their_controls(result)


@pytest.mark.parametrize("name", CHECKS_BY_NAME)
@slow
@given(contents=accounts, refused=refusals)
def test_what_may_not_be_read_changes_no_verdict(
    name: str, contents: Contents, refused: frozenset[tuple[str, str]]
) -> None:
    """PASSED and FAILED are what they would be if everything were shown."""
    check = CHECKS_BY_NAME[name]
    if name == "ec2-classic":
        return
    some = controls_of(result_of(check, World(contents, refused)))
    all_ = controls_of(result_of(check, World(contents)))
    for control, one in some.items():
        if one.status != NOT_CHECKED:
            assert one.status == all_[control].status, control
    assert all(
        one.status in (PASSED, FAILED) for name, one in all_.items() if name not in ("S3.2", "S3.3")
    )
