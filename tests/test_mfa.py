"""Checks 3 and 4: access keys that are old, users and root without MFA."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from conftest import NOW, Canned

import security_check
from security_check import (
    CHECKS,
    ROOT,
    Row,
    Unanswered,
    check_access_keys,
    check_mfa,
    credential_report,
    due_day,
    gap,
    key_age,
    report_date,
    result_words,
    run_check,
    sign_in_words,
    users,
)

KEYS, MFA = CHECKS[2], CHECKS[3]


def quiet(text: str) -> None:
    """No progress."""


def key_cells(*values: Any) -> dict[str, Any]:
    return dict(zip(KEYS.columns, values, strict=True))


def mfa_cells(*values: Any) -> dict[str, Any]:
    return dict(zip(MFA.columns, values, strict=True))


# --- access keys ------------------------------------------------------------------------


def key(days: float, id: str = "AKIAEXAMPLE000000001", status: str = "Active") -> dict[str, Any]:
    return {"AccessKeyId": id, "CreateDate": NOW - timedelta(days=days), "Status": status}


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
    cells = key_cells("alice", one["AccessKeyId"], "Active", one["CreateDate"], int(days), "")
    expected = Row("alice", one["AccessKeyId"], cells, result)
    assert list(check_access_keys(aws, "alice")) == [expected]


@pytest.mark.parametrize(
    ("status", "verdict"), [("Active", ("Medium", "IAM.3")), ("Inactive", ("Low", ""))]
)
@pytest.mark.parametrize(
    ("used", "shown"),
    [
        pytest.param({}, "never", id="never used"),
        pytest.param({"LastUsedDate": NOW}, NOW, id="used in a region that is not told"),
    ],
)
def test_a_key_of_91_days(
    aws: Canned, status: str, verdict: tuple[str, str], used: Any, shown: Any
) -> None:
    answer_keys(aws, one := key(91, status=status))
    answer_used(aws, **used)
    cells = key_cells("alice", one["AccessKeyId"], status, one["CreateDate"], 91, shown)
    start = {"Active": "Key", "Inactive": "Inactive key"}[status]
    end = "never used" if shown == "never" else "used on 2026-11-23"
    said = f"{start} of alice is 91 days old and was {end}"
    expected = Row("alice", one["AccessKeyId"], cells, said, *verdict)
    assert list(check_access_keys(aws, "alice")) == [expected]


def test_another_age_may_be_asked_for() -> None:
    aws = Canned(max_key_age=30)
    answer_keys(aws, key(30), key(31, "AKIAEXAMPLE000000002"))
    answer_used(aws)
    young, old = check_access_keys(aws, "alice")
    assert young.result == "Key is rotated, due 2026-11-24"
    assert old.result == "Key of alice is 31 days old and was never used"


def test_two_keys_on_two_pages(aws: Canned) -> None:
    first = {"AccessKeyMetadata": [key(1)], "IsTruncated": True, "Marker": "more"}
    aws.answer("iam", "ListAccessKeys", first)
    answer = {"AccessKeyMetadata": [key(2, "AKIAEXAMPLE000000002")], "IsTruncated": False}
    aws.answer("iam", "ListAccessKeys", answer)
    assert [row.cells["Age (days)"] for row in check_access_keys(aws, "alice")] == [1, 2]


@pytest.mark.parametrize("user", ["a+b=c,d.e@f-_", "rooted", "x" * 64])
def test_any_user_name(aws: Canned, user: str) -> None:
    answer_keys(aws, key(1), user=user)
    (row,) = check_access_keys(aws, user)
    assert (row.id, row.cells["User"]) == (f"{user}/AKIAEXAMPLE000000001", user)


def test_a_key_whose_use_may_not_be_read_is_not_checked_and_the_next_one_is(aws: Canned) -> None:
    answer_keys(aws, key(91), key(1, "AKIAEXAMPLE000000002"))
    aws.refuse("iam", "GetAccessKeyLastUsed")
    unread, fine = check_access_keys(aws, "alice")
    assert (unread.status, result_words(unread)) == (
        "NOT CHECKED",
        "AccessDenied: iam GetAccessKeyLastUsed",
    )
    assert fine.result == "Key is rotated"


def test_a_key_deleted_meanwhile_is_gone_and_the_next_one_is_not(aws: Canned) -> None:
    answer_keys(aws, key(91), key(1, "AKIAEXAMPLE000000002"))
    aws.refuse("iam", "GetAccessKeyLastUsed", "NoSuchEntity")
    (row,) = check_access_keys(aws, "alice")
    assert row.id == "alice/AKIAEXAMPLE000000002"


def answer_summary(aws: Canned, mfa: int = 0, keys: int = 0, password: int | None = 1) -> None:
    summary = {"AccountMFAEnabled": mfa, "AccountAccessKeysPresent": keys}
    if password is not None:
        summary["AccountPasswordPresent"] = password
    aws.answer("iam", "GetAccountSummary", {"SummaryMap": summary})


def test_root_with_keys_whatever_their_age(aws: Canned) -> None:
    answer_summary(aws, keys=1)
    expected = Row(ROOT, "keys", {"User": ROOT}, "Root has access keys", "Critical", "IAM.4")
    assert list(check_access_keys(aws, ROOT)) == [expected]


def test_root_without_keys(aws: Canned) -> None:
    answer_summary(aws)
    assert list(check_access_keys(aws, ROOT)) == []


# --- the users ----------------------------------------------------------------------------


def answer_users(aws: Canned, *names: str, **about: Any) -> None:
    found = [
        {
            "UserName": name,
            "UserId": "AIDAEXAMPLE0000000001",
            "Path": "/team/",
            "Arn": f"arn:aws:iam::123456789012:user/team/{name}",
            "CreateDate": NOW,
            **about,
        }
        for name in names
    ]
    aws.answer("iam", "ListUsers", {"Users": found, "IsTruncated": False})


def test_root_comes_first_and_5000_users_after_it(aws: Canned) -> None:
    names = [f"user-{n:04}" for n in range(5000)]
    base = {"UserId": "AIDAEXAMPLE0000000001", "Path": "/", "CreateDate": NOW}
    for start in range(0, 5000, 1000):
        found = [
            {**base, "UserName": name, "Arn": f"arn:aws:iam::123456789012:user/{name}"}
            for name in names[start : start + 1000]
        ]
        more = {"IsTruncated": True, "Marker": str(start)} if start < 4000 else {}
        aws.answer("iam", "ListUsers", {"Users": found, **more})
    assert list(users(aws)) == [ROOT, *names]


def test_an_account_without_users_says_so(aws: Canned) -> None:
    answer_users(aws)
    assert list(users(aws)) == [ROOT]  # beforehand: a run asks for root meanwhile
    answer_summary(aws)
    sheet = run_check(KEYS, aws, quiet)
    assert [row.result for row in sheet.rows] == ["No access key among 1 users, root included"]


def test_a_user_deleted_meanwhile_gives_no_row(aws: Canned) -> None:
    aws.refuse("iam", "ListAccessKeys", "NoSuchEntity")
    aws.answer("iam", "GetAccountSummary", {"SummaryMap": {"AccountAccessKeysPresent": 1}})
    sheet = run_check(replace(KEYS, threads=1, over=lambda _: ["alice", ROOT]), aws, quiet)
    assert [row.id for row in sheet.rows] == [f"{ROOT}/keys"]
    assert sheet.unread == set()


# --- the credential report ------------------------------------------------------------------

HEADER = "user,arn,password_enabled,password_last_used,mfa_active"


def answer_report(aws: Canned, *lines: str, state: str = "STARTED") -> None:
    aws.answer("iam", "GenerateCredentialReport", {"State": state})
    content = "\n".join([HEADER, *lines]).encode()
    aws.answer("iam", "GetCredentialReport", {"Content": content, "ReportFormat": "text/csv"})


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    taken: list[float] = []
    monkeypatch.setattr("time.sleep", taken.append)
    return taken


@pytest.mark.parametrize(("state", "fresh"), [("STARTED", True), ("COMPLETE", False)])
def test_only_a_report_that_was_started_for_this_run_is_fresh(
    aws: Canned, state: str, fresh: bool
) -> None:
    answer_report(aws, "alice,arn,true,N/A,true", state=state)
    assert credential_report(aws)[0] is fresh
    assert credential_report(aws)[1]["alice"]["mfa_active"] == "true"  # asked once


@pytest.mark.parametrize("code", ["ReportInProgress", "ReportNotPresent", "ReportExpired"])
def test_a_report_that_is_not_there_yet_is_waited_for(
    aws: Canned, naps: list[float], code: str
) -> None:
    aws.answer("iam", "GenerateCredentialReport", {"State": "STARTED"})
    aws.refuse("iam", "GetCredentialReport", code).refuse("iam", "GetCredentialReport", code)
    content = f"{HEADER}\nalice,arn,true,N/A,true".encode()
    aws.answer("iam", "GetCredentialReport", {"Content": content})
    assert set(credential_report(aws)[1]) == {"alice"}
    assert naps == [security_check.REPORT_PAUSE] * 2


def test_a_report_that_is_not_there_after_a_minute_is_done_without(
    aws: Canned, naps: list[float]
) -> None:
    aws.answer("iam", "GenerateCredentialReport", {"State": "INPROGRESS"})
    for _ in range(30):
        aws.refuse("iam", "GetCredentialReport", "ReportInProgress")
    assert credential_report(aws) == (False, {})
    assert sum(naps) == 60


@pytest.mark.parametrize("call", ["GenerateCredentialReport", "GetCredentialReport"])
def test_a_report_that_is_denied_is_done_without(aws: Canned, call: str) -> None:
    if call == "GetCredentialReport":
        aws.answer("iam", "GenerateCredentialReport", {"State": "STARTED"})
    aws.refuse("iam", call)
    assert credential_report(aws) == (False, {})


@pytest.mark.parametrize("text", ["no_information", "N/A", "not_supported", ""])
def test_words_for_no_date(text: str) -> None:
    assert report_date(text) == ""


@pytest.mark.parametrize("text", ["2026-11-23T12:00:00+00:00", "2026-11-23T12:00:00Z"])
def test_dates_of_the_report(text: str) -> None:
    assert report_date(text) == NOW


# --- MFA ------------------------------------------------------------------------------------


def user_row(mfa: bool, password: str, last: Any, control: str = "") -> Row:
    cells = mfa_cells("alice", password, last, "yes" if mfa else "no")
    if mfa:
        return Row("alice", "", cells, "Enabled")
    how = {
        ("yes", "never"): "can sign in with a password alone, but never did",
        ("yes", NOW): "signs in with a password alone, last on 2026-11-23",
        ("no", ""): "has no MFA device, and no console password",
    }[password, last]
    return Row("alice", "", cells, f"alice {how}", "Medium", control)


@pytest.mark.parametrize(
    ("password", "last", "words"),
    [
        (True, NOW, "signs in with a password alone, last on 2026-11-23"),
        (True, "never", "can sign in with a password alone, but never did"),
        (True, "", "can sign in with a password alone"),
        (False, NOW, "has no MFA device, and no console password"),
        (False, "", "has no MFA device, and no console password"),
    ],
)
def test_how_somebody_signs_in_without_mfa(password: bool, last: Any, words: str) -> None:
    assert sign_in_words(password, last) == words


@pytest.mark.parametrize(
    ("line", "about", "row"),
    [
        pytest.param(
            "true,N/A,true", {}, user_row(True, "yes", "never"), id="MFA, never signed in"
        ),
        pytest.param(
            "TRUE,N/A,FALSE",
            {"PasswordLastUsed": NOW},
            user_row(False, "yes", NOW, "IAM.5"),
            id="console user",
        ),
        pytest.param(
            "false,N/A,false", {}, user_row(False, "no", "", "IAM.19"), id="no console password"
        ),
        pytest.param(
            "true,no_information,false",
            {},
            user_row(False, "yes", "never", "IAM.5"),
            id="no information",
        ),
    ],
)
def test_a_fresh_report_is_believed(aws: Canned, line: str, about: Any, row: Row) -> None:
    answer_report(aws, f"alice,arn,{line}")
    answer_users(aws, "alice", **about)
    assert list(check_mfa(aws, "alice")) == [row]


VIRTUAL = {
    "SerialNumber": "arn:aws:iam::123456789012:mfa/x",
    "User": {
        "UserName": "alice",
        "UserId": "AIDAEXAMPLE0000000001",
        "Path": "/team/",
        "Arn": "arn:aws:iam::123456789012:user/team/alice",
        "CreateDate": NOW,
    },
}


def answer_devices(aws: Canned, *virtual: Any, own: Any = None) -> None:
    aws.answer("iam", "ListVirtualMFADevices", {"VirtualMFADevices": list(virtual)})
    if own is not None:
        found = [
            {"UserName": "alice", "SerialNumber": f"arn:aws:iam::1:{serial}", "EnableDate": NOW}
            for serial in own
        ]
        aws.answer("iam", "ListMFADevices", {"MFADevices": found})


@pytest.mark.parametrize("reported", ["true", "false"])
@pytest.mark.parametrize(
    ("virtual", "own", "mfa"),
    [
        pytest.param([VIRTUAL], None, True, id="virtual"),
        pytest.param([], ["u2f/user/alice/key"], True, id="passkey or hardware"),
        pytest.param([], ["u2f/user/alice/a", "sms/b"], True, id="two devices"),
        pytest.param([], [], False, id="none"),
        pytest.param([{"SerialNumber": "arn:aws:iam::1:mfa/y"}], [], False, id="device of nobody"),
    ],
)
def test_an_old_report_is_confirmed_live(
    aws: Canned, reported: str, virtual: Any, own: Any, mfa: bool
) -> None:
    answer_report(aws, f"alice,arn,true,N/A,{reported}", state="COMPLETE")
    answer_users(aws, "alice")
    answer_devices(aws, *virtual, own=own)
    assert list(check_mfa(aws, "alice")) == [user_row(mfa, "yes", "never", "IAM.5")]


@pytest.mark.parametrize("lines", [[], ["bob,arn,true,N/A,true"]], ids=["denied", "without her"])
@pytest.mark.parametrize("password", [True, False])
def test_a_user_who_is_not_in_the_report_is_asked_about_live(
    aws: Canned, lines: list[str], password: bool
) -> None:
    if lines:
        answer_report(aws, *lines)
    else:
        aws.refuse("iam", "GenerateCredentialReport")
    answer_users(aws, "alice")
    answer_devices(aws, own=[])
    if password:
        profile = {"UserName": "alice", "CreateDate": NOW}
        aws.answer("iam", "GetLoginProfile", {"LoginProfile": profile})
        expected = user_row(False, "yes", "never", "IAM.5")
    else:
        aws.refuse("iam", "GetLoginProfile", "NoSuchEntity")
        expected = user_row(False, "no", "", "IAM.19")
    assert list(check_mfa(aws, "alice")) == [expected]


def test_a_user_deleted_after_the_report_is_no_row(aws: Canned) -> None:
    answer_report(aws, "alice,arn,true,N/A,false", "bob,arn,true,N/A,false")
    answer_users(aws, "alice")
    over_users = replace(MFA, threads=1, over=lambda _: ["alice"])
    assert [row.id for row in run_check(over_users, aws, quiet).rows] == ["alice"]


# --- MFA of root ------------------------------------------------------------------------------

ROOT_ALONE = "Root signs in with a password alone, last on 2026-11-23"
SIGNED_IN = f"{ROOT},arn,not_supported,2026-11-23T12:00:00+00:00,false"


@pytest.mark.parametrize(
    ("summary", "cells", "result", "verdict"),
    [
        pytest.param({"mfa": 1}, ("yes", NOW, "yes"), "Enabled", ("", ""), id="any kind of MFA"),
        pytest.param({}, ("yes", NOW, "no"), ROOT_ALONE, ("Critical", "IAM.9"), id="no MFA"),
        pytest.param(
            {"password": None},
            ("yes", NOW, "no"),
            ROOT_ALONE,
            ("Critical", "IAM.9"),
            id="no MFA, and nothing is said of a password",
        ),
        pytest.param(
            {"password": 0},
            ("no", NOW, "no"),
            "Root has no credentials",
            ("", ""),
            id="credentials removed by the organization",
        ),
        pytest.param(
            {"password": 0, "keys": 1},
            ("no", NOW, "no"),
            "Root has no MFA device, and no console password",
            ("Critical", "IAM.9"),
            id="no password, but keys",
        ),
    ],
)
def test_root(
    aws: Canned, summary: Any, cells: tuple[Any, ...], result: str, verdict: tuple[str, str]
) -> None:
    answer_summary(aws, **summary)
    answer_report(aws, SIGNED_IN)
    (row,) = check_mfa(aws, ROOT)
    assert (row.cells, row.result) == (mfa_cells(ROOT, *cells), result)
    assert (row.severity, row.control) == verdict


def test_root_of_govcloud_cannot_sign_in() -> None:
    aws = Canned(region="us-gov-west-1")
    answer_summary(aws)
    aws.refuse("iam", "GenerateCredentialReport")
    (row,) = check_mfa(aws, ROOT)
    assert (row.status, row.result) == ("OK", "Root has no credentials")


def test_root_without_a_report_loses_its_last_sign_in_only(aws: Canned) -> None:
    answer_summary(aws, mfa=1)
    aws.refuse("iam", "GenerateCredentialReport")
    (row,) = check_mfa(aws, ROOT)
    assert row == Row(ROOT, "", mfa_cells(ROOT, "yes", "", "yes"), "Enabled")


def test_root_whose_summary_is_denied_is_not_checked_and_the_users_are(aws: Canned) -> None:
    aws.refuse("iam", "GetAccountSummary")
    answer_report(aws, "alice,arn,true,N/A,true")
    answer_users(aws, "alice")
    one_thread = replace(MFA, threads=1, over=lambda _: [ROOT, "alice"])
    rows = run_check(one_thread, aws, quiet).rows
    denied = Unanswered("AccessDenied", "iam", "GetAccountSummary")
    unread = gap(ROOT, "", {"User": ROOT}, denied)
    assert rows == [unread, user_row(True, "yes", "never")]
