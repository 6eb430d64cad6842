"""Check 5: whether every region's API calls are recorded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from conftest import NUMBER, Canned
from making import finding, fine, not_checked, run_check, seen

from security_check import (
    AwsCallFailed,
    AwsError,
    check_cloudtrail,
    describe_recording,
    evaluate_trail,
    recorded_together,
    region_row,
    selector_recordings,
    trail_flaws,
)

HOME, REGION = "eu-central-1", "eu-west-1"
ARN = f"arn:aws:cloudtrail:{HOME}:{NUMBER}:trail/main"
ALL = {"EventSelectors": [{"ReadWriteType": "All", "IncludeManagementEvents": True}]}


def trail(name: str = "main", **about: Any) -> dict[str, Any]:
    return {
        "Name": name,
        "TrailARN": ARN.replace("main", name),
        "HomeRegion": HOME,
        "IsMultiRegionTrail": True,
        "LogFileValidationEnabled": True,
        "IncludeGlobalServiceEvents": True,
        "HasCustomEventSelectors": False,
        **about,
    }


def answer_trails(aws: Canned, region: str, *trails: dict[str, Any]) -> None:
    sent = {"includeShadowTrails": True}
    aws.answer("cloudtrail", "DescribeTrails", {"trailList": list(trails)}, region, sent)


def answer_status(aws: Canned, logging: bool = True, name: str = "main", **status: Any) -> None:
    """Asked of the home region, by ARN."""
    sent = {"Name": ARN.replace("main", name)}
    aws.answer("cloudtrail", "GetTrailStatus", {"IsLogging": logging, **status}, HOME, sent)


def trail_cells(
    region: str = REGION,
    *,
    trail: str = "main",
    home: str = HOME,
    multi: str = "yes",
    logging: str = "yes",
    events: str = "read and write",
    validation: str = "yes",
) -> dict[str, Any]:
    return {
        "Region": region,
        "Trail": trail,
        "Home region": home,
        "Multi-region": multi,
        "Logging": logging,
        "Management events": events,
        "Log file validation": validation,
    }


# --- which events are recorded ---------------------------------------------------------------


def basic(kind: str = "All", management: bool = True, *excluded: str) -> dict[str, Any]:
    about: dict[str, Any] = {"ReadWriteType": kind, "IncludeManagementEvents": management}
    return {**about, "ExcludeManagementEventSources": list(excluded)}


def advanced(*fields: tuple[str, str, list[str]], category: str = "Management") -> dict[str, Any]:
    first = {"Field": "eventCategory", "Equals": [category]}
    rest = [{"Field": name, how: values} for name, how, values in fields]
    return {"Name": "any name", "FieldSelectors": [first, *rest]}


READ_PREFIXES = ("readOnly", "Equals", ["true"])
WRITES = ("readOnly", "Equals", ["false"])
NO_KMS = ("eventSource", "NotEquals", ["kms.amazonaws.com"])
KMS, RDS = "kms.amazonaws.com", "rdsdata.amazonaws.com"
BOTH = {"read", "write"}


@pytest.mark.parametrize(
    ("selectors", "recorded", "left_out"),
    [
        pytest.param([basic()], BOTH, set(), id="all"),
        pytest.param([basic("ReadOnly")], {"read"}, set(), id="read"),
        pytest.param([basic("WriteOnly")], {"write"}, set(), id="write"),
        pytest.param([basic("ReadOnly"), basic("WriteOnly")], BOTH, set(), id="adding up"),
        pytest.param([basic("All", False)], set(), set(), id="data events only"),
        pytest.param([], set(), set(), id="no selector"),
        pytest.param([basic("All", True, KMS, RDS)], BOTH, {KMS, RDS}, id="without KMS and RDS"),
        pytest.param(
            [basic("All", True, KMS), basic()], BOTH, set(), id="left out by one, recorded by other"
        ),
        pytest.param(
            [basic("All", True, KMS), basic("ReadOnly")],
            BOTH,
            {KMS},
            id="left out of the writes only",
        ),
        pytest.param([advanced()], BOTH, set(), id="advanced, all"),
        pytest.param([advanced(READ_PREFIXES)], {"read"}, set(), id="advanced, read"),
        pytest.param([advanced(WRITES)], {"write"}, set(), id="advanced, write"),
        pytest.param(
            [advanced(READ_PREFIXES), advanced(WRITES)], BOTH, set(), id="advanced, adding up"
        ),
        pytest.param([advanced(NO_KMS)], BOTH, {KMS}, id="advanced, without KMS"),
        pytest.param([advanced(category="Data")], set(), set(), id="advanced, data events"),
        pytest.param(
            [advanced(("eventSource", "Equals", ["s3.amazonaws.com"]))],
            set(),
            set(),
            id="advanced, one service only",
        ),
        pytest.param(
            [advanced(("eventName", "NotEquals", ["Decrypt"]))],
            set(),
            set(),
            id="advanced, narrowed in a way that is not known",
        ),
    ],
)
def test_management_events(
    selectors: list[dict[str, Any]], recorded: set[str], left_out: set[str]
) -> None:
    kind = "AdvancedEventSelectors" if selectors and "Name" in selectors[0] else "EventSelectors"
    assert recorded_together(selector_recordings({kind: selectors})) == (recorded, left_out)


# --- what a trail is worth ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("about", "status", "selectors", "problem", "events", "flaws"),
    [
        pytest.param({}, {}, ALL, "", "read and write", [], id="all well"),
        pytest.param(
            *({}, {"IsLogging": False}, ALL, "logging stopped", "read and write", []), id="stopped"
        ),
        pytest.param(
            *({}, {}, {"EventSelectors": [basic("WriteOnly")]}, "", "write only", []),
            id="write only",
        ),
        pytest.param(
            {},
            {"IsLogging": False},
            {"EventSelectors": [basic("All", False)]},
            *("logging stopped", "none", []),
            id="stopped, and would record nothing",
        ),
        pytest.param(
            {},
            {},
            {"EventSelectors": [basic("All", True, KMS)]},
            *("", f"read and write without {KMS}", []),
            id="without KMS",
        ),
        pytest.param(
            {"LogFileValidationEnabled": False},
            *({}, ALL, "", "read and write", ["log-file-validation"]),
            id="validation off",
        ),
        pytest.param(
            {"IncludeGlobalServiceEvents": False, "HomeRegion": "us-east-1"},
            *({}, ALL, "", "read and write without global services", []),
            id="no global service events",
        ),
        pytest.param(
            {"IncludeGlobalServiceEvents": False},
            *({}, ALL, "", "read and write", []),
            id="no global service events, where a trail has none anyhow",
        ),
        pytest.param(
            {},
            {"LatestDeliveryError": "NoSuchBucket"},
            *(ALL, "no delivery (NoSuchBucket)", "read and write", ["delivery"]),
            id="delivery fails",
        ),
        pytest.param(
            *({}, {"LatestDeliveryError": ""}, ALL, "", "read and write", []),
            id="delivery does not fail",
        ),
    ],
)
def test_what_a_trail_does(
    about: Any, status: Any, selectors: Any, problem: str, events: str, flaws: list[str]
) -> None:
    found = evaluate_trail(trail(**about), {"IsLogging": True, **status}, selectors)
    assert ", ".join(found.problems()) == problem
    assert describe_recording(recorded_together(found.recordings)) == events
    assert [*trail_flaws(found)] == flaws


# --- region by region ----------------------------------------------------------------------------


def test_no_trail(aws: Canned) -> None:
    answer_trails(aws, REGION)
    expected = finding(
        REGION,
        message="no trail records the API calls of eu-west-1",
        severity="High",
        cells={"Region": REGION},
    )
    assert seen(check_cloudtrail(aws, REGION)) == seen([expected])


@pytest.mark.parametrize("region", [HOME, REGION], ids=["at home", "elsewhere"])
@pytest.mark.parametrize(
    "about",
    [
        pytest.param({}, id="of the account"),
        pytest.param({"IsOrganizationTrail": True}, id="of the organization"),
    ],
)
def test_a_multi_region_trail_covers_the_region(aws: Canned, region: str, about: Any) -> None:
    answer_trails(aws, region, trail(**about))
    answer_status(aws)
    expected = fine(region, message="Enabled", cells=trail_cells(region))
    assert seen(check_cloudtrail(aws, region)) == seen([expected])


def test_a_single_region_trail_covers_its_own(aws: Canned) -> None:
    answer_trails(aws, HOME, trail(IsMultiRegionTrail=False))
    answer_status(aws)
    expected = fine(HOME, message="Enabled", cells=trail_cells(HOME, multi="no"))
    assert seen(check_cloudtrail(aws, HOME)) == seen([expected])


def test_a_trail_that_has_been_stopped(aws: Canned) -> None:
    answer_trails(aws, REGION, trail())
    answer_status(aws, logging=False)
    expected = finding(
        REGION,
        message="does not record the API calls of eu-west-1: logging stopped",
        severity="High",
        cells=trail_cells(logging="no"),
    )
    assert seen(check_cloudtrail(aws, REGION)) == seen([expected])


def test_selectors_are_read_where_they_are_custom(aws: Canned) -> None:
    answer_trails(aws, REGION, trail(HasCustomEventSelectors=True))
    answer_status(aws)
    selectors = {"AdvancedEventSelectors": [advanced(WRITES)]}
    aws.answer("cloudtrail", "GetEventSelectors", selectors, HOME, {"TrailName": ARN})
    (row,) = seen(check_cloudtrail(aws, REGION))
    assert row.result == "Records only the write events of eu-west-1"


def test_flaws_are_named_and_low(aws: Canned) -> None:
    answer_trails(aws, HOME, trail(LogFileValidationEnabled=False))
    answer_status(aws, LatestDigestDeliveryError="AccessDenied")
    cells = trail_cells(HOME, validation="no")
    expected = finding(
        HOME,
        item="main",
        message="does not validate its log files and cannot deliver its digests (AccessDenied)",
        severity="Low",
        control="CloudTrail.4",
        cells=cells,
    )
    rows = [fine(HOME, message="Enabled", cells=cells), expected]
    assert seen(check_cloudtrail(aws, HOME)) == seen(rows)


def test_of_several_trails_the_best_counts(aws: Canned) -> None:
    trails = [trail("stopped"), trail("flawed", LogFileValidationEnabled=False), trail("good")]
    answer_trails(aws, REGION, *trails)
    answer_status(aws, False, "stopped")
    answer_status(aws, True, "flawed")
    answer_status(aws, True, "good")
    expected = fine(REGION, message="Enabled", cells=trail_cells(trail="good"))
    assert seen(check_cloudtrail(aws, REGION)) == seen([expected])


CODES = ["AccessDeniedException", "TrailNotFoundException", "CloudTrailARNInvalidException"]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("call", ["GetTrailStatus", "GetEventSelectors"])
def test_a_trail_of_the_organization_that_may_not_be_read(
    aws: Canned, call: str, code: str
) -> None:
    answer_trails(aws, REGION, trail(IsOrganizationTrail=True, HasCustomEventSelectors=True))
    if call == "GetEventSelectors":
        answer_status(aws)
    aws.refuse("cloudtrail", call, code, HOME)
    logging = "yes" if call == "GetEventSelectors" else "NOT CHECKED"  # its status was read
    unknown = trail_cells(logging=logging, events="NOT CHECKED")
    expected = not_checked(REGION, error=f"{code}: cloudtrail {call}", cells=unknown)
    assert seen(check_cloudtrail(aws, REGION)) == seen([expected])


def test_a_trail_that_may_not_be_read_does_not_matter_where_another_proves_it(aws: Canned) -> None:
    answer_trails(aws, REGION, trail("secret"), trail("good"))
    aws.refuse("cloudtrail", "GetTrailStatus", "AccessDeniedException", HOME)
    answer_status(aws, True, "good")
    (row,) = check_cloudtrail(aws, REGION)
    assert (row.status, row.cells["Trail"]) == ("OK", "good")


def test_a_trail_that_may_not_be_read_is_not_said_to_be_off(aws: Canned) -> None:
    answer_trails(aws, REGION, trail("off"), trail("secret"))
    answer_status(aws, False, "off")
    aws.refuse("cloudtrail", "GetTrailStatus", "AccessDeniedException", HOME)
    (row,) = check_cloudtrail(aws, REGION)
    assert (row.status, row.cells["Trail"]) == ("NOT CHECKED", "secret")


def test_a_trail_is_asked_about_once_for_all_regions(aws: Canned) -> None:
    regions = ["ap-south-1", REGION, "sa-east-1"]
    for region in regions:
        answer_trails(aws, region, trail())
    answer_status(aws)  # once: a second question would find no answer
    rows = run_check("cloudtrail", aws, regions=regions, threads=1).rows
    assert [(row.id, row.result) for row in rows] == [(region, "Enabled") for region in regions]


# --- a region in which CloudTrail is denied ----------------------------------------------


@pytest.mark.parametrize(
    ("about", "logging", "results"),
    [
        pytest.param({}, True, ["Enabled"], id="proved by a multi-region trail"),
        pytest.param({}, False, [], id="one that is off proves nothing"),
        pytest.param({"IsMultiRegionTrail": False}, True, [], id="one of another region neither"),
    ],
)
def test_what_another_region_shows(
    aws: Canned, about: Any, logging: bool, results: list[str]
) -> None:
    """Whether the region has trails of its own is not known in any case."""
    aws.refuse("cloudtrail", "DescribeTrails", "AccessDeniedException", REGION)
    answer_trails(aws, HOME, trail(**about))
    answer_status(aws, logging)
    found = run_check("cloudtrail", aws, regions=[HOME, REGION], threads=1)
    rows = [row.result for row in seen(found.rows) if row.target == REGION]
    assert rows == [*results, "AccessDeniedException: cloudtrail DescribeTrails"]


def test_denied_everywhere(aws: Canned) -> None:
    aws.only_regions = [HOME, REGION]
    for region in aws.only_regions:
        aws.refuse("cloudtrail", "DescribeTrails", "AccessDeniedException", region)
    with pytest.raises(AwsCallFailed, match="AccessDeniedException"):
        list(check_cloudtrail(aws, REGION))


def test_a_region_that_is_not_checked_shows_the_trail_that_may_record_it(aws: Canned) -> None:
    error = AwsError("AccessDenied", "cloudtrail", "GetEventSelectors")
    without_kms = {"EventSelectors": [{
        "ReadWriteType": "All", "IncludeManagementEvents": True,
        "ExcludeManagementEventSources": ["kms.amazonaws.com"],
    }]}  # fmt: skip
    stopped = evaluate_trail(trail("stopped"), {"IsLogging": False}, None, error)
    works = evaluate_trail(trail("works"), None, without_kms, replace(error, code="Throttling"))
    row = region_row(aws, REGION, [stopped, works])
    assert (row.cells["Trail"], str(row.error)[:10]) == ("works", "Throttling")
