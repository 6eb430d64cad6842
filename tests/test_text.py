"""What people read: one line a thing, whether it gets better, and a terminal of 80 columns."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import xlrd
from cloud import Cloud
from hypothesis import given
from hypothesis import strategies as st

import security_check
from security_check import (
    CHECKS,
    ROOT,
    Acceptance,
    CannotRun,
    Day,
    Found,
    LocalFile,
    Report,
    Row,
    Sheet,
    State,
    bar,
    bars,
    days_of,
    fold,
    in_words,
    main,
    read_state,
    stood_words,
    thing_words,
    things,
    trend,
    width,
    with_today,
)

NOW = datetime(2026, 11, 24, tzinfo=timezone.utc)
BY_NAME = {check.name: check for check in CHECKS}


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], ""),
        (["a"], "a"),
        (["a", "b"], "a and b"),
        (["a", "b", "a"], "a and b"),
        (["a", "b", "c", "d"], "a, b, c and d"),
        (["a", "b", "c", "d", "e"], "a, b, c and 2 more"),
        (map(str, range(1234)), "0, 1, 2 and 1,231 more"),
    ],
)
def test_names_in_words(names: Any, words: str) -> None:
    assert in_words(names) == words


def found(check: str, *rows: Row, number: str = "1", name: str = "") -> list[Found]:
    sheet = Sheet(BY_NAME[check], list(rows))
    return [Found(Report(number, NOW, name=name), sheet, row) for row in rows]


def grant(bucket: str, may: str, who: str = "everyone", **known: Any) -> Row:
    cells: Any = {"Bucket": bucket, "Region": "eu-west-1"}
    brief = (f"{who} may ", may, "")
    return Row(bucket, may, cells, f"{who} may {may}", "Critical", brief=brief, **known)


def silent(region: str) -> Row:
    brief = ("No trail records the API calls of ", region, "")
    return Row(region, "not-enabled", {"Region": region, "Trail": ""}, "x", "High", brief=brief)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        pytest.param(
            found("s3-acls", grant("covers", "list it")),
            "covers: everyone may list it (eu-west-1)",
            id="one",
        ),
        pytest.param(
            found("s3-acls", grant("covers", "list it"), grant("covers", "write to it")),
            "covers: everyone may list it and write to it (eu-west-1, 2 grants)",
            id="two of one kind",
        ),
        pytest.param(
            found("s3-acls", grant("c", "list it"), grant("c", "list it", "another account")),
            "c: everyone may list it; another account may list it (eu-west-1, 2 grants)",
            id="two of two kinds",
        ),
        pytest.param(
            found("s3-acls", *(grant("c", "list it", who) for who in "abc")),
            "c: a may list it; b may list it; and more (eu-west-1, 3 grants)",
            id="of many kinds",
        ),
        pytest.param(
            found("cloudtrail", silent("eu-west-1")),
            "No trail records the API calls of eu-west-1",
            id="something that is not there has no name",
        ),
        pytest.param(
            found("cloudtrail", *map(silent, "abcdef")),
            "No trail records the API calls of a, b, c and 3 more (6 regions)",
            id="six regions without it",
        ),
        pytest.param(
            found("mfa", Row(ROOT, "", {"User": ROOT}, "Root has no MFA", "Critical")),
            "root: Root has no MFA",
            id="without words for behind a name",
        ),
        pytest.param(
            found("s3-acls", grant("c", "list it"), number="111122223333", name="Prod"),
            "c: everyone may list it (eu-west-1, 111122223333, Prod)",
            id="among several accounts",
        ),
        pytest.param(
            found(
                "s3-acls",
                grant(
                    "c", "list it", lapsed=True, acceptance=Acceptance("*", "2026-01-31", "a site")
                ),
            ),
            "c: everyone may list it (eu-west-1) (acceptance expired, until 2026-01-31: a site)",
            id="a decision that is over",
        ),
    ],
)
def test_what_was_found_about_a_thing(rows: list[Found], words: str) -> None:
    assert thing_words(rows, several=rows[0].report.name != "") == words


def test_rows_about_a_thing_stand_where_its_first_one_stands() -> None:
    one, two = grant("a", "list it"), grant("b", "list it")
    rows = found("s3-acls", one, two, grant("a", "write to it"))
    elsewhere = found("s3-acls", one, number="2")
    groups = things(enumerate([*rows, *elsewhere]))
    assert [[place for place, _ in group] for group in groups] == [[0, 2], [1], [3]]


@given(st.text(max_size=300))
def test_a_line_of_the_terminal_is_never_longer_than_80_columns(text: str) -> None:
    lines = fold(text)
    assert all(sum(map(width, line)) <= 80 for line in lines)
    assert all(line.isprintable() for line in lines)


def test_a_long_line_is_folded_at_words_under_its_start() -> None:
    words = "Critical  web: lets the whole Internet reach SSH (22); 2 interfaces use it (eu-west-1)"
    assert fold(words) == [
        "  Critical  web: lets the whole Internet reach SSH (22); 2 interfaces use it",
        "            (eu-west-1)",
    ]


# --- whether it gets better ----------------------------------------------------------------------


def a_day(day: str, critical: int = 0, low: int = 0, **known: Any) -> Day:
    return Day(day, {"Critical": critical, "High": 0, "Medium": 0, "Low": low}, **known)


@pytest.mark.parametrize(
    ("number", "blocks"), [(0, ""), (10, "██"), (5, "█"), (6, "█▎"), (1, "▎"), (20, "████")]
)
def test_a_bar_is_to_scale(number: int, blocks: str) -> None:
    assert bar(number, most=20, places=4) == blocks


def test_bars_have_one_scale_and_nothing_has_none() -> None:
    days = [a_day("2026-01-01", 3, 5), a_day("2026-02-01", 0, 4), a_day("2026-03-01")]
    assert bars(days, 4) == ["████", "██", ""]
    assert bars([a_day("2026-03-01")], 4) == [""]


@pytest.mark.parametrize(
    ("stood", "words"),
    [
        ([], ""),
        ([[1]], "The finding that was resolved had stood for 1 day"),
        (
            [[1], [400, 30]],
            "Half of the 3 findings that were resolved had stood for 30 days or less",
        ),
        (
            [[10, 20], [30, 40]],
            "Half of the 4 findings that were resolved had stood for 20 days or less",
        ),
    ],
)
def test_how_long_findings_stood(stood: list[list[int]], words: str) -> None:
    assert stood_words([a_day("2026-01-01", stood=one) for one in stood]) == words


def test_the_terminal_shows_the_last_audit_and_this_one() -> None:
    days = [a_day("2026-01-01", 99), a_day("2026-02-01", 4), a_day("2026-03-01", 1)]
    assert trend([], "2026-01-01") == trend(days[:1], "2026-01-01") == []
    assert trend(days, "2026-04-01") == []  # this one saw only a part, and is no line
    assert trend(days, "2026-03-01") == [
        f"2026-02-01       4 findings  {bar(4, 99, 40)}",
        f"2026-03-01        1 finding  {bar(1, 99, 40)}",
    ]


def of(number: str, *days: Day) -> Report:
    return Report(number, NOW, history=list(days))


def test_days_of_several_accounts_add_up() -> None:
    one = of("1", a_day("2026-01-01", 1, new=1, stood=[3]), a_day("2026-02-01", 2, not_checked=1))
    two = of("2", a_day("2026-01-01", 0, 5, new=5, stood=[4]), a_day("2026-02-01", 1))
    assert days_of([one, two]) == [
        a_day("2026-01-01", 1, 5, new=6, stood=[3, 4]),
        a_day("2026-02-01", 3, not_checked=1),
    ]


def test_an_account_that_was_not_audited_counts_as_before_and_as_a_gap() -> None:
    one = of("1", a_day("2026-01-01", 7, new=7), a_day("2026-03-01", 6))
    two = of("2", a_day("2026-02-01", 1), a_day("2026-03-01", 1))
    assert days_of([one, two]) == [
        a_day("2026-01-01", 7, new=7),
        a_day("2026-02-01", 8, not_checked=1),
        a_day("2026-03-01", 7),
    ]


def test_an_account_without_a_past_has_none() -> None:
    assert days_of([of("1"), of("2", a_day("2026-01-01", 1))]) == [a_day("2026-01-01", 1)]
    assert days_of([of("1")]) == []


def a_report(*firsts: str, gone: tuple[str, ...] = ()) -> Report:
    rows = [Row(f"r{n}", "", {}, "Bad", "Critical", first_seen=d) for n, d in enumerate(firsts)]
    known = {str(n): {"first_seen": day, "result": "Bad"} for n, day in enumerate(gone)}
    return Report("1", NOW, sheets=[Sheet(CHECKS[0], rows)], gone=known)


def test_a_first_run_is_a_line() -> None:
    days = with_today([], a_report("2026-11-24", "2026-11-24"), "2026-11-24")
    assert days == [a_day("2026-11-24", 2, new=2, stood=[])]


def test_of_a_day_the_last_run_counts_and_what_came_and_went_adds_up() -> None:
    morning = with_today([], a_report("2026-11-24", gone=("2026-11-01",)), "2026-11-24")
    assert morning == [a_day("2026-11-24", 1, new=1, stood=[23])]
    evening = a_report("2026-11-24", "2026-11-24", gone=("2026-11-20",))
    assert with_today(morning, evening, "2026-11-24") == [
        a_day("2026-11-24", 2, new=2, stood=[23, 4])
    ]


def test_the_thirteenth_run_drops_the_first_line() -> None:
    days = [a_day(f"2026-{month:02}-01", month) for month in range(1, 13)]
    kept = with_today(days, a_report("2026-01-01"), "2027-01-01")
    assert [one.day for one in kept] == [*(one.day for one in days[1:]), "2027-01-01"]


def test_an_old_state_has_no_history_and_gets_one(cloud: Cloud) -> None:
    Path("state.json").write_text('{"schema": 1, "accounts": {}}')
    assert read_state(LocalFile(Path("state.json"))) == State({}, {})
    main(["--state", "state.json"])
    ((line,),) = read_state(LocalFile(Path("state.json"))).history.values()
    assert line.new == sum(line.found.values()) > 0


@pytest.mark.parametrize(
    "history",
    [
        [],
        {"1": 5},
        {"1": [{}]},
        {"1": [{"day": "yesterday", "found": {}}]},
        {"1": [{"day": "2026-01-01", "found": {"Critical": 1}}]},
        {"1": [{"day": "2026-01-01", "found": {}, "what": 1}]},
        {"1": [{"day": "2026-01-01", "found": dict.fromkeys(security_check.SEVERITIES, "x")}]},
    ],
)
def test_a_damaged_history_is_no_state(tmp_path: Path, history: Any) -> None:
    path = tmp_path / "state.json"
    path.write_text(json.dumps({"schema": 1, "accounts": {}, "history": history}))
    with pytest.raises(CannotRun, match="damaged or no state file"):
        read_state(LocalFile(path))


def test_a_run_over_a_part_of_the_account_is_no_line(cloud: Cloud) -> None:
    main(["--state", "state.json", "--check", "mfa"])
    main(["--state", "state.json", "--region", "eu-west-1"])
    assert [*read_state(LocalFile(Path("state.json"))).history.values()] == [[]]


def test_the_summary_and_the_json_show_the_history(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud.layer.summary = {"AccountMFAEnabled": 1, "AccountAccessKeysPresent": 0}
    iam = cloud.client("iam")
    for day in ("2030-08-01", "2030-09-01", "2030-09-01", "2030-10-01"):

        class Clock(datetime):
            @classmethod
            def now(cls, tz: Any = None, day: str = day) -> Any:
                return datetime.fromisoformat(f"{day}T06:15:00").replace(tzinfo=timezone.utc)

        if day == "2030-08-01":
            iam.create_user(UserName="alice")
            iam.create_user(UserName="bob")
        if day == "2030-10-01":
            iam.delete_user(UserName="alice")
        monkeypatch.setattr(security_check, "datetime", Clock)
        capsys.readouterr()
        main(["--state", "state.json", "--json", "x.json", "--output", "x.xls"])
    (account,) = json.loads(Path("x.json").read_text())["accounts"]
    medium = [(one["day"], one["found"]["Medium"], one["new"]) for one in account["history"]]
    assert medium == [("2030-08-01", 2, 5), ("2030-09-01", 2, 0), ("2030-10-01", 1, 0)]
    assert [one["stood"] for one in account["history"]] == [[], [], [61]]
    summary = xlrd.open_workbook("x.xls").sheet_by_name("Summary")
    lines = [summary.row_values(n) for n in range(summary.nrows)]
    (start,) = (n for n, line in enumerate(lines) if line[0] == "Audit of")
    assert lines[start][:9] == [
        *("Audit of", "Critical", "High", "Medium", "Low", "New", "Resolved", "NOT CHECKED"),
        "Findings",
    ]
    assert lines[start + 1][1:8] == ["", 3.0, 2.0, "", 5.0, "", ""]
    assert lines[start + 3][1:8] == ["", 3.0, 1.0, "", "", 1.0, ""]
    assert lines[start + 3][8] == f"{bar(4, 5, 24)} 4"
    assert lines[start + 4][0] == "The finding that was resolved had stood for 61 days"
    out = capsys.readouterr().out
    assert f"2030-09-01       5 findings  {'█' * 40}\n2030-10-01       4 findings" in out


def test_the_worst_five_things_are_told(cloud: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    s3 = cloud.client("s3")
    for number in range(7):
        s3.create_bucket(Bucket=f"bucket-{number}")
        everyone = 'uri="http://acs.amazonaws.com/groups/global/AllUsers"'
        s3.put_bucket_acl(Bucket=f"bucket-{number}", GrantRead=everyone, GrantWrite=everyone)
    main(["--check", "s3-acls"])
    out = capsys.readouterr().out
    assert out.partition("Worst:\n")[2].splitlines()[:-1] == [
        *(
            line
            for number in range(5)
            for line in (
                f"  Critical  bucket-{number}: everyone on the Internet may list it and write"
                " to it",
                "            (us-east-1, 2 grants)",
            )
        ),
        "  and 2 more",
    ]
    assert all(len(line) <= 80 for line in out.splitlines()[:-1])
