"""The report as JSON: it is read back the same, and what is damaged is said to be."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import date, timezone
from pathlib import Path
from typing import Any

import making
import pytest
from cloud import DEFAULT_ACCOUNT_ID, Cloud
from conftest import Clock, audited
from example import fill
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import read_report

from security_check import (
    ACTIVE,
    CHECKS,
    CONTROL_STATUSES,
    FAILED,
    NOT_CHECKED,
    SEVERITIES,
    Acceptance,
    AwsError,
    CannotRun,
    CheckResult,
    ControlFinding,
    ControlStatus,
    HistoryEntry,
    KnownFinding,
    LocalFile,
    Message,
    Question,
    Remediation,
    Report,
    Row,
    build_workbook,
    main,
    reports_from_json,
    terminal_text,
    to_json,
)

FILE = LocalFile(Path("x.json"))  # for messages
CONTROLS = [name for check in CHECKS for name in check.controls]

TEXT = st.text(max_size=9)
ARN = st.just("") | TEXT.map(lambda text: f"arn:aws:iam::123456789012:{text}")
DAYS = st.dates(date(2000, 1, 1), date(2999, 12, 31)).map(str)
NO_DAY_OR_ONE = st.one_of(st.just(""), DAYS)
MOMENTS = st.datetimes(timezones=st.just(timezone.utc))
ERRORS = st.builds(AwsError, code=TEXT, service=TEXT, operation=TEXT, detail=TEXT)
ACCEPTANCES = st.builds(Acceptance, pattern=TEXT, until=TEXT, reason=TEXT)
COUNTS = st.integers(0, 1000)
INTEGERS = st.integers(-(10**15) + 1, 10**15 - 1)
WORDS = st.frozensets(TEXT, max_size=3)
SEVERITY = st.sampled_from(["", *SEVERITIES])
CELLS = st.one_of(TEXT, INTEGERS, st.booleans(), st.none(), MOMENTS)
CONTROL_FINDINGS = st.builds(
    ControlFinding,
    control=st.sampled_from(CONTROLS),
    resource=TEXT,
    status=st.sampled_from([FAILED, NOT_CHECKED]),
)
ROWS = st.builds(
    Row,
    target=TEXT,
    item=TEXT,
    cells=st.dictionaries(TEXT, CELLS),
    message=st.builds(Message, before=TEXT, item=TEXT, after=TEXT),
    severity=SEVERITY,
    control_findings=st.lists(CONTROL_FINDINGS, max_size=2).map(tuple),
    error=st.one_of(st.none(), ERRORS),
    remediation=st.builds(Remediation, command=TEXT, manual=TEXT),
    extent=WORDS,
    resource=TEXT,
    fully_read=st.booleans(),
    acceptance=st.one_of(st.none(), ACCEPTANCES),
    acceptance_ended=TEXT,
    first_seen=NO_DAY_OR_ONE,
    change=TEXT,
    was=TEXT,
    kind=TEXT,
    priority=COUNTS,
    arn=ARN,
    facts=st.dictionaries(TEXT, st.one_of(TEXT, INTEGERS, st.booleans(), st.none())),
)
KNOWN = st.builds(
    KnownFinding,
    first_seen=DAYS,
    result=TEXT,
    target=TEXT,
    severity=SEVERITY,
    control=TEXT,
    extent=WORDS,
    resource=TEXT,
    accepted=st.booleans(),
    worse_since=NO_DAY_OR_ONE,
    was=TEXT,
)
HISTORY = st.builds(
    HistoryEntry,
    day=DAYS,
    open=st.fixed_dictionaries(dict.fromkeys(SEVERITIES, COUNTS)),
    not_checked=COUNTS,
    new=COUNTS,
    days_open=st.lists(COUNTS).map(tuple),
    remembered=COUNTS,
)
RESULTS = st.builds(
    CheckResult,
    check=st.sampled_from(CHECKS),
    rows=st.lists(ROWS, max_size=3),
    complete=st.booleans(),
    evaluated=COUNTS,
)
QUESTIONS = st.builds(
    Question,
    checks=st.lists(TEXT),
    regions=st.lists(TEXT),
    max_key_age=COUNTS,
    version=TEXT,
    excluded_regions=st.lists(TEXT),
    accounts=st.lists(TEXT),
    excluded_accounts=st.lists(TEXT),
    fail_on=st.sampled_from(SEVERITIES),
    rules=TEXT,
)
STATUSES = st.builds(
    ControlStatus, status=st.sampled_from(CONTROL_STATUSES), evaluated=COUNTS, failed=COUNTS
)
REPORTS = st.builds(
    Report,
    account=TEXT,
    started=MOMENTS,
    name=TEXT,
    account_status=st.one_of(st.just(ACTIVE), TEXT),
    error=st.one_of(st.none(), ERRORS),
    profile=TEXT,
    error_acceptance=st.one_of(st.none(), ACCEPTANCES),
    file_errors=st.lists(TEXT, max_size=2),
    auditor_arn=ARN,
    home_region=TEXT,
    question=st.one_of(st.none(), QUESTIONS),
    aliases=st.lists(TEXT),
    regions=st.one_of(st.lists(TEXT), ERRORS),
    enabled_regions=COUNTS,
    seconds=st.floats(0, 10_000),
    workbook=TEXT,
    results=st.lists(RESULTS, max_size=2),
    controls=st.dictionaries(st.sampled_from(CONTROLS), STATUSES),
    first_run=st.booleans(),
    resolved=st.one_of(st.none(), st.dictionaries(TEXT, KNOWN, max_size=2)),
    history=st.lists(HISTORY, max_size=2),
).filter(lambda report: bool(report.results or report.error) or report.account_status != ACTIVE)


def test_every_field_of_a_report_is_varied() -> None:
    """A field that is not given above would have its default in every example."""
    varied = {
        Report: REPORTS, CheckResult: RESULTS, Row: ROWS, HistoryEntry: HISTORY,
        KnownFinding: KNOWN, Question: QUESTIONS, ControlStatus: STATUSES,
    }  # fmt: skip
    internal: dict[type, set[str]] = {
        CheckResult: {"regions", "failed_targets", "targets_complete", "evaluated_by_control"}
    }
    for kind, strategy in varied.items():
        names = kind._fields if hasattr(kind, "_fields") else [one.name for one in fields(kind)]
        told = {name for name in names if f"{name}=" in repr(strategy)}
        assert {*names} - internal.get(kind, set()) - told == set(), kind


def facts(report: Report) -> list[Any]:
    """All of a report, also what does not count where two rows are compared."""
    rows = report.rows()
    return [report, [(one.remediation, one.kind, one.priority, one.arn, one.facts) for one in rows]]


def read_back(report: Report) -> Report:
    """The report after it was written and read."""
    (again,) = reports_from_json(to_json([report]), FILE)
    return again


@settings(max_examples=100, deadline=None)
@given(REPORTS)
def test_a_report_that_was_written_is_read_back_the_same(report: Report) -> None:
    assert facts(read_back(report)) == facts(report)


def test_the_report_of_the_demo_is_read_back_the_same(cloud: Cloud, clock: Clock) -> None:
    fill(cloud)
    Path("accept.txt").write_text("*/eu-west-1/* # known\nmfa/* until 2020-01-01 # over\n")
    given = ["--state", "state.json", "--accept", "accept.txt"]
    clock.set("2030-08-01")
    main([*given, "--output", "x.xls"])
    cloud.client("iam").create_user(UserName="new")
    cloud.client("iam").delete_user(UserName="erin.novak")
    clock.set("2030-09-01")
    report = audited(*given)
    assert report.rows("ACCEPTED")
    assert report.history
    assert report.resolved
    assert any(row.acceptance_ended for row in report.rows())
    assert any(row.new for row in report.rows())
    assert facts(read_back(report)) == facts(report)
    assert read_back(report).exit_code() == report.exit_code()


def leaves(document: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to everything that a document holds, the first few of a list alone."""
    if at:
        yield at
    inner: Any = document.items() if isinstance(document, dict) else ()
    inner = enumerate(document[:2]) if isinstance(document, list) else inner
    for name, value in inner:
        yield from leaves(value, (*at, name))


def can_be_shown(*reports: Report) -> bool:
    """Whether the terminal and the workbook show the reports."""
    shown = making.overview(*reports, multi_account=True)
    try:
        return bool(build_workbook(shown) and terminal_text(shown))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return False


ODDS: list[Any] = [None, 5, -1.5, float("inf"), "", "x", [], ["x"], {}, {"x": "y"}, True, [[]]]


def test_what_is_damaged_is_said_to_be_and_breaks_nothing(cloud: Cloud) -> None:
    """One of two reports is damaged, in every place: the other is read all the same."""
    cloud.client("iam").create_user(UserName="alice")
    Path("accept.txt").write_text("mfa/alice # known\n")
    files = ["--json", "x.json", "--output", "x.xls", "--state", "state.json"]
    main([*files, "--accept", "accept.txt", "--check", "mfa", "--check", "access-keys"])
    (report,) = reports_from_json(Path("x.json").read_bytes(), FILE)
    results = [
        replace(one, rows=sorted(one.rows, key=lambda row: not row.acceptance)[:1])
        for one in report.results
    ]
    assert any(row.acceptance for one in results for row in one.rows)
    other = making.report(account="111111111111", account_status="SUSPENDED", results=())
    whole = read_report(to_json([replace(report, results=results), other]))
    assert not any(one.error for one in reports_from_json(json.dumps(whole).encode(), FILE))
    refused, accepted = 0, dict[tuple[Any, ...], Report]()
    for way in leaves(whole):
        if way[:2] == ("accounts", 1):
            continue
        for odd in ODDS:
            document = copy.deepcopy(whole)
            place = document
            for name in way[:-1]:
                place = place[name]
            place[way[-1]] = odd
            try:
                reports = reports_from_json(json.dumps(document).encode(), FILE)
            except CannotRun as why:
                assert len(way) == 1, way
                assert re.match(r"x\.json is (damaged, or no|of version)", str(why))
                refused += 1
                continue
            if not reports:
                assert (way, bool(odd)) in [(("accounts",), False), (("merged",), True)]
                continue
            assert len(way) == 1 or reports[1] == other
            if reports[0].error:
                assert reports[0].error.code == "NotMerged"
                assert reports[0].account in (DEFAULT_ACCOUNT_ID, "")
                refused += 1
                continue
            accepted[(*way, str(odd))] = reports[0]
    assert refused > 1000
    if not can_be_shown(*accepted.values()):
        assert [way for way, report in accepted.items() if not can_be_shown(report)] == []


def test_a_control_without_a_status_is_damaged() -> None:
    report = making.report(making.finding(), controls={"IAM.3": making.control_status("")})
    with pytest.raises(CannotRun, match="damaged"):
        reports_from_json(to_json([report]), FILE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 4}, "is of version 4, this script knows 5"),
        ({"accounts": ["odd", {}]}, "is damaged, or no report of this script"),
        ({"accounts": None}, "is damaged, or no report of this script"),
    ],
    ids=["another version", "all are damaged", "no list"],
)
def test_a_document_of_which_nothing_can_be_read_is_refused(change: Any, words: str) -> None:
    document = json.loads(to_json([])) | change
    with pytest.raises(CannotRun, match=rf"^x\.json {words}$"):
        reports_from_json(json.dumps(document).encode(), FILE)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param({"name": "\ud800"}, id="half a character"),
        pytest.param({"home_region": "x" * 40_000}, id="a region of 40,000 letters"),
        pytest.param({"auditor_arn": "nobody"}, id="an auditor without an ARN"),
    ],
)
def test_what_nobody_could_write_down_costs_its_account_only(damage: dict[str, str]) -> None:
    document = json.loads(to_json([making.report(), making.report(account="111122223333")]))
    document["accounts"][0] |= damage
    data = json.dumps(document).encode()
    file = LocalFile(Path("reports.json"))
    damaged, good = reports_from_json(data, file)
    assert damaged.error
    assert damaged.error.code == "NotMerged"
    assert not good.error
