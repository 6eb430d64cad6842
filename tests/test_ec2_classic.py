"""Check 1 as a whole: what DescribeInstances answers, and the sheet that comes of it."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest
import xlrd
from conftest import Canned

from security_check import (
    CHECKS,
    Report,
    Row,
    Sheet,
    check_ec2_classic,
    finding,
    gap,
    run,
    workbook,
)

REGION = "eu-west-1"
LAUNCHED = datetime(2016, 5, 4, 3, 2, 1, tzinfo=timezone.utc)
(CHECK,) = (check for check in CHECKS if check.rows is check_ec2_classic)


def quiet(text: str) -> None:
    """No progress."""


def instance(id: str = "i-1", state: str = "running", **about: Any) -> dict[str, Any]:
    return {"InstanceId": id, "State": {"Name": state}, "LaunchTime": LAUNCHED, **about}


def named(name: str, id: str = "i-1") -> dict[str, Any]:
    tags = [{"Key": "Owner", "Value": "ops"}, {"Key": "Name", "Value": name}]
    return instance(id, Tags=tags)


def page(*instances: dict[str, Any], **more: str) -> dict[str, Any]:
    """A page of DescribeInstances; each instance has a reservation of its own."""
    return {"Reservations": [{"Instances": [one]} for one in instances], **more}


def row(id: str = "i-1", name: str = "", state: str = "running", region: str = REGION) -> Row:
    cells = (region, id, name, state, LAUNCHED)
    return finding(f"{region}/{id}", cells, "Instance outside a VPC", "High")


def nothing(number: int, regions: int) -> Row:
    words = f"No instance outside a VPC among {number:,} in {regions} regions"
    return Row("nothing", (), words)


# --- rows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["pending", "running", "stopping", "stopped"])
def test_the_state_is_shown(aws: Canned, state: str) -> None:
    aws.answer("ec2", "DescribeInstances", page(instance(state=state)), REGION)
    assert list(check_ec2_classic(aws, REGION)) == [row(state=state)]


@pytest.mark.parametrize(
    "about",
    [
        pytest.param(instance(VpcId="vpc-1"), id="in a VPC"),
        pytest.param(instance(state="shutting-down"), id="shutting down"),
        pytest.param(instance(state="terminated"), id="terminated"),
        pytest.param(instance(state="terminated", VpcId=""), id="terminated, VpcId empty"),
        pytest.param(instance(state="stopped", VpcId="vpc-1"), id="stopped, in a VPC"),
    ],
)
def test_no_row(aws: Canned, about: dict[str, Any]) -> None:
    aws.answer("ec2", "DescribeInstances", page(about), REGION)
    assert list(check_ec2_classic(aws, REGION)) == []


def test_all_instances_of_a_reservation_in_the_order_of_aws(aws: Canned) -> None:
    two = {"Instances": [instance("i-2"), instance("i-1", VpcId="")]}
    none = {"Instances": [instance("i-4", VpcId="vpc-1")]}
    answer = {"Reservations": [two, none, {"Instances": [instance("i-3")]}]}
    aws.answer("ec2", "DescribeInstances", answer, REGION)
    assert list(check_ec2_classic(aws, REGION)) == [row("i-2"), row("i-1"), row("i-3")]


@pytest.mark.parametrize("region", ["cn-north-1", "us-gov-west-1"])
def test_other_partitions(aws: Canned, region: str) -> None:
    aws.answer("ec2", "DescribeInstances", page(instance()), region)
    assert list(check_ec2_classic(aws, region)) == [row(region=region)]


# --- names --------------------------------------------------------------------------------

TEXTS = [
    *("", " ", "=1+1", "+1", "-1", "@x", "'x", "0123", "1e9", "n" * 256),
    *("Größe", "名前", "اسم", "नाम", "🔒", "a\nb\tc", "a\x07b"),
]


def test_names_of_any_kind_stand_in_their_cells_as_they_are(aws: Canned) -> None:
    aws.only = [REGION]
    instances = [named(text, f"i-{n}") for n, text in enumerate(TEXTS)]
    aws.answer("ec2", "DescribeInstances", page(*instances), REGION)
    rows = list(check_ec2_classic(aws, REGION))
    assert rows == [row(f"i-{n}", text) for n, text in enumerate(TEXTS)]
    data = workbook(Report(aws, "", [Sheet(CHECK, rows, [])]))
    sheet = xlrd.open_workbook(file_contents=data, formatting_info=True).sheet_by_name(CHECK.title)
    cells = [sheet.cell(3 + n, CHECK.columns.index("Name")) for n in range(len(TEXTS))]
    assert [cell.value for cell in cells] == TEXTS
    assert {cell.ctype for cell in cells if cell.value} == {xlrd.XL_CELL_TEXT}


def test_a_name_changes_nothing_of_the_id(aws: Canned) -> None:
    for name in ("web", "=a/b, c"):
        aws.answer("ec2", "DescribeInstances", page(named(name)), REGION)
    (before,), (after,) = check_ec2_classic(aws, REGION), check_ec2_classic(aws, REGION)
    assert before.id == after.id == f"{REGION}/i-1"


# --- the sheet ----------------------------------------------------------------------------


def test_the_nothing_row_counts_instances_of_all_states_pages_and_regions(aws: Canned) -> None:
    aws.only = ["eu-west-1", "us-east-1"]
    inside = [instance(f"i-{n}", VpcId="vpc-1") for n in range(999)]
    first = page(*inside, instance(state="terminated"), NextToken="more")
    aws.answer("ec2", "DescribeInstances", first, "eu-west-1")
    aws.answer("ec2", "DescribeInstances", page(*inside[:234]), "eu-west-1")
    aws.answer("ec2", "DescribeInstances", page(), "us-east-1")
    assert run(CHECK, aws, quiet).rows == [nothing(1234, 2)]


def test_what_is_found_stands_in_place_of_the_nothing_row(aws: Canned) -> None:
    aws.only = ["us-east-1", "eu-west-1"]
    aws.answer("ec2", "DescribeInstances", page(named("web")), "eu-west-1")
    aws.answer("ec2", "DescribeInstances", page(instance(VpcId="vpc-1")), "us-east-1")
    assert run(CHECK, aws, quiet).rows == [row(name="web")]


def test_a_refused_region_is_not_counted_as_looked_at(aws: Canned) -> None:
    aws.only = ["eu-west-1", "us-east-1"]
    aws.answer("ec2", "DescribeInstances", page(instance(VpcId="vpc-1")), "eu-west-1")
    aws.refuse("ec2", "DescribeInstances", "UnauthorizedOperation", "us-east-1")
    sheet = run(CHECK, aws, quiet)
    refused = gap(
        "us-east-1/not-checked", ("us-east-1",), "UnauthorizedOperation: ec2 DescribeInstances"
    )
    assert sheet.rows == [nothing(1, 1), refused]
    assert sheet.unread == ["us-east-1"]


def test_a_refused_second_page_takes_nothing_from_the_first(aws: Canned) -> None:
    aws.only = [REGION]
    aws.answer("ec2", "DescribeInstances", page(instance(), NextToken="more"), REGION)
    aws.refuse("ec2", "DescribeInstances", "RequestLimitExceeded", REGION)
    throttled = "RequestLimitExceeded: ec2 DescribeInstances"
    assert run(CHECK, aws, quiet).rows == [
        row(),
        gap(f"{REGION}/not-checked", (REGION,), throttled),
    ]
