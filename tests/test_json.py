"""The report as JSON: it is read back the same, and what is damaged is said to be."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import timezone
from pathlib import Path
from typing import Any

from cloud import Cloud, Fault
from conftest import NOW, audited
from example import fill
from hypothesis import given, settings
from hypothesis import strategies as st

import security_check
from security_check import (
    CHECKS,
    CONTROLS,
    SEVERITIES,
    VERDICTS,
    Acceptance,
    CannotRun,
    Command,
    Day,
    ControlStatus,
    LocalFile,
    Report,
    Row,
    Sheet,
    AwsError,
    as_json,
    build_workbook,
    command,
    main,
    report_from,
    reports_in,
    whole_json,
)

TEXT = st.text(max_size=9)
DAYS = st.dates().map(lambda day: f"{day:%Y-%m-%d}" if day.year > 999 else "2030-01-01")
MOMENTS = st.datetimes(timezones=st.just(timezone.utc))
GAPS = st.builds(AwsError, code=TEXT, service=TEXT, operation=TEXT, detail=TEXT)
ACCEPTANCES = st.builds(Acceptance, pattern=TEXT, until=TEXT, reason=TEXT)
COUNTS = st.integers(0, 1000)
ROWS = st.builds(
    Row,
    target=TEXT,
    item=TEXT,
    cells=st.dictionaries(TEXT, st.one_of(TEXT, st.integers(), st.booleans(), st.none(), MOMENTS)),
    result=TEXT,
    severity=st.sampled_from(["", *SEVERITIES]),
    control=TEXT,
    brief=st.tuples(TEXT, TEXT, TEXT),
    mend=st.one_of(TEXT, TEXT.filter(bool).map(Command)),
    first_seen=st.one_of(st.just(""), DAYS),
    new=st.booleans(),
    acceptance=st.one_of(st.none(), ACCEPTANCES),
    lapsed=st.booleans(),
).flatmap(
    lambda row: st.one_of(st.just(row), GAPS.map(lambda gap: replace(row, gap=gap, result="")))
)
REPORTS = st.builds(
    Report,
    number=TEXT,
    started=MOMENTS,
    arn=TEXT,
    home=TEXT,
    aliases=st.one_of(st.lists(TEXT), GAPS),
    regions=st.one_of(st.lists(TEXT), GAPS),
    sheets=st.lists(
        st.builds(
            Sheet,
            check=st.sampled_from(CHECKS),
            rows=st.lists(ROWS, max_size=3),
            whole=st.booleans(),
        ),
        max_size=2,
    ),
    gone=st.one_of(
        st.none(),
        st.dictionaries(TEXT, st.fixed_dictionaries({"first_seen": DAYS, "result": TEXT})),
    ),
    history=st.lists(
        st.builds(
            Day,
            day=DAYS,
            found=st.fixed_dictionaries(dict.fromkeys(SEVERITIES, COUNTS)),
            not_checked=COUNTS,
            new=COUNTS,
            stood=st.lists(COUNTS),
        ),
        max_size=2,
    ),
    judged=st.dictionaries(
        st.sampled_from([*CONTROLS]),
        st.builds(
            ControlStatus, verdict=st.sampled_from(VERDICTS), looked_at=COUNTS, failed=COUNTS
        ),
    ),
    seconds=st.floats(0, 10_000),
    path=TEXT,
    profile=TEXT,
    name=TEXT,
    state=TEXT,
    error=st.one_of(st.none(), GAPS),
)


def facts(report: Report) -> list[Any]:
    """All of a report, also what does not count where two rows are compared."""
    rows = [[getattr(row, one.name) for one in fields(row)] for row in report.all_rows()]
    commands = [command(row) for row in report.all_rows()]
    return [[getattr(report, one.name) for one in fields(report)], rows, commands]


@settings(max_examples=200, deadline=None)
@given(REPORTS)
def test_a_report_that_was_written_is_read_back_the_same(report: Report) -> None:
    (document,) = json.loads(whole_json([as_json(report)]))["accounts"]
    assert facts(report_from(document)) == facts(report)


def test_the_report_of_the_demo_is_read_back_the_same(cloud: Cloud) -> None:
    fill(cloud)
    Path("accept.txt").write_text("*/eu-west-1/* # known\nmfa/* until 2020-01-01 # over\n")
    state = ["--state", "state.json", "--accept", "accept.txt"]
    audited(*state)
    report = audited(*state)
    assert report.rows("ACCEPTED")
    (document,) = json.loads(whole_json([as_json(report)]))["accounts"]
    assert facts(report_from(document)) == facts(report)
    assert report_from(document).exit_code() == report.exit_code()


def leaves(document: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to everything that a document holds, the first few of a list alone."""
    if at:
        yield at
    inner: Any = document.items() if isinstance(document, dict) else ()
    inner = enumerate(document[:2]) if isinstance(document, list) else inner
    for name, value in inner:
        yield from leaves(value, (*at, name))


ODDS: list[Any] = [None, 5, -1.5, float("inf"), "", "x", [], ["x"], {}, {"x": "y"}, True, [[]]]


def test_what_is_damaged_is_said_to_be_and_breaks_nothing(cloud: Cloud, tmp_path: Path) -> None:
    cloud.client("iam").create_user(UserName="alice")
    Path("accept.txt").write_text("mfa/alice # known\n")
    cloud.layer.faults = [Fault("AccessDenied", "iam", "ListAccountAliases")]
    files = ["--json", "x.json", "--output", "x.xls", "--state", "state.json"]
    main([*files, "--accept", "accept.txt", "--check", "mfa", "--check", "access-keys"])
    whole = json.loads(Path("x.json").read_text())
    for check in whole["accounts"][0]["checks"]:
        check["rows"] = check["rows"][:1]
    refused = 0
    for way in leaves(whole):
        for odd in ODDS:
            document = copy.deepcopy(whole)
            place = document
            for name in way[:-1]:
                place = place[name]
            place[way[-1]] = odd
            Path("odd.json").write_text(json.dumps(document))
            try:
                reports = reports_in(LocalFile(Path("odd.json")), whole=True)
            except CannotRun as why:
                assert re.match(r"odd\.json is (damaged, or no|of version)", str(why))
                refused += 1
                continue
            results = security_check.Results(reports, NOW, several=True, of="x", path="x.xls")
            assert build_workbook(security_check.as_one(results, reports)) if reports else not odd
    assert refused > 1000
