"""Users as they are now, whatever an older credential report says; and their keys."""

from __future__ import annotations

from datetime import timedelta

import pytest
from conftest import Canned
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reading import CHECKS_BY_NAME, NOW
from world import Contents, User, World, controls_of, result_of, rows_of, statuses

from security_check import FAILED, NOT_CHECKED, PASSED, ROOT, Row, check_mfa

MFA, KEYS = CHECKS_BY_NAME["mfa"], CHECKS_BY_NAME["access-keys"]
OLD, FRESH = False, True


def account(alice: User, fresh: bool = OLD) -> Contents:
    return Contents(users={"alice": alice}, fresh_report=fresh)


def of_alice(contents: Contents, *refused: tuple[str, str]) -> list[Row]:
    rows = result_of(MFA, World(contents, refused)).rows
    return [row for row in rows if row.target == "alice"]


# --- console passwords -----------------------------------------------------------------------


def test_a_password_that_is_newer_than_the_report() -> None:
    contents = account(User(password=True, before=(False, False)))
    (row,) = of_alice(contents)
    assert (row.control, row.cells["Console password"]) == ("IAM.5, IAM.19", "yes")
    assert row.result == "Can sign in with a password alone, but never did"
    assert statuses(MFA, contents)["IAM.5"] == FAILED


def test_a_password_that_was_removed_after_the_report() -> None:
    contents = account(User(password=False, before=(True, False)))
    (row,) = of_alice(contents)
    assert (row.control, row.cells["Console password"]) == ("IAM.19", "no")
    assert row.result == "Has no MFA device, and no console password"
    assert statuses(MFA, contents)["IAM.5"] == PASSED


users = st.builds(
    User,
    st.booleans(),
    st.sampled_from(["", "virtual", "passkey"]),
    st.one_of(st.none(), st.tuples(st.booleans(), st.booleans())),
)


@settings(max_examples=200, deadline=None, database=None, suppress_health_check=[*HealthCheck])
@given(st.dictionaries(st.sampled_from("abcdef"), users), st.booleans())
def test_an_old_report_never_decides(found: dict[str, User], fresh: bool) -> None:
    status = controls_of(result_of(MFA, World(Contents(users=found, fresh_report=fresh))))
    without = [user for user in found.values() if not user.mfa]
    assert status["IAM.19"].failed == len(without)
    assert status["IAM.5"].failed == sum(user.password for user in without)


def test_calls_that_an_old_report_costs() -> None:
    """One a user without MFA for the password, as one for the device."""
    alone = {name: User(password=True, before=(True, False)) for name in ("a", "b", "c")}
    safe = {name: User(password=True, mfa="virtual", before=(True, True)) for name in ("d", "e")}
    aws = World(Contents(users=alone | safe, fresh_report=OLD))
    result_of(MFA, aws)
    assert (aws.calls["GetLoginProfile"], aws.calls["ListMFADevices"]) == (3, 3)
    aws = World(Contents(users=alone | safe, fresh_report=FRESH))
    result_of(MFA, aws)
    assert (aws.calls["GetLoginProfile"], aws.calls["ListMFADevices"]) == (0, 0)


@pytest.mark.parametrize(
    ("alice", "control", "iam_5"),
    [
        (User(password=True, before=(False, False)), "IAM.19", NOT_CHECKED),
        (User(password=True, mfa="virtual"), "", PASSED),
    ],
    ids=["without MFA", "with MFA, of whom the report is enough"],
)
def test_a_password_that_is_refused_costs_only_what_it_is_about(
    alice: User, control: str, iam_5: str
) -> None:
    refused = ("GetLoginProfile", "alice")
    row, *gaps = of_alice(account(alice), refused)
    assert row.control == control
    assert statuses(MFA, account(alice), refused)["IAM.5"] == iam_5
    assert statuses(MFA, account(alice), refused)["IAM.19"] == (FAILED if control else PASSED)
    if not control:
        assert gaps == []
        return
    assert (row.cells["Console password"], row.fully_read) == (NOT_CHECKED, False)
    assert row.result == "Has no MFA device"
    assert [gap.id for gap in gaps] == ["alice/password/not-checked"]


# --- devices ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["virtual", "passkey"])
def test_any_device_will_do_also_a_passkey_alone(kind: str) -> None:
    (row,) = of_alice(account(User(password=True, mfa=kind, before=(True, False))))
    assert (row.severity, row.cells["MFA"]) == ("", "yes")


def test_an_account_in_its_first_hour(aws: Canned) -> None:
    """No user, no report yet: nothing is wrong with it but what is true of its root."""
    summary = {"AccountMFAEnabled": 0, "AccountAccessKeysPresent": 0, "AccountPasswordPresent": 1}
    aws.answer("iam", "GetAccountSummary", {"SummaryMap": summary})
    aws.refuse("iam", "GenerateCredentialReport", "LimitExceeded")
    (row,) = check_mfa(aws, ROOT)
    assert (row.severity, row.control, row.cells["Last sign-in"]) == ("Critical", "IAM.9", "")


@pytest.mark.parametrize(
    ("region", "manual"),
    [
        ("us-east-1", "sign in as root"),
        ("us-gov-west-1", "have AWS Support delete its keys"),
        ("cn-north-1", "have AWS Support delete its keys"),
    ],
)
def test_nobody_signs_in_as_root_in_govcloud_and_china(region: str, manual: str) -> None:
    aws = World(Contents(regions=(region,), root={"AccountAccessKeysPresent": 1}))
    aws.home_region = region
    (row,) = KEYS.rows(aws, ROOT)
    assert (row.control, row.remediation.manual) == ("IAM.4", manual)


# --- keys ------------------------------------------------------------------------------------


def key_of(age: int, status: str = "Active") -> Contents:
    return Contents(users={"alice": User(keys=((age, status),))})


@pytest.mark.parametrize(
    ("age", "max_key_age", "severity", "control", "status"),
    [
        (90, 90, "", "", PASSED),
        (91, 90, "Medium", "IAM.3", FAILED),
        (60, 30, "Medium", "", PASSED),  # ours is stricter
        (100, 365, "", "", NOT_CHECKED),  # ours is laxer: it is not said that the control passed
        (400, 365, "Medium", "IAM.3", FAILED),
    ],
)
def test_the_control_is_about_90_days_whatever_is_asked(
    age: int, max_key_age: int, severity: str, control: str, status: str
) -> None:
    contents = key_of(age)
    rows = [
        row for row in result_of(KEYS, World(contents, max_key_age=max_key_age)).rows if row.item
    ]
    assert [(row.severity, row.control) for row in rows] == [(severity, control)]
    assert statuses(KEYS, contents, max_key_age=max_key_age)["IAM.3"] == status


def test_a_last_use_that_is_refused_costs_only_itself() -> None:
    row, gap = rows_of(KEYS, key_of(400), ("GetAccessKeyLastUsed", "AKIAalice0"))
    assert (row.severity, row.control, row.cells["Last used"]) == ("Medium", "IAM.3", NOT_CHECKED)
    assert row.result == "Key is 400 days old and its last use is NOT CHECKED"
    assert "--status Inactive" in row.remediation.command
    assert gap.id == "alice/AKIAalice0/not-checked"


def test_the_days_are_counted_from_the_creation() -> None:
    """The report counts from the last activation, as Security Hub does: the control says so."""
    assert NOW - timedelta(days=91) < NOW
    assert KEYS.controls["IAM.3"].requirement == (
        "No active access key was created more than 90 days ago"
    )
