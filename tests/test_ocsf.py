"""What --ocsf writes, read by a library that is not ours: py-ocsf-models."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from cloud import Cloud
from example import fill_organization

import security_check
from security_check import (
    CHECKS,
    CRITICAL,
    FINDING,
    LOW,
    NEW,
    Acceptance,
    AwsError,
    CheckResult,
    ControlFinding,
    KnownFinding,
    Message,
    Report,
    Row,
    main,
    to_ocsf,
)

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=timezone.utc)
NUMBER = "123456789012"
ARN = re.compile(r"arn:aws:(ec2|iam|s3|cloudtrail):[a-z0-9-]*:(\d{12})?:\S+|AWS::::Account:\d{12}")
CHECK = {one.name: one for one in CHECKS}
BASE = Row(
    "eu-west-1",
    "sg-1/TCP/22",
    {"Region": "eu-west-1", "Group ID": "sg-1", "Group name": "bastion"},
    Message("lets the whole Internet reach ", "SSH (22)"),
    CRITICAL,
    control_findings=(ControlFinding("EC2.19", "sg-1"), ControlFinding("EC2.53", "sg-1")),
    kind="SSH (22) open to the whole Internet",
    arn=f"arn:aws:ec2:eu-west-1:{NUMBER}:security-group/sg-1",
)
DECISION = Acceptance("*", "", "behind a firewall")
DENIED = AwsError("AccessDenied", "ec2", "DescribeSecurityGroups")


def events_of(report: Report) -> list[dict[str, Any]]:
    """The events of a report, each read by the library."""
    events = [json.loads(line) for line in to_ocsf([report]).splitlines()]
    for event in events:
        read(event)
    return events


def read(event: dict[str, Any]) -> Any:
    """The event as the library has it; it raises for what its schema does not have."""
    from py_ocsf_models.events.findings.compliance_finding import ComplianceFinding
    from py_ocsf_models.objects.cloud import Cloud as CloudObject

    CloudObject.model_validate(event["cloud"])
    return ComplianceFinding.model_validate(event)


def a_report(*rows: Row, **facts: Any) -> Report:
    results = [CheckResult(CHECK["security-groups"], [*rows])] if rows else []
    auditor = f"arn:aws:iam::{NUMBER}:user/auditor"
    return Report(
        NUMBER, NOW, auditor_arn=auditor, home_region="us-east-1", results=results, **facts
    )


@pytest.fixture(scope="module")
def organization(
    server: Cloud, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One run over the demo organization: its events, and its report as JSON."""
    folder = tmp_path_factory.mktemp("organization")
    server.reset()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        patch.chdir(folder)
        fill_organization(server)
        main(["--organization", "--ocsf", "f.ndjson", "--json", "r.json", "--output", "o.xls"])
    lines = (folder / "f.ndjson").read_text().splitlines()
    return [json.loads(line) for line in lines], json.loads((folder / "r.json").read_text())


def test_every_finding_and_gap_of_the_organization_is_a_compliance_finding(
    organization: tuple[list[dict[str, Any]], dict[str, Any]],
) -> None:
    events, report = organization
    rows = [
        f"{account['account']}/{row['id']}"
        for account in report["accounts"]
        for result in account["results"]
        for row in result["rows"]
        if row["status"] != "OK"
    ]
    errors = [f"{one['account']}/not-checked" for one in report["accounts"] if one["error"]]
    assert len(rows) > 80
    assert errors
    assert sorted(event["finding_info"]["uid"] for event in events) == sorted(rows + errors)
    for event in events:
        finding = read(event)
        assert finding.type_uid == finding.class_uid * 100 + finding.activity_id
        assert finding.time_dt is None
        assert finding.resources
        assert ARN.fullmatch(finding.resources[0].uid or ""), finding.resources[0].uid


def test_the_resource_of_a_finding_is_named_by_its_arn(
    organization: tuple[list[dict[str, Any]], dict[str, Any]],
) -> None:
    events, _ = organization
    kinds = {
        (event["metadata"]["event_code"], re.sub(r"[\w.-]+$", "*", one["uid"]))
        for event in events
        for one in event["resources"]
        if event["compliance"]["status"] == "Fail" and event["cloud"]["account"]["uid"] == NUMBER
    }
    assert {
        ("ec2-classic", f"arn:aws:ec2:eu-west-1:{NUMBER}:instance/*"),
        ("security-groups", f"arn:aws:ec2:eu-west-1:{NUMBER}:security-group/*"),
        ("access-keys", f"arn:aws:iam::{NUMBER}:*"),  # root
        ("access-keys", f"arn:aws:iam::{NUMBER}:user/*"),
        ("mfa", f"arn:aws:iam::{NUMBER}:user/*"),
        ("cloudtrail", f"arn:aws:cloudtrail:us-east-1:{NUMBER}:trail/*"),
        ("cloudtrail", "AWS::::Account:*"),  # no trail
        ("s3-acls", "arn:aws:s3:::*"),
    } <= kinds


STATUSES = {
    "without a state everything is new": (BASE, "New", "Create", "Fail"),
    "new with a state": (
        replace(BASE, first_seen="2026-11-23", change=NEW), "New", "Create", "Fail",
    ),
    "known": (replace(BASE, first_seen="2026-10-01"), "In Progress", "Update", "Fail"),
    "accepted": (
        replace(BASE, first_seen="2026-10-01", acceptance=DECISION),
        "Suppressed", "Update", "Fail",
    ),
    "not checked": (replace(BASE, severity="", error=DENIED), "New", "Create", "Warning"),
}  # fmt: skip


@pytest.mark.parametrize("situation", STATUSES)
def test_the_status_is_what_became_of_the_finding(situation: str) -> None:
    row, status, activity, compliance = STATUSES[situation]
    (event,) = events_of(a_report(row))
    said = event["status"], event["activity_name"], event["compliance"]["status"]
    assert said == (status, activity, compliance)


def test_what_was_resolved_is_closed() -> None:
    known = KnownFinding("2026-10-01", "Lets the whole Internet reach SSH (22)", severity=LOW)
    report = a_report(resolved={"security-groups/eu-west-1/sg-1/TCP/22": known})
    (event,) = events_of(report)
    assert (event["status"], event["activity_name"]) == ("Resolved", "Close")
    assert event["compliance"]["status"] == "Pass"
    assert event["finding_info"]["uid"] == f"{NUMBER}/security-groups/eu-west-1/sg-1/TCP/22"
    assert event["finding_info"]["first_seen_time"] == 1790812800000


def test_the_numbers_of_other_standards_stand_beside_the_control() -> None:
    (event,) = events_of(a_report(BASE))
    assert event["compliance"]["control"] == "EC2.19"
    assert event["compliance"]["requirements"][:2] == [
        "AWS Security Hub EC2.19",
        "AWS Security Hub EC2.53",
    ]
    standards = event["compliance"]["standards"]
    assert "CIS AWS Foundations Benchmark 5.0.0" in standards
    assert "PCI DSS 4.0.1" in standards


def test_a_finding_has_its_command_and_a_gap_what_is_needed() -> None:
    command = security_check.Remediation("aws ec2 revoke-security-group-ingress")
    finding, gap = events_of(
        a_report(replace(BASE, remediation=command), replace(BASE, severity="", error=DENIED))
    )
    assert finding["remediation"]["desc"] == command.command
    assert gap["remediation"]["desc"] == "(needs ec2:DescribeSecurityGroups)"


def test_an_account_that_could_not_be_opened_is_an_event() -> None:
    denied = AwsError("AccessDenied", "sts", "AssumeRole", "arn:aws:iam::123456789012:role/r")
    (event,) = events_of(a_report(error=denied))
    assert event["compliance"]["status"] == "Warning"
    assert "needs sts:AssumeRole" in event["message"]


def test_the_overview_of_reports_that_were_written_elsewhere_says_the_same(
    cloud: Cloud, tmp_path: Path
) -> None:
    """One run with --ocsf, and the merge of its JSON with --ocsf, have the same events."""
    main(["--ocsf", "one.ndjson", "--json", "runs/{account}.json", "--output", "o.xls"])
    main(["--merge", "runs", "--ocsf", "merged.ndjson", "--output", "m.xls"])
    one, merged = ((tmp_path / name).read_text() for name in ("one.ndjson", "merged.ndjson"))
    assert one
    assert [*map(json.loads, one.splitlines())] == [*map(json.loads, merged.splitlines())]


def test_standard_output_holds_nothing_else(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--ocsf", "-", "--output", "o.xls"])
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {event["class_uid"] for event in events} == {2003}


def test_json_and_ocsf_cannot_both_be_standard_output(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--ocsf", "-", "--json", "-"])
    assert stop.value.code == 2
    assert "cannot both be standard output" in capsys.readouterr().err
    assert cloud.layer.calls == []


def test_facts_are_numbers_and_truth_values(cloud: Cloud, tmp_path: Path) -> None:
    main(["--json", "r.json", "--output", "o.xls"])
    (account,) = json.loads((tmp_path / "r.json").read_text())["accounts"]
    rows = [row for result in account["results"] for row in result["rows"]]
    assert account["exit_code"] in (0, 1)
    assert sum(account["counts"].values()) == len(rows)
    assert account["counts"]["OK"] == sum(row["status"] == "OK" for row in rows)
    for row in rows:
        assert row["controls"] == [name for name in row["control"].split(", ") if name]
        assert all(type(fact) in (int, bool, str, type(None)) for fact in row["facts"].values())
    assert any(row["status"] == FINDING for row in rows)
