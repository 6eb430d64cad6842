"""What tests put into the script, by keyword, and what comes out of it as a person sees it.

Only here do tests know how the script spells the fields of a row, a result, a report, a day of
the history. Those of a row stand in `reading.a_row` and `reading.a_gap`, on which these build.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from conftest import Canned
from reading import CHECKS_BY_NAME, NOW, NUMBER, a_report, a_result, a_row

import security_check
from security_check import (
    FAILED,
    NOT_CHECKED,
    SEVERITIES,
    Acceptance,
    Account,
    AwsError,
    CheckResult,
    ControlFinding,
    ControlStatus,
    HistoryEntry,
    KnownFinding,
    Overview,
    Remediation,
    Report,
    Row,
)

Text = str | tuple[str, str, str]  # a sentence, or what stands before an item, it, and after it


# --- rows ------------------------------------------------------------------------------------


def fine(
    target: str = "eu-west-1", *, item: str = "", message: str = "Fine", cells: Any = None
) -> Row:
    """A row about something that is as it should be."""
    return a_row(target, item=item, cells=cells, message=message)


def finding(
    target: str = "eu-west-1",
    *,
    item: str = "",
    message: Text = "Bad",
    severity: str = "High",
    control: str = "",
    cells: Mapping[str, Any] | None = None,
    command: str = "",
    manual: str = "",
    controls: Iterable[ControlFinding] = (),
    first_seen: str = "",
    change: str = "",
    **more: Any,
) -> Row:
    """A row that a person should act on: `command` is that of the AWS CLI which does it,
    `manual` says what to do if there is none; `controls` are those that it fails."""
    return a_row(
        target,
        item=item,
        cells=cells,
        message=message,
        severity=severity,
        control=control,
        remediation=Remediation(command, manual),
        control_findings=tuple(controls),
        first_seen=first_seen,
        change=change,
        **more,
    )


def not_checked(
    target: str = "eu-west-1",
    *,
    item: str = "",
    error: str = "AccessDenied: ec2 DescribeInstances",
    cells: Mapping[str, Any] | None = None,
    controls: Iterable[ControlFinding] = (),
) -> Row:
    """A row about what AWS did not let us see."""
    return Row(
        target, item, {**(cells or {})}, error=aws_error(error), control_findings=tuple(controls)
    )


def accepted(row: Row, reason: str = "why not", *, until: str = "", expired: bool = False) -> Row:
    """The row with somebody's decision to live with it, which may be over."""
    ended = "expired" if expired else ""
    return replace(row, acceptance=acceptance(reason=reason, until=until), acceptance_ended=ended)


def acceptance(*, pattern: str = "*", until: str = "", reason: str = "why not") -> Acceptance:
    return Acceptance(pattern=pattern, until=until, reason=reason)


def aws_error(text: str) -> AwsError:
    """`AccessDenied: iam ListUsers` as the script holds it; more words are the detail."""
    code, _, call = text.partition(": ")
    service, operation, detail = [*call.split(" ", 2), "", "", ""][:3]
    return AwsError(code=code, service=service, operation=operation, detail=detail)


# --- controls --------------------------------------------------------------------------------


def control_finding(control: str, resource: str, status: str = FAILED) -> ControlFinding:
    return ControlFinding(control=control, resource=resource, status=status)


def control_words(found: Iterable[ControlFinding]) -> str:
    """`EC2.18 FAILED, EC2.54 NOT CHECKED`."""
    return ", ".join(f"{one.control} {one.status}" for one in found)


def control_status(status: str, evaluated: int = 0, failed: int = 0) -> ControlStatus:
    return ControlStatus(status=status, evaluated=evaluated, failed=failed)


def undecided(control: str, resource: str) -> ControlFinding:
    return control_finding(control, resource, NOT_CHECKED)


# --- results, reports, days ------------------------------------------------------------------


def check_result(
    check: str, *rows: Row, all_regions: bool = True, evaluated: Mapping[str, int] | None = None
) -> CheckResult:
    """What a check found, by the check's name; `evaluated` are numbers by control."""
    counts = Counter(evaluated or {})
    return a_result(check, rows, complete=all_regions, evaluated_by_control=counts)


def report(
    *rows: Row,
    check: str = "ec2-classic",
    results: Iterable[CheckResult] | None = None,
    account: str = NUMBER,
    name: str = "",
    home_region: str = "us-east-1",
    account_status: str = security_check.ACTIVE,
    error: AwsError | None = None,
    resolved: dict[str, KnownFinding] | None = None,
    history: Iterable[HistoryEntry] = (),
    controls: Mapping[str, ControlStatus] | None = None,
    **more: Any,
) -> Report:
    """The report of a run of one check that found these rows, or with these `results`."""
    return a_report(
        account=account,
        name=name,
        home_region=home_region,
        account_status=account_status,
        error=error,
        results=[a_result(check, rows)] if results is None else [*results],
        resolved=resolved,
        history=[*history],
        controls={**(controls or {})},
        **more,
    )


def overview(*reports: Report, multi_account: bool = False) -> Overview:
    """What the terminal and the workbook show of these reports."""
    one = Overview.of_one(reports[0])
    if not multi_account:
        return one
    scope = f"{len(reports)} accounts"
    return replace(one, reports=[*reports], multi_account=True, scope=scope)


def workbook_of(*reports: Report, multi_account: bool = False) -> bytes:
    """The workbook of one report, or that of several accounts."""
    return security_check.build_workbook(overview(*reports, multi_account=multi_account))


def known(first_seen: str, result: str = "Bad", **more: Any) -> KnownFinding:
    """What a state remembers of a finding."""
    return KnownFinding(first_seen, result, **more)


def history_entry(
    day: str,
    *,
    critical: int = 0,
    high: int = 0,
    medium: int = 0,
    low: int = 0,
    not_checked: int = 0,
    new: int = 0,
    days_open: Iterable[int] = (),
    remembered: int = 0,
) -> HistoryEntry:
    """A day of audits; `days_open` are those of each finding that was resolved."""
    found = dict(zip(SEVERITIES, (critical, high, medium, low), strict=True))
    return HistoryEntry(day, found, not_checked, new, tuple(days_open), remembered)


# --- what a check says -----------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """A row as a person sees it."""

    target: str
    id: str
    status: str
    result: str
    severity: str
    control: str
    cells: dict[str, Any]


def seen(rows: Iterable[Row]) -> list[Seen]:
    return [
        Seen(
            target=row.target,
            id=row.id,
            status=row.status,
            result=security_check.describe_result(row),
            severity=row.severity,
            control=row.control,
            cells=row.cells,
        )
        for row in rows
    ]


def controls_of(row: Row) -> tuple[ControlFinding, ...]:
    """What a row means for controls, which nobody sees."""
    return row.control_findings


def manual_of(row: Row) -> str:
    """What a row says is to be done by hand; blank where there is a command."""
    return row.remediation.manual


def run_check(
    name: str,
    aws: Account,
    *,
    regions: Iterable[str] = (),
    targets: Iterable[str] | None = None,
    threads: int | None = None,
) -> CheckResult:
    """What a run finds with a check, limited to some regions or over these targets; with one
    thread one target after another."""
    aws.only_regions = [*regions]
    check = CHECKS_BY_NAME[name]
    if targets is not None:
        names = [*targets]
        check = replace(check, targets=check.targets._replace(names=lambda aws: names))
    if threads is not None:
        check = replace(check, threads=threads)
    return security_check.run_check(check, aws, lambda text: None)


# --- what AWS answers about users ------------------------------------------------------------


def answer_summary(aws: Canned, *, mfa: int = 0, keys: int = 0, password: int | None = 1) -> None:
    """What IAM says of root; it may say nothing of a password."""
    summary = {"AccountMFAEnabled": mfa, "AccountAccessKeysPresent": keys}
    if password is not None:
        summary["AccountPasswordPresent"] = password
    aws.answer("iam", "GetAccountSummary", {"SummaryMap": summary})


def answer_users(aws: Canned, *names: str, more: str = "", **about: Any) -> None:
    """A page of users, of which `more` is the name of the next."""
    found = [
        {
            "UserName": name,
            "UserId": "AIDAEXAMPLE0000000001",
            "Path": "/team/",
            "Arn": f"arn:aws:iam::{NUMBER}:user/team/{name}",
            "CreateDate": NOW,
            **about,
        }
        for name in names
    ]
    page = {"IsTruncated": True, "Marker": more} if more else {"IsTruncated": False}
    aws.answer("iam", "ListUsers", {"Users": found, **page})
