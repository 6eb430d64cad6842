"""Security Hub's controls: decided by its rules, and PASSED only where everything was read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cloud import Cloud, Fault
from conftest import Canned, in_an_account
from example import fill
from making import (
    accepted,
    aws_error,
    check_result,
    control_finding,
    control_status,
    control_words,
    controls_of,
    finding,
    not_checked,
    report,
    undecided,
)
from reading import CHECKS_BY_NAME, NOW, NUMBER, read_accounts, read_cells, read_sheet

from security_check import (
    ACCEPTED,
    CHECKS,
    FAILED,
    NOT_CHECKED,
    PASSED,
    ROOT,
    SEVERITIES,
    Control,
    ControlFinding,
    ControlStatus,
    PortRange,
    Report,
    Row,
    check_access_keys,
    evaluate_control,
    failed_group_controls,
    main,
    merge_statuses,
)

Controls = dict[str, tuple[str, int, int]]
DENIED = aws_error("AccessDenied: iam ListAccessKeys")
CONTROLS: dict[str, Control] = {
    name: control for check in CHECKS for name, control in check.controls.items()
}


def test_every_control_is_decided_by_one_check_and_has_a_requirement_of_its_own() -> None:
    assert sum(len(check.controls) for check in CHECKS) == len(CONTROLS) == 16
    assert len({control.requirement for control in CONTROLS.values()}) == len(CONTROLS)
    assert {control.severity for control in CONTROLS.values()} <= {*SEVERITIES}


SSH = ("EC2.19", "EC2.13", "EC2.18", "EC2.53")  # the most severe first


@pytest.mark.parametrize(
    ("protocol", "first", "last", "cidrs", "failed"),
    [
        pytest.param("TCP", 22, 22, ["0.0.0.0/0"], SSH, id="SSH"),
        pytest.param("TCP", 22, 22, ["10.0.0.0/0"], SSH, id="SSH, with host bits"),
        pytest.param(
            "TCP", 22, 22, ["::/0"], ("EC2.19", "EC2.13", "EC2.18", "EC2.54"), id="SSH over IPv6"
        ),
        pytest.param(
            *("TCP", 3389, 3389, ["0.0.0.0/0", "::/0"]),
            ("EC2.19", "EC2.14", "EC2.18", "EC2.53", "EC2.54"),
            id="RDP",
        ),
        pytest.param("TCP", 20, 25, ["0.0.0.0/0"], SSH, id="a range that has SSH in it"),
        pytest.param("UDP", 53, 53, ["0.0.0.0/0"], ("EC2.18",), id="DNS"),
        pytest.param("TCP", 3306, 3306, ["0.0.0.0/0"], ("EC2.19", "EC2.18"), id="MySQL"),
        pytest.param(
            *("ALL", None, None, ["0.0.0.0/0"]),
            ("EC2.19", "EC2.13", "EC2.14", "EC2.18", "EC2.53"),
            id="all ports",
        ),
        pytest.param("UDP", 443, 443, ["0.0.0.0/0"], ("EC2.18",), id="HTTPS over UDP"),
        pytest.param("TCP", 80, 443, ["0.0.0.0/0"], ("EC2.19", "EC2.18"), id="from 80 to 443"),
    ],
)
def test_a_rule_fails_controls(
    protocol: str, first: int | None, last: int | None, cidrs: list[str], failed: Sequence[str]
) -> None:
    assert tuple(failed_group_controls(PortRange(protocol, first, last), cidrs)) == failed


@pytest.mark.parametrize(
    ("protocol", "port", "cidrs"),
    [
        pytest.param("TCP", 443, ["0.0.0.0/0"], id="HTTPS"),
        pytest.param("TCP", 80, ["::/0"], id="HTTP"),
        pytest.param("ICMP", 8, ["0.0.0.0/0"], id="ICMP has no ports"),
        pytest.param("GRE", None, ["0.0.0.0/0"], id="nor has GRE"),
        pytest.param("TCP", 22, ["0.0.0.0/1", "128.0.0.0/1"], id="an Internet in pieces is ours"),
        pytest.param("TCP", 22, ["0.0.0.0/1"], id="so is half of it"),
        pytest.param("TCP", 22, [], id="nobody"),
    ],
)
def test_a_rule_fails_nothing(protocol: str, port: int | None, cidrs: list[str]) -> None:
    assert failed_group_controls(PortRange(protocol, port, port), cidrs) == []


@pytest.mark.parametrize(
    ("age", "status", "fails"),
    [(90, "Active", False), (91, "Active", True), (91, "Inactive", False)],
)
def test_the_age_of_a_key_that_the_control_asks_about(age: int, status: str, fails: bool) -> None:
    aws = Canned(max_key_age=400)
    made = {"CreateDate": NOW - timedelta(days=age), "Status": status}
    key = {"AccessKeyId": "AKIAEXAMPLE000000001", **made}
    aws.answer("iam", "ListAccessKeys", {"AccessKeyMetadata": [key]})
    (row,) = check_access_keys(aws, "alice")
    # a longer --max-key-age decides nothing about it
    assert control_words(controls_of(row)) == ("IAM.3 NOT CHECKED" if fails else "")
    assert {one.resource for one in controls_of(row)} <= {"AKIAEXAMPLE000000001"}


def fails(control: str, resource: str) -> Row:
    return finding(resource, item="x", controls=[control_finding(control, resource)])


def unread(target: str, *controls: ControlFinding) -> Row:
    return not_checked(target, error=str(DENIED), controls=controls)


def lost(*controls: ControlFinding) -> Row:
    """A part of a user that could not be read."""
    return not_checked("a", item="x", error=str(DENIED), controls=controls)


UNDECIDED = finding("b", item="x", severity="Low", controls=[undecided("IAM.3", "b")])


@pytest.mark.parametrize(
    ("rows", "status", "failed"),
    [
        pytest.param([], PASSED, 0, id="nothing"),
        pytest.param([finding("a", message="Old", severity="Low")], PASSED, 0, id="only ours"),
        pytest.param([fails("IAM.4", ROOT)], PASSED, 0, id="another control"),
        pytest.param([fails("IAM.3", "a")], FAILED, 1, id="one"),
        pytest.param(
            [fails("IAM.3", "a"), fails("IAM.3", "a"), fails("IAM.3", "b")],
            FAILED,
            2,
            id="a thing counts once",
        ),
        pytest.param([unread("a")], NOT_CHECKED, 0, id="NOT CHECKED beats a pass"),
        pytest.param([UNDECIDED], NOT_CHECKED, 0, id="not decided beats a pass"),
        pytest.param(
            [unread("a"), fails("IAM.3", "b")], FAILED, 1, id="a failure beats NOT CHECKED"
        ),
        pytest.param([unread(ROOT)], PASSED, 0, id="NOT CHECKED about something else"),
        pytest.param([accepted(fails("IAM.3", "a"))], ACCEPTED, 1, id="accepted"),
        pytest.param(
            [accepted(fails("IAM.3", "a"), expired=True)], FAILED, 1, id="its acceptance expired"
        ),
        pytest.param([accepted(unread("a"))], ACCEPTED, 0, id="accepted NOT CHECKED"),
        pytest.param(
            [unread("a"), accepted(fails("IAM.3", "b"))],
            NOT_CHECKED,
            1,
            id="NOT CHECKED beats what is accepted",
        ),
        pytest.param([lost()], PASSED, 0, id="a part that no control is about"),
        pytest.param([lost(undecided("IAM.3", "a"))], NOT_CHECKED, 0, id="a part that it is about"),
    ],
)
def test_a_control_about_each_key(rows: list[Row], status: str, failed: int) -> None:
    found = check_result("access-keys", *rows, evaluated={"IAM.3": 5})
    assert evaluate_control(found, "IAM.3") == control_status(status, evaluated=5, failed=failed)


def test_some_regions_do_not_make_a_pass() -> None:
    found = check_result("security-groups", all_regions=False, evaluated={"EC2.13": 5})
    assert evaluate_control(found, "EC2.13") == control_status(NOT_CHECKED, evaluated=5)


@pytest.mark.parametrize(
    ("rows", "evaluated", "status"),
    [
        pytest.param([], 1, control_status(PASSED, 1), id="root has none"),
        pytest.param([unread("alice")], 1, control_status(PASSED, 1), id="a user is NOT CHECKED"),
        pytest.param([unread(ROOT)], 0, control_status(NOT_CHECKED), id="root is NOT CHECKED"),
        pytest.param(
            [accepted(unread(ROOT))], 0, control_status(ACCEPTED), id="accepted NOT CHECKED"
        ),
        pytest.param([], 0, control_status(NOT_CHECKED), id="nobody looked"),
        pytest.param([fails("IAM.4", ROOT)], 1, control_status(FAILED, 1, 1), id="root has one"),
    ],
)
def test_a_control_about_root(rows: list[Row], evaluated: int, status: ControlStatus) -> None:
    found = check_result("access-keys", *rows, evaluated={"IAM.4": evaluated})
    assert evaluate_control(found, "IAM.4") == status


NO_TRAIL = fails("CloudTrail.1", NUMBER)


@pytest.mark.parametrize(
    ("rows", "evaluated", "status"),
    [
        pytest.param([unread("x")], 3, control_status(PASSED, 1), id="proof elsewhere"),
        pytest.param([unread("<account>")], 0, control_status(NOT_CHECKED), id="no proof"),
        pytest.param(
            [NO_TRAIL, NO_TRAIL, unread("x")],
            2,
            control_status(FAILED, 1, 1),
            id="one region shows that there is none",
        ),
    ],
)
def test_a_control_about_the_account(
    rows: list[Row], evaluated: int, status: ControlStatus
) -> None:
    found = check_result("cloudtrail", *rows, evaluated={"CloudTrail.1": evaluated})
    assert evaluate_control(found, "CloudTrail.1") == status


def of_an_account(status: str, **facts: Any) -> Report:
    """The report of an account in which five keys were evaluated, unless there is no status."""
    known = control_status(status, evaluated=5, failed=int(status == FAILED))
    return report(results=[], controls={"IAM.3": known} if status else {}, **facts)


@pytest.mark.parametrize(
    ("reports", "status"),
    [
        pytest.param(
            [of_an_account(PASSED), of_an_account(FAILED), of_an_account(NOT_CHECKED)],
            control_status(FAILED, 15, 1),
            id="a failure",
        ),
        pytest.param(
            [of_an_account(PASSED), of_an_account(NOT_CHECKED)],
            control_status(NOT_CHECKED, 10),
            id="NOT CHECKED",
        ),
        pytest.param(
            [of_an_account(PASSED), of_an_account("", error=DENIED)],
            control_status(NOT_CHECKED, 5),
            id="an account that could not be opened",
        ),
        pytest.param(
            [of_an_account(PASSED), of_an_account("", account_status="SUSPENDED")],
            control_status(PASSED, 5),
            id="a suspended account",
        ),
        pytest.param(
            [of_an_account(PASSED), of_an_account(ACCEPTED)],
            control_status(ACCEPTED, 10),
            id="accepted",
        ),
    ],
)
def test_the_status_over_accounts(reports: list[Report], status: ControlStatus) -> None:
    assert merge_statuses(reports) == {"IAM.3": status}


# --- end to end --------------------------------------------------------------------------------


def audit(*options: str) -> int:
    return main(["--json", "x.json", "--output", "x.xls", *options])


def controls() -> Controls:
    """Status, evaluated and failed as the JSON says; the sheet says the same."""
    ((_, account),) = read_accounts("x.json").items()
    found = {
        name: (one["status"], one["evaluated"], one["failed"])
        for name, one in account["controls"].items()
    }
    shown = read_sheet("x.xls", "Controls")
    assert found == {
        one["Control"]: (one["Status"], one["Evaluated"], one["Failed"]) for one in shown
    }
    titles = {name: check.title for check in CHECKS for name in check.controls}
    links = {one["Control"].value: one["Sheet"].link for one in read_cells("x.xls", "Controls")}
    assert links == {name: f"#'{titles[name]}'!A1" for name in found}
    for one in shown:
        control = CONTROLS[one["Control"]]
        assert one["Sheet"] == titles[one["Control"]]
        assert (one["Requirement"], one["Severity"]) == (control.requirement, control.severity)
        numbers = one["CIS 5.0.0"], one["CIS 3.0.0"], one["PCI DSS 4.0.1"]
        assert numbers == (control.cis_5, control.cis_3, control.pci)
    return found


@pytest.fixture(scope="class")
def example(server: Cloud, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Controls]:
    """The controls of the example account: as they are, with a maximum age of ours, and with
    all findings about keys accepted."""
    found = {}
    with in_an_account(server, tmp_path_factory.mktemp("example")) as cloud:
        fill(cloud)
        audit()
        found["as it is"] = controls()
        audit("--max-key-age", "9999", "--check", "access-keys")
        found["an age of ours"] = controls()
        Path("accept.txt").write_text("access-keys/* # known\n")
        audit("--accept", "accept.txt", "--check", "access-keys")
        found["accepted"] = controls()
    return found


class TestExampleAccount:
    """Of one run of each kind."""

    def test_the_controls_of_the_example_account(self, example: dict[str, Controls]) -> None:
        assert example["as it is"] == {
            "EC2.13": (FAILED, 22, 2),
            "EC2.14": (FAILED, 22, 1),  # the other is open in two halves, which no control counts
            "EC2.18": (FAILED, 22, 9),
            "EC2.19": (FAILED, 22, 5),
            "EC2.53": (FAILED, 22, 2),
            "EC2.54": (FAILED, 22, 1),
            "IAM.3": (FAILED, 9, 3),
            "IAM.4": (FAILED, 1, 1),
            "IAM.5": (FAILED, 8, 3),
            "IAM.9": (FAILED, 1, 1),
            "IAM.19": (FAILED, 14, 9),
            "CloudTrail.1": (FAILED, 1, 1),
            "CloudTrail.4": (FAILED, 2, 1),
            "S3.2": (FAILED, 10, 4),
            "S3.3": (FAILED, 10, 2),
            "S3.12": (FAILED, 10, 6),
        }

    def test_a_longer_age_of_ours_does_not_make_it_pass(self, example: dict[str, Controls]) -> None:
        assert example["an age of ours"] == {"IAM.3": (NOT_CHECKED, 9, 0), "IAM.4": (FAILED, 1, 1)}

    def test_a_failure_that_somebody_accepted(self, example: dict[str, Controls]) -> None:
        assert example["accepted"] == {"IAM.3": (ACCEPTED, 9, 3), "IAM.4": (ACCEPTED, 1, 1)}


def test_what_is_denied_is_not_passed(cloud: Cloud) -> None:
    cloud.layer.summary = {"AccountMFAEnabled": 1, "AccountAccessKeysPresent": 0}
    cloud.client("iam").create_user(UserName="alice")
    cloud.layer.faults = [
        Fault("UnauthorizedOperation", "ec2", "DescribeSecurityGroups", "us-west-2"),
        Fault("AccessDenied", "iam", "ListAccessKeys"),
    ]
    audit()
    found = controls()
    assert {found[name][0] for name in CHECKS_BY_NAME["security-groups"].controls} == {NOT_CHECKED}
    assert found["IAM.3"] == (NOT_CHECKED, 0, 0)
    assert found["IAM.4"] == (PASSED, 1, 0)
    assert found["IAM.9"] == (PASSED, 1, 0)
    assert found["IAM.5"] == (PASSED, 0, 0)
    assert found["IAM.19"] == (FAILED, 1, 1)


def test_a_public_policy_decides_neither_reading_nor_writing(cloud: Cloud) -> None:
    s3 = cloud.client("s3")
    s3.create_bucket(Bucket="open-by-policy")
    everyone = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": "*"}
    s3.put_bucket_policy(Bucket="open-by-policy", Policy=json.dumps({"Statement": [everyone]}))
    audit("--check", "s3-acls")
    undecided = (NOT_CHECKED, 1, 0)
    assert controls() == {"S3.2": undecided, "S3.3": undecided, "S3.12": (PASSED, 1, 0)}
    s3.put_public_access_block(
        Bucket="open-by-policy", PublicAccessBlockConfiguration={"RestrictPublicBuckets": True}
    )
    audit("--check", "s3-acls")
    assert {word for word, _, _ in controls().values()} == {PASSED}


def test_a_region_that_is_denied_may_have_trails_of_its_own(cloud: Cloud) -> None:
    cloud.client("s3").create_bucket(Bucket="logs")
    trails = cloud.client("cloudtrail")
    about: Any = {"S3BucketName": "logs", "EnableLogFileValidation": True}
    trails.create_trail(Name="main", IsMultiRegionTrail=True, **about)
    trails.start_logging(Name="main")
    cloud.layer.faults = [
        Fault("AccessDeniedException", "cloudtrail", "DescribeTrails", "us-west-2")
    ]
    assert audit("--check", "cloudtrail") == 3
    assert controls() == {"CloudTrail.1": (PASSED, 1, 0), "CloudTrail.4": (NOT_CHECKED, 1, 0)}
