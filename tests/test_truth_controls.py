"""Controls and sheets agree, in whatever account, and whatever of it may not be read."""

from __future__ import annotations

import itertools
from typing import Any

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
root = st.fixed_dictionaries(
    {},
    optional={
        name: st.sampled_from([0, 1])
        for name in (*("AccountMFAEnabled", "AccountAccessKeysPresent"), "AccountPasswordPresent")
    },
)
buckets = st.dictionaries(
    st.sampled_from(["logs", "site"]),
    st.builds(BucketData, st.lists(grants, max_size=3).map(tuple), st.booleans(), blocks),
)
# By check: what is in the account, and what of it may be refused.
MADE = {
    "security-groups": (
        st.builds(
            Contents,
            groups=groups,
            interfaces=interfaces,
            lists=st.just(LISTS),
            block_mode=st.sampled_from(["off", "off", "block-bidirectional", "block-ingress"]),
            excluded=st.sampled_from([(), ("vpc-1",), ("subnet-1",)]),
        ),
        [
            *itertools.product(["GetManagedPrefixListEntries"], LISTS),
            ("DescribeSecurityGroups", VIRGINIA),
            ("DescribeNetworkInterfaces", IRELAND),
            ("DescribeVpcBlockPublicAccessOptions", IRELAND),
            ("DescribeRegions", VIRGINIA),
        ],
    ),
    "access-keys": (
        st.builds(Contents, users=users, root=root),
        [
            *itertools.product(["GetAccessKeyLastUsed"], ("AKIAalice0", "AKIAbob1")),
            ("ListAccessKeys", "alice"),
            ("ListUsers", VIRGINIA),
            ("GetAccountSummary", VIRGINIA),
        ],
    ),
    "mfa": (
        st.builds(Contents, users=users, root=root, fresh_report=st.booleans()),
        [
            *itertools.product(("ListMFADevices", "GetLoginProfile"), ("alice", "bob")),
            *itertools.product(("ListUsers", "GenerateCredentialReport"), [VIRGINIA]),
            *itertools.product(("ListVirtualMFADevices", "GetAccountSummary"), [VIRGINIA]),
        ],
    ),
    "cloudtrail": (
        st.builds(Contents, trails=trails),
        [
            *itertools.product(["DescribeTrails", "GetTrailStatus"], (IRELAND, VIRGINIA)),
            *itertools.product(["GetEventSelectors"], (IRELAND, VIRGINIA)),
            ("DescribeRegions", VIRGINIA),
        ],
    ),
    "s3-acls": (
        st.builds(Contents, buckets=buckets, account_block=blocks),
        [
            *itertools.product(["GetBucketAcl", "GetBucketPolicyStatus"], ("logs", "site")),
            *itertools.product(["GetPublicAccessBlock"], ("logs", "site", NUMBER)),
            ("ListBuckets", VIRGINIA),
        ],
    ),
}
worlds = st.sampled_from([*MADE]).flatmap(
    lambda name: st.tuples(
        st.just(name), MADE[name][0], st.frozensets(st.sampled_from(MADE[name][1]), max_size=3)
    )
)

# Why a row may be less severe than the control that it names.
REASONS = (
    *("no interface has it now", "stops it", "makes that void"),
    "unless a public access block makes that void",
)
many = settings(
    max_examples=500,
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


@many
@given(worlds, st.sampled_from([30, 90, 365]))
def test_a_control_failed_if_and_only_if_a_finding_names_it(made: Any, max_key_age: int) -> None:
    name, contents, refused = made
    aws = World(contents, refused, max_key_age=max_key_age)
    assert_rows_name_their_controls(result_of(CHECKS_BY_NAME[name], aws))


@many
@given(worlds)
def test_what_may_not_be_read_changes_no_verdict(made: Any) -> None:
    """PASSED and FAILED are what they would be if everything were shown."""
    name, contents, refused = made
    check = CHECKS_BY_NAME[name]
    some = controls_of(result_of(check, World(contents, refused)))
    true = controls_of(result_of(check, World(contents)))
    for control, one in some.items():
        assert one.status in (NOT_CHECKED, true[control].status), control
    # whether a public policy lets the public read or write, AWS does not say
    known = [one.status for control, one in true.items() if control not in ("S3.2", "S3.3")]
    assert {*known} <= {PASSED, FAILED}


def test_every_check_that_decides_controls_is_among_them() -> None:
    assert {name for name, check in CHECKS_BY_NAME.items() if check.controls} == {*MADE}
