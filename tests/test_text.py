"""The text that people read: one line a resource, the history, and a terminal of 80 columns."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from cloud import Cloud
from conftest import Clock
from hypothesis import given
from hypothesis import strategies as st
from making import accepted, finding, history_entry, known, overview, report, workbook_of
from reading import NUMBER, open_book, read_accounts, summary_section, summary_table

from security_check import (
    ROOT,
    SEVERITIES,
    WORSE,
    AccountState,
    CannotRun,
    HistoryEntry,
    LocalFile,
    Report,
    Row,
    StateChange,
    account_state,
    apply_change,
    bar,
    bars,
    describe_days_open,
    display_width,
    fold,
    in_words,
    last_two_bars,
    main,
    merge_history,
    read_state_file,
    terminal_text,
    write_state_file,
)

TODAY = "2026-11-23"  # of reports


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


def grant(bucket: str, may: str, who: str = "everyone") -> Row:
    cells = {"Bucket": bucket, "Region": "eu-west-1"}
    return finding(
        bucket, item=may, message=(f"{who} may ", may, ""), severity="Critical", cells=cells
    )


def no_trail(region: str) -> Row:
    message = ("no trail records the API calls of ", region, "")
    return finding(region, message=message, cells={"Region": region})


def told(*reports: Report) -> list[str]:
    """The lines about findings on the Summary, of one account or of several."""
    book = workbook_of(*reports, multi_account=len(reports) > 1)
    return [text for _, text in summary_section(book, "Worst findings")]


@pytest.mark.parametrize(
    ("check", "rows", "words"),
    [
        pytest.param(
            "s3-acls",
            [grant("covers", "list it")],
            "covers: everyone may list it (eu-west-1)",
            id="one",
        ),
        pytest.param(
            "s3-acls",
            [grant("covers", "list it"), grant("covers", "write to it")],
            "covers: everyone may list it and write to it (eu-west-1, 2 grants)",
            id="two of one kind",
        ),
        pytest.param(
            "s3-acls",
            [grant("c", "list it"), grant("c", "list it", "another account")],
            "c: everyone may list it; another account may list it (eu-west-1, 2 grants)",
            id="two of two kinds",
        ),
        pytest.param(
            "s3-acls",
            [grant("c", "list it", who) for who in "abc"],
            "c: a may list it; b may list it; and more (eu-west-1, 3 grants)",
            id="of many kinds",
        ),
        pytest.param(
            "cloudtrail",
            [no_trail("eu-west-1")],
            "No trail records the API calls of eu-west-1",
            id="something that is not there has no name",
        ),
        pytest.param(
            "cloudtrail",
            [*map(no_trail, "abcdef")],
            "No trail records the API calls of a, b, c and 3 more (6 rows)",
            id="six regions without it",
        ),
        pytest.param(
            "mfa",
            [finding(ROOT, message="has no MFA device", cells={"User": ROOT})],
            "root: has no MFA device",
            id="root has a name of its own",
        ),
        pytest.param(
            "s3-acls",
            [accepted(grant("c", "list it"), "a site", until="2026-01-31", expired=True)],
            "c: everyone may list it (eu-west-1) (acceptance expired, until 2026-01-31: a site)",
            id="an acceptance that expired",
        ),
        pytest.param(
            "s3-acls",
            [replace(grant("c", "list it"), change=WORSE, was="Another account may list it")],
            "c: everyone may list it (eu-west-1) (was: Another account may list it)",
            id="worse than it was",
        ),
    ],
)
def test_findings_about_a_resource_are_one_line(check: str, rows: list[Row], words: str) -> None:
    assert told(report(*rows, check=check)) == [words]


def test_rows_about_a_resource_of_an_account_stand_in_the_place_of_the_first() -> None:
    a, b, more = grant("a", "list it"), grant("b", "list it"), grant("a", "write to it")
    assert told(report(a, b, more, check="s3-acls", account="1")) == [
        "a: everyone may list it and write to it (eu-west-1, 2 grants)",
        "b: everyone may list it (eu-west-1)",
    ]


def test_findings_of_several_accounts_are_told_by_what_they_are() -> None:
    a, b, more = grant("a", "list it"), grant("b", "list it"), grant("a", "write to it")
    here = report(a, b, more, check="s3-acls", account="1")
    elsewhere = report(a, check="s3-acls", account="2", name="Prod")
    assert told(here, elsewhere) == [
        "Everyone may list it: 3 grants in 2 accounts",
        "Everyone may write to it: 1 grant in 1",
    ]


@given(st.text(max_size=300))
def test_a_line_of_the_terminal_is_never_longer_than_80_columns(text: str) -> None:
    lines = fold(text)
    assert all(sum(map(display_width, line)) <= 80 for line in lines)
    assert all(line.isprintable() for line in lines)


def test_a_long_line_is_folded_at_words_under_its_start() -> None:
    words = "Critical  web: lets the whole Internet reach SSH (22); 2 interfaces use it (eu-west-1)"
    assert fold(words) == [
        "  Critical  web: lets the whole Internet reach SSH (22); 2 interfaces use it",
        "            (eu-west-1)",
    ]


# --- the history ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "blocks"), [(0, ""), (10, "██"), (5, "█"), (6, "█▎"), (1, "▎"), (20, "████")]
)
def test_a_bar_is_to_scale(number: int, blocks: str) -> None:
    assert bar(number, most=20, places=4) == blocks


def day(month: int, **numbers: Any) -> HistoryEntry:
    """The audit of the first of a month."""
    return history_entry(f"2026-{month:02}-01", **numbers)


def test_bars_have_one_scale_and_nothing_has_none() -> None:
    days = [day(1, critical=3, low=5), day(2, low=4), day(3)]
    assert bars(days, 4) == ["████", "██", ""]
    assert bars([day(3)], 4) == [""]


@pytest.mark.parametrize(
    ("days_open", "words"),
    [
        ([], ""),
        ([[1]], "The finding that was resolved had been open for 1 day"),
        (
            [[1], [400, 30]],
            "Half of the 3 findings that were resolved had been open for 30 days or less",
        ),
        (
            [[10, 20], [30, 40]],
            "Half of the 4 findings that were resolved had been open for 20 days or less",
        ),
    ],
)
def test_how_long_findings_were_open(days_open: list[list[int]], words: str) -> None:
    assert describe_days_open([day(1, days_open=one) for one in days_open]) == words


def test_the_terminal_shows_the_last_audit_and_this_one() -> None:
    days = [day(1, critical=99), day(2, critical=4), day(3, critical=1)]
    assert last_two_bars([], "2026-01-01") == last_two_bars(days[:1], "2026-01-01") == []
    assert last_two_bars(days, "2026-04-01") == []  # there is no entry of this day
    assert (
        last_two_bars(days, "2026-02-28")
        == last_two_bars(days, "2026-03-01")
        == [
            f"2026-02-01       4 findings  {bar(4, 99, 40)}",
            f"2026-03-01        1 finding  {bar(1, 99, 40)}",
        ]
    )


def test_a_run_over_midnight_shows_its_bars() -> None:
    started = datetime(2026, 3, 1, 23, 59, 50, tzinfo=timezone.utc)
    over_midnight = report(history=[day(2, low=1), day(3, low=1)], started=started, seconds=40)
    assert "\n2026-02-01  " in terminal_text(overview(over_midnight))


def of(account: str, *days: HistoryEntry) -> Report:
    return report(account=account, history=days)


def test_days_of_several_accounts_add_up() -> None:
    one = of("1", day(1, critical=1, new=1, days_open=[3]), day(2, critical=2, not_checked=1))
    two = of("2", day(1, low=5, new=5, days_open=[4]), day(2, critical=1))
    assert merge_history([one, two]) == [
        day(1, critical=1, low=5, new=6, days_open=[3, 4]),
        day(2, critical=3, not_checked=1),
    ]


def test_an_account_that_was_not_audited_counts_as_before_and_as_an_error() -> None:
    one = of("1", day(1, critical=7, new=7), day(3, critical=6))
    two = of("2", day(2, critical=1), day(3, critical=1))
    assert merge_history([one, two]) == [
        day(1, critical=7, new=7),
        day(2, critical=8, not_checked=1, remembered=7),
        day(3, critical=7),
    ]


def test_an_account_without_a_past_has_none() -> None:
    assert merge_history([of("1"), of("2", day(1, critical=1))]) == [day(1, critical=1)]
    assert merge_history([of("1")]) == []


def change(*first_seen: str, resolved: Iterable[str] = (), not_checked: int = 0) -> StateChange:
    """A run of today with a critical finding first seen on each of these days; those that are
    resolved were first seen on others."""
    seen = {f"mfa/{n}": known(day, severity="Critical") for n, day in enumerate(first_seen)}
    gone = {f"mfa/gone-{day}": known(day, severity="Critical") for day in resolved}
    return StateChange(TODAY, ["mfa"], seen, {*gone}, gone, not_checked, {}, 90)


def test_a_first_run_is_an_entry() -> None:
    state = apply_change(AccountState(), change(TODAY, TODAY, not_checked=3))
    assert state.history == (history_entry(TODAY, critical=2, not_checked=3),)  # nothing is new


def test_of_a_day_the_last_run_counts_and_what_was_resolved_adds_up() -> None:
    audited = AccountState(since={"mfa": "2026-10-31"})
    morning = apply_change(audited, change(TODAY, resolved=["2026-10-31"]))
    assert morning.history == (history_entry(TODAY, critical=1, new=1, days_open=[23]),)
    evening = apply_change(morning, change(TODAY, TODAY, resolved=["2026-11-19"]))
    assert evening.history == (history_entry(TODAY, critical=2, new=2, days_open=[23, 4]),)


def test_what_a_run_did_not_look_at_is_counted_as_remembered() -> None:
    old = {"s3-acls/b": known("2026-01-01", severity="Low")}
    state = apply_change(AccountState(findings=old), change("2026-01-01"))
    assert state.history == (history_entry(TODAY, critical=1, low=1, remembered=1),)


def test_an_accepted_finding_is_not_counted() -> None:
    accepted_one = {"mfa/x": known("2026-01-01", severity="High", accepted=True)}
    state = apply_change(AccountState(findings=accepted_one), change())
    assert state.history == (history_entry(TODAY),)


def test_the_thirteenth_day_drops_the_first() -> None:
    days = [day(month, critical=month) for month in range(1, 13)]
    last = change("2026-01-01")._replace(today="2027-01-01")
    before = AccountState({"mfa": "2026-01-01"}, history=(*days,))
    kept = apply_change(before, last).history
    assert [*kept] == [*days[1:], history_entry("2027-01-01", critical=1)]


def history_in_state() -> list[HistoryEntry]:
    """The history of the account in the state file."""
    file = LocalFile(Path("state.json"))
    return [*account_state(read_state_file(file), NUMBER, file).history]


def test_an_old_state_has_no_history_and_gets_one(cloud: Cloud) -> None:
    Path("state.json").write_text('{"schema": 1, "accounts": {}}')
    assert history_in_state() == []
    main(["--state", "state.json"])
    (entry,) = history_in_state()
    assert sum(entry.open.values()) > 0
    assert entry.new == 0  # there was nothing to compare with


SOME = dict.fromkeys(SEVERITIES, 1)


@pytest.mark.parametrize(
    "history",
    [
        [],
        {"1": 5},
        {"1": [{}]},
        {"1": [{"day": "yesterday", "found": SOME}]},
        {"1": [{"day": "2026-01-01", "found": {"Critical": 1}}]},
        {"1": [{"day": "2026-01-01", "found": {}}]},
        {"1": [{"day": "2026-01-01", "found": dict.fromkeys(SEVERITIES, "x")}]},
        {"1": [{"day": "2026-01-01", "found": dict.fromkeys(SEVERITIES, -1)}]},
    ],
)
def test_a_damaged_history_of_schema_1_is_no_state(tmp_path: Path, history: Any) -> None:
    file = LocalFile(tmp_path / "state.json")
    file.path.write_text(json.dumps({"schema": 1, "accounts": {}, "history": history}))
    with pytest.raises(CannotRun, match="damaged or no state file"):
        account_state(read_state_file(file), "1", file)


ENTRY: dict[str, Any] = {
    "day": "2026-01-01",
    "open": SOME,
    "not_checked": 0,
    "new": 0,
    "days_open": [],
    "remembered": 0,
}


@pytest.mark.parametrize(
    "wrong",
    [
        {"day": "yesterday"},
        {"open": {"Critical": 1}},
        {"open": dict.fromkeys(SEVERITIES, "x")},
        {"open": dict.fromkeys(SEVERITIES, -1)},
        {"not_checked": -1},
        {"new": "1"},
        {"days_open": [-1]},
        {"days_open": 5},
        {"remembered": None},
    ],
)
def test_a_damaged_history_is_no_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("state.json")
    write_state_file(LocalFile(path), {NUMBER: change(TODAY)})
    document = json.loads(path.read_text())
    account = document["accounts"][NUMBER]
    account["history"] = [ENTRY]
    path.write_text(json.dumps(document))
    assert history_in_state() == [history_entry("2026-01-01", critical=1, high=1, medium=1, low=1)]
    account["history"] = [ENTRY | wrong]
    path.write_text(json.dumps(document))
    with pytest.raises(CannotRun, match="damaged or no state file"):
        history_in_state()


def test_a_run_over_a_part_of_the_account_counts_the_rest_as_it_was(
    cloud: Cloud, clock: Clock
) -> None:
    clock.set("2030-08-01")
    main(["--state", "state.json"])
    (full,) = history_in_state()
    assert full.remembered == 0
    for today, part, looked_at in (
        ("2030-09-01", ("--check", "mfa"), 1),  # root
        # the region, and that no trail is for all regions
        ("2030-10-01", ("--check", "cloudtrail", "--region", "eu-west-1"), 2),
    ):
        clock.set(today)
        main(["--state", "state.json", *part])
        entry = history_in_state()[-1]
        assert (entry.day, entry.open, entry.new) == (today, full.open, 0)
        assert entry.remembered == sum(full.open.values()) - looked_at


def test_the_summary_the_terminal_and_the_json_show_the_history(
    cloud: Cloud, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud.layer.summary = {"AccountMFAEnabled": 1, "AccountAccessKeysPresent": 0}
    iam = cloud.client("iam")
    iam.create_user(UserName="alice")
    iam.create_user(UserName="bob")
    for number, today in enumerate(("2030-08-01", "2030-09-01", "2030-09-01", "2030-10-01")):
        if number == 1:
            iam.create_user(UserName="carol")
        if number == 3:
            iam.delete_user(UserName="alice")
        clock.set(today)
        capsys.readouterr()
        main(["--state", "state.json", "--json", "x.json", "--output", "x.xls"])
    history = read_accounts("x.json")[NUMBER]["history"]
    medium = [(one["day"], one["open"]["Medium"], one["new"]) for one in history]
    assert medium == [("2030-08-01", 2, 0), ("2030-09-01", 3, 1), ("2030-10-01", 2, 0)]
    assert [one["days_open"] for one in history] == [[], [], [61]]
    first, second, last, note = summary_table(open_book("x.xls"), "Date")
    assert first == {
        "Date": "2030-08-01",
        "Critical": "",
        "High": 4.0,
        "Medium": 2.0,
        "Low": "",
        "New": "",
        "Resolved": "",
        "NOT CHECKED": "",
        "Findings": f"{bar(6, 7, 24)} 6",
    }
    changed = {"Medium": 3.0, "New": 1.0, "Findings": f"{bar(7, 7, 24)} 7"}
    assert second == {**first, "Date": "2030-09-01", **changed}
    assert last == {**first, "Date": "2030-10-01", "Resolved": 1.0}
    assert note["Date"] == "The finding that was resolved had been open for 61 days"
    out = capsys.readouterr().out
    assert f"2030-09-01       7 findings  {'█' * 40}\n2030-10-01       6 findings" in out


def test_the_terminal_shows_the_worst_five_resources(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    s3 = cloud.client("s3")
    for number in range(7):
        s3.create_bucket(Bucket=f"bucket-{number}")
        everyone = 'uri="http://acs.amazonaws.com/groups/global/AllUsers"'
        s3.put_bucket_acl(Bucket=f"bucket-{number}", GrantRead=everyone, GrantWrite=everyone)
    main(["--check", "s3-acls"])
    out = capsys.readouterr().out
    worst = out.partition("Worst:\n")[2].partition("1 of 6 checks (s3-acls)")[0]
    assert worst.splitlines() == [
        *(
            line
            for number in range(5)
            for line in (
                f"  Critical  bucket-{number}: everyone on the Internet may write to it and list"
                " it",
                "            (us-east-1, 2 grants)",
            )
        ),
        "  and 2 more",
    ]
    assert all(len(line) <= 80 for line in out.splitlines()[:-1])
