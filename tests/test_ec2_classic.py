"""Check 1: instances outside a VPC."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest
from conftest import Canned
from making import finding, fine, run_check, seen

from security_check import check_ec2_classic, is_classic, name_tag

REGION, ELSEWHERE = "eu-west-1", "us-gov-west-1"
LAUNCHED = datetime(2016, 5, 4, tzinfo=timezone.utc)


def instance(state: str = "running", **about: Any) -> dict[str, Any]:
    return {"InstanceId": "i-1", "State": {"Name": state}, "LaunchTime": LAUNCHED, **about}


@pytest.mark.parametrize("state", ["pending", "running", "stopping", "stopped"])
@pytest.mark.parametrize("where", [{}, {"VpcId": ""}], ids=["absent", "empty"])
def test_an_instance_without_vpc_is_classic(state: str, where: dict[str, str]) -> None:
    assert is_classic(instance(state, **where))


@pytest.mark.parametrize(
    "about",
    [
        pytest.param(instance("running", VpcId="vpc-1"), id="in a VPC"),
        pytest.param(instance("terminated"), id="terminated, so without VpcId"),
        pytest.param(instance("shutting-down"), id="on its way there"),
    ],
)
def test_an_instance_that_is_not_classic(about: dict[str, Any]) -> None:
    assert not is_classic(about)


@pytest.mark.parametrize(
    ("tags", "name"),
    [
        ({}, ""),
        ({"Tags": []}, ""),
        ({"Tags": [{"Key": "name", "Value": "x"}]}, ""),
        ({"Tags": [{"Key": "Name", "Value": ""}]}, ""),
        ({"Tags": [{"Key": "a", "Value": "b"}, {"Key": "Name", "Value": "=web"}]}, "=web"),
    ],
)
def test_the_name_is_the_name_tag(tags: dict[str, Any], name: str) -> None:
    assert name_tag(instance(**tags)) == name


def test_instances_of_all_pages_are_looked_at(aws: Canned) -> None:
    reserved = {"Reservations": [{"Instances": [instance(VpcId="vpc-1"), instance("terminated")]}]}
    sent = {"MaxResults": 1000, "IncludeManagedResources": True}
    aws.answer("ec2", "DescribeInstances", {**reserved, "NextToken": "more"}, REGION, sent)
    web = instance("stopped", Tags=[{"Key": "Name", "Value": "web"}])
    last = {"Reservations": [{"Instances": [web]}, {"Instances": []}]}
    aws.answer("ec2", "DescribeInstances", last, REGION, {**sent, "NextToken": "more"})
    rows, check = [], check_ec2_classic(aws, REGION)
    try:
        while True:
            rows.append(next(check))
    except StopIteration as end:
        assert end.value == 3
    cells = {
        "Region": REGION,
        "Instance ID": "i-1",
        "Name": "web",
        "State": "stopped",
        "Launched": LAUNCHED,
    }
    found = finding(
        REGION, item="i-1", message="is stopped outside a VPC", severity="High", cells=cells
    )
    assert seen(rows) == seen([found])


def test_the_instances_of_all_regions_are_counted(aws: Canned) -> None:
    for region, number in ((REGION, 3), (ELSEWHERE, 2)):
        reserved = {"Reservations": [{"Instances": [instance(VpcId="vpc-1")] * number}]}
        aws.answer("ec2", "DescribeInstances", reserved, region)
    rows = run_check("ec2-classic", aws, regions=[REGION, ELSEWHERE]).rows
    nothing = fine("<nothing>", message="No instance outside a VPC among 5 in 2 regions")
    assert seen(rows) == seen([nothing])
