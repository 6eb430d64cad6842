"""What tests put into the script, by keyword, and what comes out of it as a person sees it.

Only here do tests know how the script spells the fields of a row, a result, a report, a day of
the history. Those of a row stand in `reading.a_row` and `reading.a_gap`, on which these build.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cloud import Cloud
from conftest import Canned, enter
from reading import CHECKS_BY_NAME, NOW, NUMBER, a_gap, a_report, a_row, a_sheet

import security_check
from security_check import (
    FAILED,
    NOT_CHECKED,
    SEVERITIES,
    Acceptance,
    Account,
    Day,
    Judged,
    Report,
    Row,
    Sheet,
    Unanswered,
    Verdict,
)

Text = str | tuple[str, str, str]  # a sentence, or what stands before an item, it, and after it


# --- rows ------------------------------------------------------------------------------------


def fine(
    target: str = "eu-west-1", *, item: str = "", message: str = "Fine", cells: Any = None
) -> Row:
    """A row about something that is as it should be."""
    return a_row(target, part=item, cells=cells, result=message)


def finding(
    target: str = "eu-west-1",
    *,
    item: str = "",
    message: Text = "Bad",
    severity: str = "High",
    control: str = "",
    cells: Mapping[str, Any] | None = None,
    command: tuple[str, ...] = (),
    manual: str = "",
    controls: Iterable[Verdict] = (),
    first_seen: str = "",
    new: bool = False,
) -> Row:
    """A row that a person should act on: `command` are the words of the AWS CLI that do it,
    `manual` says what to do where there is none; `controls` are what it means for them."""
    parts = {} if isinstance(message, str) else {"brief": message}
    return a_row(
        target,
        part=item,
        cells=cells,
        result="".join(message),
        severity=severity,
        control=control,
        mend=command or manual,
        verdicts=tuple(controls),
        first_seen=first_seen,
        new=new,
        **parts,
    )


def not_checked(
    target: str = "eu-west-1",
    *,
    item: str = "",
    error: str = "AccessDenied: ec2 DescribeInstances",
    cells: Mapping[str, Any] | None = None,
    controls: Iterable[Verdict] = (),
) -> Row:
    """A row about what AWS did not let us look at."""
    why = aws_error(error)
    row = a_gap(
        target,
        part=item,
        cells=cells,
        code=why.code,
        service=why.service,
        operation=why.operation,
        detail=why.detail,
    )
    return replace(row, verdicts=tuple(controls))


def accepted(row: Row, reason: str = "why not", *, until: str = "", expired: bool = False) -> Row:
    """The row with somebody's decision to live with it, which may be over."""
    return replace(row, acceptance=acceptance(reason=reason, until=until), lapsed=expired)


def acceptance(*, pattern: str = "*", until: str = "", reason: str = "why not") -> Acceptance:
    return Acceptance(pattern=pattern, until=until, reason=reason)


def aws_error(text: str) -> Unanswered:
    """`AccessDenied: iam ListUsers` as the script holds it; more words are the detail."""
    code, _, call = text.partition(": ")
    service, operation, detail = [*call.split(" ", 2), "", "", ""][:3]
    return Unanswered(code=code, service=service, operation=operation, detail=detail)


# --- controls --------------------------------------------------------------------------------


def control_finding(control: str, resource: str, status: str = FAILED) -> Verdict:
    return Verdict(control=control, resource=resource, word=status)


def control_words(found: Iterable[Verdict]) -> str:
    """`EC2.18 FAILED, EC2.54 NOT CHECKED`"""
    return ", ".join(f"{one.control} {one.word}" for one in found)


def control_status(status: str, evaluated: int = 0, failed: int = 0) -> Judged:
    return Judged(verdict=status, looked_at=evaluated, failed=failed)


def undecided(control: str, resource: str) -> Verdict:
    return control_finding(control, resource, NOT_CHECKED)


# --- results, reports, days ------------------------------------------------------------------


def check_result(
    check: str, *rows: Row, all_regions: bool = True, evaluated: Mapping[str, int] | None = None
) -> Sheet:
    """What a check found, by the check's name; `evaluated` are numbers by control."""
    return a_sheet(check, rows, whole=all_regions, looked_at=Counter(evaluated or {}))


def report(
    *rows: Row,
    check: str = "ec2-classic",
    results: Iterable[Sheet] | None = None,
    account: str = NUMBER,
    name: str = "",
    home_region: str = "us-east-1",
    account_status: str = security_check.ACTIVE,
    error: Unanswered | None = None,
    resolved: dict[str, dict[str, str]] | None = None,
    history: Iterable[Day] = (),
    controls: Mapping[str, Judged] | None = None,
) -> Report:
    """The report of a run of one check that found these rows, or with these `results`."""
    return a_report(
        number=account,
        name=name,
        home=home_region,
        state=account_status,
        error=error,
        sheets=[a_sheet(check, rows)] if results is None else [*results],
        gone=resolved,
        history=[*history],
        judged={**(controls or {})},
    )


def workbook_of(*reports: Report, multi_account: bool = False) -> bytes:
    """The workbook of one report, or that of several accounts."""
    alone = security_check.alone(reports[0])
    if not multi_account:
        return security_check.book_of(alone)
    return security_check.book_of(
        replace(alone, reports=[*reports], several=True, of=f"{len(reports)} accounts")
    )


def known(first_seen: str, result: str = "Bad") -> dict[str, str]:
    """What a state remembers of a finding."""
    return {"first_seen": first_seen, "result": result}


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
) -> Day:
    """A day of audits; `days_open` are those of each finding that was resolved."""
    found = dict(zip(SEVERITIES, (critical, high, medium, low), strict=True))
    return Day(day=day, found=found, not_checked=not_checked, new=new, stood=[*days_open])


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
            result=security_check.result_words(row),
            severity=row.severity,
            control=row.control,
            cells=row.cells,
        )
        for row in rows
    ]


def controls_of(row: Row) -> tuple[Verdict, ...]:
    """What a row means for controls, which nobody sees."""
    return row.verdicts


def manual_of(row: Row) -> str:
    """What a row says is to be done by hand; blank where there is a command."""
    return row.mend if isinstance(row.mend, str) else ""


def run_check(
    name: str,
    aws: Account,
    *,
    regions: Iterable[str] = (),
    targets: Iterable[str] | None = None,
    threads: int | None = None,
) -> Sheet:
    """What a run finds with a check, limited to some regions or over these targets; with one
    thread one target after another."""
    aws.only = [*regions]
    check = CHECKS_BY_NAME[name]
    if targets is not None:
        check = replace(check, over=_these(targets))
    if threads is not None:
        check = replace(check, threads=threads)
    return security_check.run_check(check, aws, lambda text: None)


def _these(targets: Iterable[str]) -> Callable[[Account], Iterable[str]]:
    return lambda aws: [*targets]


@contextmanager
def in_an_account(server: Cloud, folder: Path) -> Iterator[Cloud]:
    """What the fixture `cloud` is to a test, for runs that several tests only read. An error of
    ours fails them all."""

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("internal error")

    with pytest.MonkeyPatch.context() as patch:
        server.reset()
        enter(server, patch, folder)
        patch.setattr("traceback.print_exc", fail)
        yield server


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
