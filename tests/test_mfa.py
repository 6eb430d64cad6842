"""Check 4: users and root without MFA; what the credential report says, and what is asked live."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import NOW, NUMBER, Canned
from making import answer_summary, answer_users, finding, fine, not_checked, run_check, seen

import security_check
from security_check import ROOT, Row, check_mfa, credential_report, describe_sign_in, report_date

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


def mfa_cells(
    user: str = "alice", *, password: str = "yes", last: Any = "", mfa: str = "yes"
) -> dict[str, Any]:
    return {"User": user, "Console password": password, "Last sign-in": last, "MFA": mfa}


def user_row(*, mfa: bool, password: str = "yes", last: Any = "never", control: str = "") -> Row:
    """The row about alice."""
    cells = mfa_cells(password=password, last=last, mfa="yes" if mfa else "no")
    if mfa:
        return fine("alice", message="Enabled", cells=cells)
    how = {
        ("yes", "never"): "can sign in with a password alone, but never did",
        ("yes", NOW): "signs in with a password alone, last on 2026-11-23",
        ("no", ""): "has no MFA device, and no console password",
    }[password, last]
    return finding("alice", message=how, severity="Medium", control=control, cells=cells)


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
    assert describe_sign_in(password, last) == words


@pytest.mark.parametrize(
    ("line", "about", "row"),
    [
        pytest.param("true,N/A,true", {}, user_row(mfa=True), id="MFA, never signed in"),
        pytest.param(
            "TRUE,N/A,FALSE",
            {"PasswordLastUsed": NOW},
            user_row(mfa=False, last=NOW, control="IAM.5, IAM.19"),
            id="console user",
        ),
        pytest.param(
            "false,N/A,false",
            {},
            user_row(mfa=False, password="no", last="", control="IAM.19"),
            id="no console password",
        ),
        pytest.param(
            "true,no_information,false",
            {},
            user_row(mfa=False, control="IAM.5, IAM.19"),
            id="no information",
        ),
    ],
)
def test_a_fresh_report_is_believed(aws: Canned, line: str, about: Any, row: Row) -> None:
    answer_report(aws, f"alice,arn,{line}")
    answer_users(aws, "alice", **about)
    assert seen(check_mfa(aws, "alice")) == seen([row])


VIRTUAL = {
    "SerialNumber": f"arn:aws:iam::{NUMBER}:mfa/x",
    "User": {
        "UserName": "alice",
        "UserId": "AIDAEXAMPLE0000000001",
        "Path": "/team/",
        "Arn": f"arn:aws:iam::{NUMBER}:user/team/alice",
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
    if not mfa:  # the password is confirmed too, and only then
        profile = {"UserName": "alice", "CreateDate": NOW}
        aws.answer("iam", "GetLoginProfile", {"LoginProfile": profile})
    expected = user_row(mfa=mfa, control="IAM.5, IAM.19")
    assert seen(check_mfa(aws, "alice")) == seen([expected])


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
        expected = user_row(mfa=False, control="IAM.5, IAM.19")
    else:
        aws.refuse("iam", "GetLoginProfile", "NoSuchEntity")
        expected = user_row(mfa=False, password="no", last="", control="IAM.19")
    assert seen(check_mfa(aws, "alice")) == seen([expected])


def test_a_user_deleted_after_the_report_is_no_row(aws: Canned) -> None:
    answer_report(aws, "alice,arn,true,N/A,false", "bob,arn,true,N/A,false")
    answer_users(aws, "alice")
    found = run_check("mfa", aws, targets=["alice"], threads=1)
    assert [row.id for row in found.rows] == ["alice"]


# --- MFA of root ------------------------------------------------------------------------------

ROOT_ALONE = "signs in with a password alone, last on 2026-11-23"
SIGNED_IN = f"{ROOT},arn,not_supported,2026-11-23T12:00:00+00:00,false"


def root_row(
    message: str, *, bad: bool = False, password: str = "yes", last: Any = NOW, mfa: str = ""
) -> Row:
    """The row about root, which has MFA unless it is bad, or told otherwise."""
    cells = mfa_cells(ROOT, password=password, last=last, mfa=mfa or ("no" if bad else "yes"))
    if not bad:
        return fine(ROOT, message=message, cells=cells)
    return finding(ROOT, message=message, severity="Critical", control="IAM.9", cells=cells)


@pytest.mark.parametrize(
    ("summary", "row"),
    [
        pytest.param({"mfa": 1}, root_row("Enabled"), id="any kind of MFA"),
        pytest.param({}, root_row(ROOT_ALONE, bad=True), id="no MFA"),
        pytest.param(
            {"password": None},
            root_row(ROOT_ALONE, bad=True),
            id="no MFA, and nothing is said of a password",
        ),
        pytest.param(
            {"password": 0},
            root_row("Root has no credentials", password="no", mfa="no"),
            id="credentials removed by the organization",
        ),
        pytest.param(
            {"password": 0, "keys": 1},
            root_row("has no MFA device, and no console password", password="no", bad=True),
            id="no password, but keys",
        ),
    ],
)
def test_root(aws: Canned, summary: Any, row: Row) -> None:
    answer_summary(aws, **summary)
    answer_report(aws, SIGNED_IN)
    assert seen(check_mfa(aws, ROOT)) == seen([row])


def test_root_of_govcloud_cannot_sign_in() -> None:
    aws = Canned(region="us-gov-west-1")
    answer_summary(aws)
    aws.refuse("iam", "GenerateCredentialReport")
    (row,) = check_mfa(aws, ROOT)
    assert (row.status, row.result) == ("OK", "Root has no credentials")


def test_root_without_a_report_loses_its_last_sign_in_only(aws: Canned) -> None:
    answer_summary(aws, mfa=1)
    aws.refuse("iam", "GenerateCredentialReport")
    assert seen(check_mfa(aws, ROOT)) == seen([root_row("Enabled", last="")])


def test_root_whose_summary_is_denied_is_not_checked_and_the_users_are(aws: Canned) -> None:
    aws.refuse("iam", "GetAccountSummary")
    answer_report(aws, "alice,arn,true,N/A,true")
    answer_users(aws, "alice")
    found = run_check("mfa", aws, targets=[ROOT, "alice"], threads=1)
    unread = not_checked(ROOT, error="AccessDenied: iam GetAccountSummary", cells={"User": ROOT})
    assert seen(found.rows) == seen([unread, user_row(mfa=True)])
