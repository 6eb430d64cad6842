"""Trails: what they record together, what the account lacks, and the flaws of each of them."""

from __future__ import annotations

from typing import Any

import pytest
from reading import CHECKS_BY_NAME, NUMBER
from world import (
    IRELAND,
    OTHER_ACCOUNT,
    VIRGINIA,
    Contents,
    TrailData,
    World,
    result_of,
    rows_of,
    selector,
    statuses,
)

from security_check import (
    ACCOUNT_TARGET,
    FAILED,
    NOT_CHECKED,
    OK,
    PASSED,
    AccountState,
    AuditInput,
    Remediation,
    Row,
    apply_change,
    apply_state,
    diff_with_state,
)

CHECK = CHECKS_BY_NAME["cloudtrail"]
STATUS = ("GetTrailStatus", IRELAND)
SELECTORS = ("GetEventSelectors", IRELAND)
ALL, KMS = (selector(),), "kms.amazonaws.com"
NOTHING_FOR_ALL = "The account has no multi-region trail that records all management events"


def trail(name: str = "main", **about: Any) -> TrailData:
    return TrailData(name, **about)


def told(trails: list[TrailData], *refused: tuple[str, str], **more: Any) -> list[str]:
    """The findings and gaps: severity and control, ID, sentence."""
    rows = rows_of(CHECK, Contents(trails=tuple(trails), **more), *refused)
    return [f"{level(row)}: {row.id}: {row.result}" for row in rows]


def level(row: Row) -> str:
    return NOT_CHECKED if row.error else " ".join(filter(None, (row.severity, row.control)))


def verdicts(trails: list[TrailData], *refused: tuple[str, str]) -> tuple[str, str]:
    """The status of CloudTrail.1 and of CloudTrail.4."""
    found = statuses(CHECK, Contents(trails=tuple(trails)), *refused)
    return found["CloudTrail.1"], found["CloudTrail.4"]


def high(why: str = "") -> str:
    return f"High CloudTrail.1: {ACCOUNT_TARGET}: {NOTHING_FOR_ALL}{why}"


def not_recorded(region: str, why: str) -> str:
    return f"High: {region}: Does not record the API calls of {region}: {why}"


# --- one row for each thing ------------------------------------------------------------------


def test_a_good_trail_has_no_finding() -> None:
    assert told([trail()]) == []
    assert verdicts([trail()]) == (PASSED, PASSED)


def test_no_trail() -> None:
    expected = [
        f"High: {name}: No trail records the API calls of {name}" for name in (IRELAND, VIRGINIA)
    ]
    assert told([]) == [high(), *expected]
    assert verdicts([]) == (FAILED, PASSED)


def test_a_trail_in_each_region_records_all_but_is_not_one_for_all() -> None:
    """Every row was OK, the exit code 0, and CloudTrail.1 FAILED."""
    single = [trail(multi_region=False), trail("other", home=VIRGINIA, multi_region=False)]
    assert told(single) == [high()]
    assert verdicts(single) == (FAILED, PASSED)


def test_a_second_trail_that_is_not_validated_has_a_row_of_its_own() -> None:
    """The good one hid it, and CloudTrail.4 FAILED without a row."""
    trails = [trail(), trail("team", validated=False)]
    sentence = "Does not validate its log files"
    assert told(trails) == [f"Low CloudTrail.4: {IRELAND}/team: {sentence}"]
    assert verdicts(trails) == (PASSED, FAILED)
    (row,) = rows_of(CHECK, Contents(trails=tuple(trails)))
    assert row.cells["Trail"] == "team"
    words = f"update-trail --name {trails[1].arn} --enable-log-file-validation --region {IRELAND}"
    assert row.remediation.command == f"aws cloudtrail {words}"


def test_a_stopped_trail_does_not_hide_its_other_flaws() -> None:
    """Its command starts it; next month its missing validation was a new finding."""
    assert told([trail(logging=False, validated=False)]) == [
        high(": main is stopped"),
        not_recorded(IRELAND, "logging stopped"),
        f"Low CloudTrail.4: {IRELAND}/main: Does not validate its log files",
        not_recorded(VIRGINIA, "logging stopped"),
    ]


def test_all_flaws_of_a_trail_are_in_its_row() -> None:
    flawed = trail(
        "team", validated=False, delivery_error="NoSuchBucket", digest_error="AccessDenied"
    )
    (row,) = rows_of(CHECK, Contents(trails=(trail(), flawed)))
    assert row.result == (
        "Does not validate its log files, cannot deliver its logs (NoSuchBucket)"
        " and cannot deliver its digests (AccessDenied)"
    )
    assert row.extent == {"log-file-validation", "delivery", "digests"}


# --- delivery --------------------------------------------------------------------------------


def test_a_trail_that_cannot_deliver_records_nothing() -> None:
    broken = trail(delivery_error="NoSuchBucket")
    assert told([broken]) == [
        not_recorded(IRELAND, "no delivery (NoSuchBucket)"),
        f"Low: {IRELAND}/main: Cannot deliver its logs (NoSuchBucket)",
        not_recorded(VIRGINIA, "no delivery (NoSuchBucket)"),
    ]
    assert verdicts([broken]) == (PASSED, PASSED)  # the rules of AWS do not look at delivery


@pytest.mark.parametrize("working", [trail("works", validated=False), trail("works")])
def test_it_does_not_hide_a_working_one(working: TrailData) -> None:
    broken = trail("broken", delivery_error="NoSuchBucket")
    for trails in ([broken, working], [working, broken]):
        result = result_of(CHECK, World(Contents(trails=tuple(trails))))
        regions = [row for row in result.rows if row.id in (IRELAND, VIRGINIA)]
        assert {(row.cells["Trail"], row.severity) for row in regions} == {("works", "")}
        assert any("Cannot deliver its logs" in row.result for row in result.rows)


def test_digests_that_are_not_delivered_are_a_flaw() -> None:
    found = told([trail(digest_error="AccessDenied")])
    assert found == [f"Low: {IRELAND}/main: Cannot deliver its digests (AccessDenied)"]


# --- what trails record together -------------------------------------------------------------


def test_reads_in_one_trail_and_writes_in_another() -> None:
    """One trail must do both (CloudTrail.1), but all API calls are recorded."""
    reads, writes = (trail(k, selectors=(selector(f"{k}Only"),)) for k in ("Read", "Write"))
    assert told([reads, writes]) == [high(": Read records read only and Write records write only")]
    assert verdicts([reads, writes]) == (FAILED, PASSED)
    result = result_of(CHECK, World(Contents(trails=(reads, writes))))
    shown = [row.cells["Trail"] for row in result.rows if row.id == IRELAND]
    assert shown == ["Read, Write"]


def test_half_of_the_events_are_said_to_be_half() -> None:
    reads = trail(selectors=(selector("ReadOnly"),))
    assert told([reads])[1] == f"High: {IRELAND}: Records only the read events of {IRELAND}"


def test_events_that_are_left_out_unless_another_trail_has_them() -> None:
    without = trail(selectors=(selector("All", KMS),))
    assert told([without]) == [
        high(f": main records read and write without {KMS}"),
        f"Low: {IRELAND}: Records {IRELAND}, but not {KMS}",
        f"Low: {VIRGINIA}: Records {VIRGINIA}, but not {KMS}",
    ]
    assert told([without, trail("all")]) == []


@pytest.mark.parametrize(("home", "low"), [(IRELAND, False), (VIRGINIA, True)])
def test_global_services_are_recorded_in_the_leading_region_only(home: str, low: bool) -> None:
    one = trail(home=home, multi_region=False, global_services=False)
    found = [row for row in rows_of(CHECK, Contents(trails=(one,))) if row.id == home]
    assert [row.result for row in found] == (
        [f"Records {home}, but not global services"] if low else []
    )
    if low:
        words = f"update-trail --name {one.arn} --include-global-service-events --region {home}"
        assert found[0].remediation.command == f"aws cloudtrail {words}"


# --- what was not read -----------------------------------------------------------------------


def test_a_stopped_trail_is_a_finding_though_its_selectors_are_refused() -> None:
    stopped = trail(logging=False, selectors=ALL)
    assert told([stopped], SELECTORS) == [
        high(": main is stopped"),
        not_recorded(IRELAND, "logging stopped"),
        not_recorded(VIRGINIA, "logging stopped"),
    ]


@pytest.mark.parametrize("refused", [STATUS, SELECTORS])
def test_validation_needs_neither_status_nor_selectors(refused: tuple[str, str]) -> None:
    assert verdicts([trail(selectors=ALL, validated=False)], refused) == (NOT_CHECKED, FAILED)
    assert verdicts([trail(selectors=ALL)], refused) == (NOT_CHECKED, PASSED)


def test_a_trail_that_was_not_read_is_not_needed_where_others_record_all() -> None:
    """But whether it delivers what it records is not known."""
    trails = [trail(selectors=ALL), trail("works", home=VIRGINIA)]
    gap = "AccessDenied: cloudtrail GetTrailStatus"
    assert told(trails, STATUS) == [f"{NOT_CHECKED}: {IRELAND}/main/not-checked: {gap}"]
    assert told(trails, SELECTORS) == []
    assert verdicts(trails, STATUS) == (PASSED, PASSED)


def test_what_one_leaves_out_the_unread_one_may_record() -> None:
    trails = [trail(selectors=ALL), trail("x", home=VIRGINIA, selectors=(selector("All", KMS),))]
    gap = "AccessDenied: cloudtrail GetTrailStatus"
    names = (ACCOUNT_TARGET, IRELAND, VIRGINIA)
    assert told(trails, STATUS) == [f"{NOT_CHECKED}: {one}/not-checked: {gap}" for one in names]


def test_a_region_that_is_refused_is_proven_by_others_but_may_have_trails_of_its_own() -> None:
    refused = ("DescribeTrails", VIRGINIA)
    gap = f"{NOT_CHECKED}: {VIRGINIA}/not-checked: AccessDenied: cloudtrail DescribeTrails"
    assert told([trail()], refused) == [gap]
    result = result_of(CHECK, World(Contents(trails=(trail(),)), [refused]))
    assert [row.status for row in result.rows if row.target == VIRGINIA] == [OK, NOT_CHECKED]
    assert verdicts([trail()], refused) == (PASSED, NOT_CHECKED)
    single = trail(multi_region=False)
    assert told([single], refused)[1:] == [gap]
    # what the others leave out, a trail of the region may record
    assert told([trail(selectors=(selector("All", KMS),))], refused)[2:] == [gap]


@pytest.mark.parametrize("refused", [("DescribeTrails", IRELAND), STATUS], ids=lambda one: one[0])
@pytest.mark.parametrize("validated", [True, False])
def test_a_flaw_that_was_not_looked_for_is_not_resolved(
    refused: tuple[str, str], validated: bool
) -> None:
    """Another trail records all, so that nothing else of its region was NOT CHECKED."""
    flawed = trail(digest_error="AccessDenied", validated=validated)
    contents, state = Contents(trails=(trail("works", home=VIRGINIA), flawed)), AccountState()
    for day, calls in (("2030-08-01", []), ("2030-09-01", [refused]), ("2030-10-01", [])):
        aws = World(contents, calls)
        result = apply_state(result_of(CHECK, aws), state, day)
        given = AuditInput([result.check], [], state, day)
        change = diff_with_state([result], given, aws, {})
        state = apply_change(state, change)
        assert (change.resolved, {row.change for row in result.rows}) == ({}, {""})
        assert bool(calls) == any(row.error for row in result.rows)
    assert [*state.findings] == [f"cloudtrail/{IRELAND}/main"]


def test_one_region_shows_whether_there_is_a_trail_for_all() -> None:
    contents = Contents(trails=(trail(),))
    assert statuses(CHECK, contents, only_regions=(IRELAND,))["CloudTrail.1"] == PASSED


# --- whose it is -----------------------------------------------------------------------------


def test_the_trail_of_the_organization_counts_and_is_left_to_its_owner() -> None:
    theirs = trail(owner=OTHER_ACCOUNT, validated=False)
    assert told([theirs]) == []
    assert verdicts([theirs]) == (PASSED, PASSED)  # its validation is not ours to judge
    result = result_of(CHECK, World(Contents(trails=(theirs,))))
    assert {row.result for row in result.rows} == {f"Enabled by account {OTHER_ACCOUNT}"}


def test_a_stopped_trail_of_another_account_is_not_commanded() -> None:
    """A delegated administrator's trail belongs to the management account too."""
    rows = rows_of(CHECK, Contents(trails=(trail(owner=OTHER_ACCOUNT, logging=False),)))
    by_hand = Remediation(manual=f"a trail of account {OTHER_ACCOUNT}")
    assert {row.remediation for row in rows if row.id != ACCOUNT_TARGET} == {by_hand}


def test_the_command_starts_a_trail_of_ours_that_then_records_all() -> None:
    reads = trail("reads", logging=False, selectors=(selector("ReadOnly"),))
    stopped = trail("all", logging=False)
    rows = rows_of(CHECK, Contents(trails=(reads, stopped)))
    starts = f"aws cloudtrail start-logging --name {stopped.arn} --region {IRELAND}"
    assert {row.remediation.command for row in rows if row.id in (IRELAND, VIRGINIA)} == {starts}


# --- calls -----------------------------------------------------------------------------------


def test_calls_for_all_rows() -> None:
    trails = (trail(selectors=ALL), trail("second", owner=OTHER_ACCOUNT))
    aws = World(Contents(trails=trails))
    result_of(CHECK, aws)
    expected = {
        "DescribeRegions": 1,
        "DescribeTrails": 2,
        "GetTrailStatus": 2,
        "GetEventSelectors": 1,
    }
    assert aws.calls == expected
    assert aws.number == NUMBER


def test_the_row_of_a_region_is_this_accounts_own_whatever_trail_it_shows() -> None:
    """With the ARN of another account's trail it would vanish from an overview of both."""
    shared = trail(owner=OTHER_ACCOUNT, delivery_error="AccessDenied")
    found = rows_of(CHECK, Contents(trails=(shared,)))
    rows = [row for row in found if row.severity == "High" and row.target != ACCOUNT_TARGET]
    assert rows
    assert not [row.arn for row in rows if OTHER_ACCOUNT in row.arn]
