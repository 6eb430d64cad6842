"""Check 3: access keys that are old, and those of root; and the users that it runs over."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from conftest import NOW, Canned
from making import answer_summary, answer_users, finding, fine, run_check, seen

from security_check import ROOT, check_access_keys, due_day, key_age, users

FIRST, SECOND = "AKIAEXAMPLE000000001", "AKIAEXAMPLE000000002"


def key(days: float, id: str = FIRST, status: str = "Active") -> dict[str, Any]:
    return {"AccessKeyId": id, "CreateDate": NOW - timedelta(days=days), "Status": status}


def key_cells(key: dict[str, Any], *, age: int, last_used: Any = "") -> dict[str, Any]:
    """The cells of a row about a key of alice."""
    return {
        "User": "alice",
        "Access key ID": key["AccessKeyId"],
        "Key status": key["Status"],
        "Created": key["CreateDate"],
        "Age (days)": age,
        "Last used": last_used,
    }


def answer_keys(aws: Canned, *keys: dict[str, Any], user: str = "alice") -> None:
    sent = {"UserName": user, "MaxItems": 1000}
    aws.answer("iam", "ListAccessKeys", {"AccessKeyMetadata": list(keys)}, params=sent)


def answer_used(aws: Canned, **used: Any) -> None:
    last = {"ServiceName": "N/A", "Region": "N/A", **used}
    answer = {"UserName": "alice", "AccessKeyLastUsed": last}
    aws.answer("iam", "GetAccessKeyLastUsed", answer)


@pytest.mark.parametrize(
    ("age", "days"),
    [
        (timedelta(0), 0),
        (timedelta(hours=23, minutes=59), 0),
        (timedelta(days=90), 90),
        (timedelta(days=90, hours=23), 90),
        (timedelta(days=91), 91),
    ],
)
def test_age_is_whole_days(age: timedelta, days: int) -> None:
    assert key_age(NOW - age, NOW) == days


def test_age_does_not_depend_on_the_time_zone() -> None:
    east = timezone(timedelta(hours=14))
    assert key_age((NOW - timedelta(days=91)).astimezone(east), NOW) == 91


def test_a_key_is_due_when_it_is_one_day_too_old() -> None:
    created = datetime(2026, 9, 1, 15, tzinfo=timezone.utc)
    due = due_day(created, 90)
    assert (key_age(created, due), key_age(created, due - timedelta(seconds=1))) == (91, 90)


@pytest.mark.parametrize(
    ("days", "result"),
    [
        pytest.param(0, "Key is rotated", id="of today"),
        pytest.param(59, "Key is rotated", id="due in 32 days"),
        pytest.param(60, "Key is rotated, due 2026-12-24", id="due in 31 days"),
        pytest.param(90, "Key is rotated, due 2026-11-24", id="90 days"),
        pytest.param(90.96, "Key is rotated, due 2026-11-23", id="90 days and 23 hours"),
    ],
)
def test_a_key_that_is_young_enough(aws: Canned, days: float, result: str) -> None:
    answer_keys(aws, one := key(days))
    expected = fine("alice", item=FIRST, message=result, cells=key_cells(one, age=int(days)))
    assert seen(check_access_keys(aws, "alice")) == seen([expected])


@pytest.mark.parametrize(
    ("status", "severity", "control"), [("Active", "Medium", "IAM.3"), ("Inactive", "Low", "")]
)
@pytest.mark.parametrize(
    ("used", "shown"),
    [
        pytest.param({}, "never", id="never used"),
        pytest.param({"LastUsedDate": NOW}, NOW, id="used in a region that is not told"),
    ],
)
def test_a_key_of_91_days(
    aws: Canned, status: str, severity: str, control: str, used: Any, shown: Any
) -> None:
    answer_keys(aws, one := key(91, status=status))
    answer_used(aws, **used)
    start = {"Active": "Key", "Inactive": "Inactive key"}[status]
    end = "never used" if shown == "never" else "used on 2026-11-23"
    expected = finding(
        "alice",
        item=FIRST,
        message=f"{start.lower()} is 91 days old and was {end}",
        severity=severity,
        control=control,
        cells=key_cells(one, age=91, last_used=shown),
    )
    assert seen(check_access_keys(aws, "alice")) == seen([expected])


def test_another_age_may_be_asked_for() -> None:
    aws = Canned(max_key_age=30)
    answer_keys(aws, key(30), key(31, SECOND))
    answer_used(aws)
    young, old = seen(check_access_keys(aws, "alice"))
    assert young.result == "Key is rotated, due 2026-11-24"
    assert old.result == "Key is 31 days old and was never used"


def test_two_keys_on_two_pages(aws: Canned) -> None:
    first = {"AccessKeyMetadata": [key(1)], "IsTruncated": True, "Marker": "more"}
    aws.answer("iam", "ListAccessKeys", first)
    answer = {"AccessKeyMetadata": [key(2, SECOND)], "IsTruncated": False}
    aws.answer("iam", "ListAccessKeys", answer)
    assert [row.cells["Age (days)"] for row in check_access_keys(aws, "alice")] == [1, 2]


@pytest.mark.parametrize("user", ["a+b=c,d.e@f-_", "rooted", "x" * 64])
def test_any_user_name(aws: Canned, user: str) -> None:
    answer_keys(aws, key(1), user=user)
    (row,) = check_access_keys(aws, user)
    assert (row.id, row.cells["User"]) == (f"{user}/{FIRST}", user)


def test_a_key_whose_use_may_not_be_read_is_old_all_the_same(aws: Canned) -> None:
    answer_keys(aws, key(91), key(1, SECOND))
    aws.refuse("iam", "GetAccessKeyLastUsed")
    old, unread, young = seen(check_access_keys(aws, "alice"))
    assert (old.severity, old.control) == ("Medium", "IAM.3")
    assert unread.status == "NOT CHECKED"
    assert unread.result == "AccessDenied: iam GetAccessKeyLastUsed"
    assert young.result == "Key is rotated"


def test_a_key_deleted_meanwhile_is_gone_and_the_next_one_is_not(aws: Canned) -> None:
    answer_keys(aws, key(91), key(1, SECOND))
    aws.refuse("iam", "GetAccessKeyLastUsed", "NoSuchEntity")
    (row,) = check_access_keys(aws, "alice")
    assert row.id == f"alice/{SECOND}"


def test_root_with_keys_whatever_their_age(aws: Canned) -> None:
    answer_summary(aws, keys=1)
    expected = finding(
        ROOT,
        item="keys",
        message="has access keys",
        severity="Critical",
        control="IAM.4",
        cells={"User": ROOT},
    )
    assert seen(check_access_keys(aws, ROOT)) == seen([expected])


def test_root_without_keys(aws: Canned) -> None:
    answer_summary(aws)
    assert list(check_access_keys(aws, ROOT)) == []


# --- the users ----------------------------------------------------------------------------


def test_root_comes_first_and_5000_users_after_it(aws: Canned) -> None:
    names = [f"user-{n:04}" for n in range(5000)]
    for start in range(0, 5000, 1000):
        more = str(start) if start < 4000 else ""
        answer_users(aws, *names[start : start + 1000], more=more)
    assert list(users(aws)) == [ROOT, *names]


def test_an_account_without_users_says_so(aws: Canned) -> None:
    answer_users(aws)
    assert list(users(aws)) == [ROOT]  # beforehand: a run asks for root meanwhile
    answer_summary(aws)
    rows = seen(run_check("access-keys", aws).rows)
    assert [row.result for row in rows] == ["No access key among 1 users, root included"]


def test_a_user_deleted_meanwhile_gives_no_row(aws: Canned) -> None:
    aws.refuse("iam", "ListAccessKeys", "NoSuchEntity")
    answer_summary(aws, keys=1)
    found = run_check("access-keys", aws, targets=["alice", ROOT], threads=1)
    assert [row.id for row in found.rows] == [f"{ROOT}/keys"]
    assert found.failed_targets == set()
