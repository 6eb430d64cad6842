"""What is printed, whole, at 80 columns, in seven situations.

To see what a change does to them, run this file: `python tests/test_terminal.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import making
import pytest

import security_check
from security_check import (
    CHECKS,
    CRITICAL,
    HIGH,
    MEDIUM,
    NEW,
    NOTHING_TARGET,
    WORSE,
    AwsError,
    CheckResult,
    ControlFinding,
    HistoryEntry,
    KnownFinding,
    Message,
    Overview,
    Question,
    Report,
    Row,
    terminal_text,
)

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=timezone.utc)
NUMBER = "123456789012"
CHECK = {one.name: one for one in CHECKS}
ALL = [one.name for one in CHECKS]
REGIONS = ["eu-west-1", "us-east-1", "us-west-2"]

BASTION = Row(
    "eu-west-1",
    "sg-0f3a/TCP/22",
    {"Region": "eu-west-1", "Group ID": "sg-0f3a", "Group name": "bastion"},
    Message("lets the whole Internet reach ", "SSH (22)", "; 2 interfaces use it, 1 public"),
    CRITICAL,
    control_findings=(ControlFinding("EC2.19", "it"),),
    kind="SSH (22) open to the whole Internet",
    priority=5,
)
DATABASE = Row(
    "us-east-1",
    "sg-77aa/TCP/5432",
    {"Region": "us-east-1", "Group ID": "sg-77aa", "Group name": "orders-db"},
    Message("lets the whole Internet reach ", "PostgreSQL (5432)", "; nothing uses it"),
    HIGH,
    control_findings=(ControlFinding("EC2.19", "it"),),
    kind="PostgreSQL (5432) open to the whole Internet",
)
ALICE = Row(
    "alice",
    "",
    {"User": "alice"},
    Message("signs in with a password alone, last on 2026-11-20"),
    MEDIUM,
    control_findings=(ControlFinding("IAM.5", "it"),),
    kind="User with a console password, and without MFA",
)
DENIED = AwsError("AccessDenied", "ec2", "DescribeSecurityGroups")
GAPS = [Row(name, "", {"Region": name}, error=DENIED) for name in ("us-east-1", "us-west-2")]
NOTHING = Row(NOTHING_TARGET, "", {}, Message("Nothing"))


def question(**facts: Any) -> Question:
    return replace(Question(ALL, [], 90, "2.0"), rules="2026-11-25", **facts)


def report(groups: list[Row], users: list[Row], **facts: Any) -> Report:
    results = [
        CheckResult(
            one, {"security-groups": groups, "mfa": users}.get(one.name, [NOTHING]), True, 4
        )
        for one in CHECKS
    ]
    known: dict[str, Any] = {
        "aliases": ["acme"],
        "regions": REGIONS,
        "enabled_regions": 3,
        "question": question(),
        "results": results,
        "workbook": "/audits/report.xls",
        "seconds": 3,
    }
    return Report(**{"account": NUMBER, "started": NOW, **known, **facts})


def clean() -> str:
    return terminal_text(Overview.of_one(report([NOTHING], [NOTHING])))


def findings() -> str:
    return terminal_text(Overview.of_one(report([DATABASE, BASTION], [ALICE])))


def gaps() -> str:
    return terminal_text(Overview.of_one(report([BASTION, *GAPS], [NOTHING])))


def limited() -> str:
    only = [CheckResult(CHECK["security-groups"], [BASTION], False, 4)]
    asked = question(checks=["security-groups"], regions=["eu-west-1"])
    one = report([], [], results=only, question=asked, regions=["eu-west-1"])
    return terminal_text(Overview.of_one(one))


def first_run() -> str:
    today = "2026-11-23"
    rows = [replace(BASTION, first_seen=today)], [replace(ALICE, first_seen=today)]
    return terminal_text(Overview.of_one(report(*rows, resolved={}, first_run=True)))


def quiet_with_news() -> str:
    was = "Lets the whole Internet reach PostgreSQL (5432); 1 interface uses it"
    rows = [
        replace(BASTION, first_seen="2026-09-01"),
        replace(DATABASE, first_seen="2026-10-23", change=WORSE, was=was),
        GAPS[0],
    ]
    new = replace(ALICE, first_seen="2026-11-23", change=NEW)
    gone = {"mfa/bob": KnownFinding("2026-10-23", "Has no MFA device, and no console password")}
    days = [
        HistoryEntry(day, dict.fromkeys(security_check.SEVERITIES, 1))
        for day in ("2026-10-23", "2026-11-23")
    ]
    one = report(rows, [new], resolved=gone, history=days)
    return terminal_text(Overview.of_one(one), quiet=True)


def organization() -> str:
    role = "arn:aws:iam::888888888888:role/security-check"
    refused = AwsError("AccessDenied", "sts", "AssumeRole", role)
    reports = [
        Report("888888888888", NOW, "Archive of the old company", error=refused),
        report([BASTION, DATABASE], [ALICE], name="Production"),
        report([replace(BASTION, target="us-west-2")], [], account="222222222222", name="Sandbox"),
        Report("666666666666", NOW, "Closed", account_status="SUSPENDED"),
    ]
    whose = "AWS organization of 123456789012"
    return terminal_text(Overview(reports, NOW, 60, "/audits/overview.xls", True, scope=whose))


SITUATIONS: dict[str, tuple[Callable[[], str], str]] = {
    "clean": (clean, """
AWS account 123456789012 (acme), 2026-11-23

                Evaluated Critical  High Medium   Low ACCEPTED NOT CHECKED
EC2-Classic             4        -     -      -     -        -           -
Security groups         4        -     -      -     -        -           -
Access keys             4        -     -      -     -        -           -
MFA                     4        -     -      -     -        -           -
CloudTrail              4        -     -      -     -        -           -
S3 ACLs                 4        -     -      -     -        -           -

0 findings, everything was checked
All 6 checks, all regions, access keys older than 90 days. security_check.py
2.0, rules of 2026-11-25
/audits/report.xls
"""),
    "findings": (findings, """
AWS account 123456789012 (acme), 2026-11-23

                Evaluated Critical  High Medium   Low ACCEPTED NOT CHECKED
EC2-Classic             4        -     -      -     -        -           -
Security groups         4        1     1      -     -        -           -
Access keys             4        -     -      -     -        -           -
MFA                     4        -     -      1     -        -           -
CloudTrail              4        -     -      -     -        -           -
S3 ACLs                 4        -     -      -     -        -           -

3 findings, everything was checked
Worst:
  Critical  bastion: lets the whole Internet reach SSH (22); 2 interfaces use
            it, 1 public (sg-0f3a, eu-west-1)
  High      orders-db: lets the whole Internet reach PostgreSQL (5432); nothing
            uses it (sg-77aa, us-east-1)
  Medium    alice: signs in with a password alone, last on 2026-11-20
All 6 checks, all regions, access keys older than 90 days. security_check.py
2.0, rules of 2026-11-25
/audits/report.xls
"""),
    "gaps": (gaps, """
AWS account 123456789012 (acme), 2026-11-23

                Evaluated Critical  High Medium   Low ACCEPTED NOT CHECKED
EC2-Classic             4        -     -      -     -        -           -
Security groups         4        1     -      -     -        -           2
Access keys             4        -     -      -     -        -           -
MFA                     4        -     -      -     -        -           -
CloudTrail              4        -     -      -     -        -           -
S3 ACLs                 4        -     -      -     -        -           -

1 finding, 2 NOT CHECKED
Worst:
  Critical  bastion: lets the whole Internet reach SSH (22); 2 interfaces use
            it, 1 public (sg-0f3a, eu-west-1)
Not checked:
  Security groups: AccessDenied: ec2 DescribeSecurityGroups (needs
            ec2:DescribeSecurityGroups): us-east-1 and us-west-2
  Add to the policy: {"Effect": "Allow", "Action":
            ["ec2:DescribeSecurityGroups"], "Resource": "*"}
All 6 checks, all regions, access keys older than 90 days. security_check.py
2.0, rules of 2026-11-25
/audits/report.xls
"""),
    "limited": (limited, """
AWS account 123456789012 (acme), 2026-11-23

                Evaluated Critical  High Medium   Low ACCEPTED NOT CHECKED
Security groups         4        1     -      -     -        -           -

1 finding, limited to: 1 of 6 checks, 1 of 3 regions
Worst:
  Critical  bastion: lets the whole Internet reach SSH (22); 2 interfaces use
            it, 1 public (sg-0f3a, eu-west-1)
1 of 6 checks (security-groups), 1 of 3 regions (eu-west-1), access keys older
than 90 days. security_check.py 2.0, rules of 2026-11-25
/audits/report.xls
"""),
    "first run": (first_run, """
AWS account 123456789012 (acme), 2026-11-23

                Evaluated Critical  High Medium   Low   New ACCEPTED NOT CHECKED
EC2-Classic             4        -     -      -     -     -        -           -
Security groups         4        1     -      -     -     -        -           -
Access keys             4        -     -      -     -     -        -           -
MFA                     4        -     -      1     -     -        -           -
CloudTrail              4        -     -      -     -     -        -           -
S3 ACLs                 4        -     -      -     -     -        -           -

2 findings (0 new, 0 resolved), everything was checked
First run with this state: nothing to compare with.
Worst:
  Critical  bastion: lets the whole Internet reach SSH (22); 2 interfaces use
            it, 1 public (sg-0f3a, eu-west-1)
  Medium    alice: signs in with a password alone, last on 2026-11-20
All 6 checks, all regions, access keys older than 90 days. security_check.py
2.0, rules of 2026-11-25
/audits/report.xls
"""),
    "quiet with news": (quiet_with_news, """
AWS account 123456789012 (acme), 2026-11-23

3 findings (1 new, 1 worse, 1 resolved), 1 NOT CHECKED
2026-10-23       4 findings  ████████████████████████████████████████
2026-11-23       4 findings  ████████████████████████████████████████
Worse:
  High      orders-db: lets the whole Internet reach PostgreSQL (5432); nothing
            uses it (sg-77aa, us-east-1) (was: Lets the whole Internet reach
            PostgreSQL (5432); 1 interface uses it)
New:
  Medium    alice: signs in with a password alone, last on 2026-11-20
Not checked:
  Security groups: AccessDenied: ec2 DescribeSecurityGroups (needs
            ec2:DescribeSecurityGroups): us-east-1
  Add to the policy: {"Effect": "Allow", "Action":
            ["ec2:DescribeSecurityGroups"], "Resource": "*"}
Resolved:
  Has no MFA device, and no console password (mfa/bob)

                Evaluated Critical  High Medium   Low   New ACCEPTED NOT CHECKED
EC2-Classic             4        -     -      -     -     -        -           -
Security groups         4        1     1      -     -     -        -           1
Access keys             4        -     -      -     -     -        -           -
MFA                     4        -     -      1     -     1        -           -
CloudTrail              4        -     -      -     -     -        -           -
S3 ACLs                 4        -     -      -     -     -        -           -

All 6 checks, all regions, access keys older than 90 days. security_check.py
2.0, rules of 2026-11-25
/audits/report.xls
"""),
    "organization": (organization, """
AWS organization of 123456789012, 2026-11-23

2 audited, 1 NOT CHECKED, 1 SUSPENDED

                                  Critical  High Medium   Low NOT CHECKED
888888888888 Archive of the old                               NOT CHECKED
123456789012 Production                  1     1      1     -           -
222222222222 Sandbox                     1     -      -     -           -
666666666666 Closed                                             SUSPENDED

4 findings, 1 NOT CHECKED
Worst:
  Critical  SSH (22) open to the whole Internet: 2 rules in 2 accounts
  High      PostgreSQL (5432) open to the whole Internet: 1 rule in 123456789012
            Production
  Medium    User with a console password, and without MFA: 1 user in
            123456789012 Production
Not checked:
  888888888888 Archive of the old company: AccessDenied: sts AssumeRole
            arn:aws:iam::888888888888:role/security-check (needs sts:AssumeRole,
            and a trust policy that lets us in)
  Add to the policy: {"Effect": "Allow", "Action": ["sts:AssumeRole"],
            "Resource": "*"}
All 6 checks, all regions, access keys older than 90 days. security_check.py
2.0, rules of 2026-11-25
/audits/overview.xls
"""),
}  # fmt: skip


@pytest.mark.parametrize("situation", SITUATIONS)
def test_what_is_printed(situation: str) -> None:
    printed, expected = SITUATIONS[situation]
    assert printed() == expected.strip("\n")


@pytest.mark.parametrize("situation", SITUATIONS)
def test_no_line_is_wider_than_a_terminal(situation: str) -> None:
    printed, _ = SITUATIONS[situation]
    assert max(map(len, printed().splitlines())) <= 80


def test_of_one_severity_the_worst_comes_first() -> None:
    """A group that nothing uses, before one with a public address in the order of the check."""
    unused = replace(BASTION, item="sg-1/TCP/22", cells={"Group name": "unused"}, priority=1)
    told = terminal_text(Overview.of_one(report([unused, BASTION], [NOTHING])))
    assert told.index("bastion: ") < told.index("unused: ")


def test_a_gap_is_told_with_its_reason_what_is_needed_and_the_statement_to_add() -> None:
    told = " ".join(gaps().split())
    assert "AccessDenied: ec2 DescribeSecurityGroups (needs ec2:DescribeSecurityGroups)" in told
    assert "us-east-1 and us-west-2" in told
    assert '"Action": ["ec2:DescribeSecurityGroups"]' in told


def test_quiet_begins_with_what_made_it_speak() -> None:
    told = quiet_with_news()
    places = [told.index(f"{title}:\n") for title in ("Worse", "New", "Not checked", "Resolved")]
    assert places == sorted(places)
    assert places[-1] < told.index("Critical  High")  # the numbers come after it
    assert "Worst:" not in told
    assert "bastion" not in told


def test_an_account_that_cannot_be_entered_is_told_whole() -> None:
    told = " ".join(organization().split())
    assert "role/security-check (needs sts:AssumeRole, and a trust policy that lets us in)" in told


def test_a_file_of_an_account_that_was_not_written_is_told() -> None:
    """It was counted as NOT CHECKED, and nothing said what it was."""
    why = "cannot write a.xls: No space left on device; the results are in /tmp/x"
    reports = [making.report(making.fine(), account=NUMBER, name="team", file_errors=[why])]
    reports += [making.report(making.fine(), account="999999999999")]
    told = " ".join(terminal_text(making.overview(*reports, multi_account=True)).split())
    assert "1 NOT CHECKED" in told
    assert f"Not checked: {NUMBER} team: {why}" in told


if __name__ == "__main__":
    for name, (printed, _) in SITUATIONS.items():
        print(f"=== {name}\n{printed()}\n")


def test_gaps_that_are_not_shown_are_counted() -> None:
    calls = [f"AccessDenied: ec2 Describe{n}" for n in range(15)]
    gaps = [making.not_checked(f"region-{n}", error=call) for n, call in enumerate(calls)]
    _, _, shown = terminal_text(Overview.of_one(making.report(*gaps))).partition("Not checked:")
    assert shown.count("AccessDenied") == 8
    assert "and 7 more" in shown
    assert "Add to the policy" in shown
