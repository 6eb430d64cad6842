"""Security groups as AWS reads them, and commands that only take away."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cloud import Cloud
from conftest import Canned
from reading import CHECKS_BY_NAME, NUMBER, a_report
from world import (
    IRELAND,
    OTHER_ACCOUNT,
    Contents,
    World,
    group,
    interface,
    result_of,
    rows_of,
    rule,
    statuses,
    tcp,
)

from security_check import (
    FAILED,
    NOT_CHECKED,
    PASSED,
    PortRange,
    check_security_groups,
    check_target,
    drop_repeated_rows,
    exposure,
    failed_group_controls,
    is_public,
    main,
    sources_to_remove,
)

CHECK = CHECKS_BY_NAME["security-groups"]
SSH, RDP = "SSH (22)", "RDP (3389)"
SLASH_8 = [f"{n}.0.0.0/8" for n in range(1, 224) if n not in (10, 127)]  # 221 of them
USED = (interface("sg-1"),)


def account(*rules: dict[str, Any], **more: Any) -> Contents:
    """An account with one group, which an interface has."""
    more.setdefault("interfaces", USED)
    return Contents(groups=(group(*rules),), **more)


def told(contents: Contents, *refused: tuple[str, str]) -> list[tuple[str, str, str]]:
    """Severity, controls and sentence of the findings; of a gap its ID and its error."""
    return [
        ("", row.id, row.result) if row.error else (row.severity, row.control, row.result)
        for row in rows_of(CHECK, contents, *refused)
    ]


# --- by addresses, not by notation -----------------------------------------------------------


@pytest.mark.parametrize(
    ("cidrs", "text", "whole"),
    [
        pytest.param(["0.0.0.0/0"], "the whole Internet", True, id="all"),
        pytest.param(["10.0.0.0/0"], "the whole Internet", True, id="all, with host bits"),
        pytest.param(["0.0.0.0/1", "128.0.0.0/1"], "the whole Internet", True, id="halves"),
        pytest.param(SLASH_8, "the whole Internet", True, id="every public /8"),
        pytest.param(["::/0"], "the whole IPv6 Internet", True, id="IPv6"),
        pytest.param(["2000::/3"], "the whole IPv6 Internet", True, id="all that is IPv6"),
        pytest.param(["0.0.0.0/0", "::/0"], "the whole Internet", True, id="both"),
        pytest.param(SLASH_8[:220], "99 % of the Internet", False, id="all /8 but one"),
        pytest.param(["0.0.0.0/1"], "57 % of the Internet", False, id="half of the addresses"),
        pytest.param(["2000::/4"], "50 % of the IPv6 Internet", False, id="half of IPv6"),
        pytest.param(
            ["8.0.0.0/7", "2000::/12"],
            *("1 % of the Internet and 1 % of the IPv6 Internet", False),
            id="a part of each",
        ),
        pytest.param(["8.0.0.0/8", "9.0.0.0/8"], "1 % of the Internet", False, id="two /8"),
    ],
)
def test_the_share_of_the_internet_is_named(cidrs: list[str], text: str, whole: bool) -> None:
    found = exposure(cidrs)
    assert (found.text, found.whole) == (text, whole)


@pytest.mark.parametrize(
    "cidrs",
    [
        pytest.param([], id="nobody"),
        pytest.param(["8.0.0.0/8"], id="a /8"),
        pytest.param(["8.0.0.0/8", "8.0.0.0/8", "8.128.0.0/9"], id="the same /8 three times"),
        pytest.param(["10.0.0.0/7"], id="a /7 of which half is private"),
        pytest.param(["10.0.0.0/8", "172.16.0.0/12", "224.0.0.0/3"], id="not of the Internet"),
        pytest.param(["fc00::/7", "fe80::/10", "2600::/13"], id="of IPv6"),
    ],
)
def test_a_small_part_is_no_finding(cidrs: list[str]) -> None:
    assert exposure(cidrs).text == ""


def test_220_of_221_ranges_are_a_finding_also_in_a_prefix_list() -> None:
    """A part is Medium, and ours: the controls look for 0.0.0.0/0 and ::/0 only."""
    end = "; 1 interface uses it, none with a public address"
    sentence = "Lets 99 % of the Internet {}reach SSH (22)" + end
    assert told(account(tcp(22, *SLASH_8[:220]))) == [("Medium", "", sentence.format(""))]
    listed = account(tcp(22, "pl-1"), lists={"pl-1": SLASH_8[:220]})
    assert told(listed) == [("Medium", "", sentence.format("through pl-1 "))]


# --- sources combine by port -----------------------------------------------------------------


def test_halves_in_rules_that_overlap_open_ssh_to_everybody() -> None:
    found = told(account(tcp(22, "0.0.0.0/1"), rule("tcp", 20, 30, "128.0.0.0/1")))
    start = f"Lets the whole Internet reach {SSH}, together with its rule for "
    end = "; 1 interface uses it, none with a public address"
    assert found == [
        ("Critical", "", f"{start}TCP 20-30{end}"),
        ("Critical", "", f"{start}{SSH}{end}"),
    ]


def test_a_rule_for_all_protocols_counts_for_each_port() -> None:
    found = told(account(tcp(3389, "0.0.0.0/1"), rule("-1", None, None, "128.0.0.0/1")))
    assert [severity for severity, _, _ in found] == ["Critical", "Critical"]
    assert f"reach {RDP}, together with its rule for all ports" in found[0][2]


@pytest.mark.parametrize(
    ("rules", "severities"),
    [
        ([tcp(22, "0.0.0.0/1"), rule("udp", 22, 22, "128.0.0.0/1")], ["Medium", "Medium"]),
        ([tcp(22, "0.0.0.0/1"), rule("tcp", 23, 30, "128.0.0.0/1")], ["Medium", "Medium"]),
        ([tcp(22, "203.0.113.0/24"), rule("tcp", 20, 30, "0.0.0.0/0")], ["Critical"]),
        ([tcp(22, "8.8.8.0/24"), rule("tcp", 20, 30, *SLASH_8)], ["Critical"]),
        ([tcp(22, "8.0.0.0/8"), rule("tcp", 20, 30, "9.0.0.0/8")], ["Medium", "Medium"]),
        # any two of three make it whole
        (
            [
                tcp(22, "0.0.0.0/1", "128.0.0.0/2"),
                rule("tcp", 22, 23, "128.0.0.0/1"),
                rule("tcp", 21, 22, "0.0.0.0/1", "192.0.0.0/2"),
            ],
            ["Critical", "Medium", "Critical"],
        ),
        # the whole of IPv6 is more than parts of both
        (
            [tcp(22, "0.0.0.0/1", "2000::/4"), rule("tcp", 20, 30, "0.0.0.0/1", "3000::/4")],
            ["Critical", "Critical"],
        ),
        # IPv6 on 22 is more than both on 81
        (
            [
                rule("tcp", 22, 81, "0.0.0.0/1", "2000::/4"),
                tcp(22, "3000::/4"),
                tcp(81, "128.0.0.0/1", "3000::/4"),
            ],
            ["Critical", "Critical", "High"],
        ),
    ],
    ids=[
        *("other protocol", "ports beside it", "an office beside an open rule"),
        *("a harmless source", "two /8", "three rules", "halves of IPv6", "SSH and another port"),
    ],
)
def test_which_rules_take_part(rules: list[Any], severities: list[str]) -> None:
    assert [severity for severity, _, _ in told(account(*rules))] == severities


# --- TCP and UDP -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ports", "failed"),
    [
        # restricted-ssh, restricted-common-ports: TCP
        (("TCP", 22, 22), ["EC2.19", "EC2.13", "EC2.18", "EC2.53"]),
        (("TCP", 3389, 3389), ["EC2.19", "EC2.14", "EC2.18", "EC2.53"]),
        (("TCP", 3000, 3000), ["EC2.19", "EC2.18"]),
        # vpc-sg-port-restriction-check, vpc-sg-open-only-to-authorized-ports: TCP and UDP
        (("UDP", 22, 22), ["EC2.18", "EC2.53"]),
        (("UDP", 3389, 3389), ["EC2.18", "EC2.53"]),
        (("UDP", 3000, 3000), ["EC2.18"]),
        (("UDP", 8080, 8080), ["EC2.18"]),
        (("UDP", 1024, 65535), ["EC2.18", "EC2.53"]),
        (("ALL", None, None), ["EC2.19", "EC2.13", "EC2.14", "EC2.18", "EC2.53"]),
        (("GRE", None, None), []),
        (("ICMP", 8, -1), []),
        (("TCP", 443, 443), []),
        (("UDP", 443, 443), ["EC2.18"]),
    ],
    ids=str,
)
def test_controls_by_protocol(ports: tuple[Any, ...], failed: list[str]) -> None:
    assert failed_group_controls(PortRange(*ports), ["0.0.0.0/0"]) == failed


def test_udp_is_no_ssh() -> None:
    (row,) = rows_of(CHECK, account(rule("udp", 22, 22, "0.0.0.0/0")))
    assert (row.severity, row.control, row.cells["Ports"]) == ("High", "EC2.18, EC2.53", "22")
    assert row.result.startswith("Lets the whole Internet reach UDP 22;")


# --- prefix lists that are refused -----------------------------------------------------------

GAP = "AccessDenied: ec2 GetManagedPrefixListEntries"
HALVES = {"pl-1": ["0.0.0.0/1", "128.0.0.0/1"], "pl-2": ["0.0.0.0/0"], "pl-3": ["203.0.113.0/24"]}


def test_a_refused_list_beside_one_that_opens_the_rule_in_pieces() -> None:
    contents = account(tcp(22, "pl-1", "pl-2"), lists=HALVES)
    refused = ("GetManagedPrefixListEntries", "pl-2")
    (gap, found) = told(contents, refused)
    assert gap == ("", f"{IRELAND}/sg-1/TCP/22/not-checked", GAP)
    assert found[:2] == ("Critical", "")
    known = statuses(CHECK, contents, refused)
    assert {*known.values()} == {NOT_CHECKED, PASSED}
    assert known["EC2.14"] == PASSED
    assert {statuses(CHECK, contents)[name] for name in ("EC2.13", "EC2.53")} == {FAILED}


def test_a_list_that_was_read_decides() -> None:
    """0.0.0.0/0 beside a list: once nobody read it, and EC2.54 was NOT CHECKED for ever."""
    contents = account(tcp(22, "0.0.0.0/0", "pl-3"), lists=HALVES)
    assert statuses(CHECK, contents)["EC2.54"] == PASSED
    refused = ("GetManagedPrefixListEntries", "pl-3")
    assert statuses(CHECK, contents, refused)["EC2.54"] == NOT_CHECKED
    assert statuses(CHECK, contents, refused)["EC2.53"] == FAILED


def test_a_list_is_not_read_where_it_can_add_nothing() -> None:
    aws = World(account(tcp(22, "0.0.0.0/0", "::/0", "pl-3"), lists=HALVES))
    result_of(CHECK, aws)
    assert aws.calls["GetManagedPrefixListEntries"] == 0


def test_a_refused_list_on_port_80_costs_nothing_else() -> None:
    contents = account(tcp(80, "pl-1"), lists=HALVES)
    refused = ("GetManagedPrefixListEntries", "pl-1")
    assert told(contents, refused) == [("", f"{IRELAND}/sg-1/TCP/80/not-checked", GAP)]
    assert {*statuses(CHECK, contents, refused).values()} == {PASSED}


# --- whose it is -----------------------------------------------------------------------------


def test_a_group_of_another_account_is_said_to_be_so_and_left_to_it() -> None:
    theirs = group(tcp(22, "0.0.0.0/0"), owner=OTHER_ACCOUNT)
    contents = Contents(groups=(theirs,), interfaces=USED)
    (row,) = rows_of(CHECK, contents)
    assert (row.severity, row.control) == ("Low", "")
    assert (
        row.result == f"Lets the whole Internet reach {SSH}; account {OTHER_ACCOUNT} owns the group"
    )
    assert row.remediation == ("", f"account {OTHER_ACCOUNT} must close it")
    assert "Used by" not in row.cells
    assert {*statuses(CHECK, contents).values()} == {PASSED}
    aws = World(contents)
    assert result_of(CHECK, aws).evaluated_by_control["EC2.19"] == 0
    assert aws.calls["DescribeNetworkInterfaces"] == 0


@pytest.mark.parametrize(
    ("owner_is_audited", "rows"), [(True, ["Critical"]), (False, ["Low"])], ids=["yes", "no"]
)
def test_in_an_overview_nothing_appears_twice(owner_is_audited: bool, rows: list[str]) -> None:
    """A shared group is shown to several accounts; it is the finding of its owner."""
    theirs = Contents(groups=(group(tcp(22, "0.0.0.0/0"), owner=OTHER_ACCOUNT),), interfaces=USED)
    seen_by_us = a_report(results=[result_of(CHECK, World(theirs))], account=NUMBER)
    owner = World(theirs)
    owner.number = OTHER_ACCOUNT
    reports = [seen_by_us]
    reports += [
        a_report(results=[result_of(CHECK, owner)], account=OTHER_ACCOUNT)
    ] * owner_is_audited
    found = [row for one in drop_repeated_rows(reports) for row in one.rows() if row.severity]
    assert [row.severity for row in found] == rows


def test_a_group_of_ours_in_a_vpc_that_another_account_shares() -> None:
    ours = group(tcp(22, "0.0.0.0/0"), vpc="vpc-shared")
    used = (interface("sg-1", vpc="vpc-shared"),)
    contents = Contents(groups=(ours,), interfaces=used, block_mode="block-bidirectional")
    (row,) = rows_of(CHECK, contents)
    assert (row.severity, row.cells["Blocked by"]) == ("Critical", "")  # their block is not ours


# --- usage -----------------------------------------------------------------------------------


def test_no_interface_has_it_now_which_is_all_that_was_read() -> None:
    (row,) = rows_of(CHECK, account(tcp(22, "0.0.0.0/0"), interfaces=()))
    assert (row.severity, row.cells["Used by"]) == ("High", "no interface")
    assert row.result == f"Lets the whole Internet reach {SSH}; no interface has it now"


def test_an_instance_outside_a_vpc_has_no_interface_but_uses_its_group() -> None:
    contents = Contents(groups=(group(tcp(22, "0.0.0.0/0"), vpc=""),))
    (row,) = rows_of(CHECK, contents)
    assert (row.severity, row.cells["Used by"]) == ("Critical", "instances outside a VPC")
    assert row.result.endswith("; instances outside a VPC may use it")


def test_block_public_access_that_is_refused_costs_only_what_it_is_about() -> None:
    contents = account(tcp(22, "0.0.0.0/0"))
    refused = ("DescribeVpcBlockPublicAccessOptions", IRELAND)
    row, gap = rows_of(CHECK, contents, refused)
    cells = row.cells["Used by"], row.cells["Blocked by"]
    assert cells == ("1 interface, 0 public", NOT_CHECKED)
    assert (row.severity, row.control) == ("Critical", "EC2.19, EC2.13, EC2.18, EC2.53")
    assert not row.fully_read
    assert gap.id == f"{IRELAND}/block/not-checked"
    assert statuses(CHECK, contents, refused) == statuses(CHECK, contents)


def test_interfaces_that_are_refused_lower_nothing() -> None:
    contents = account(tcp(22, "0.0.0.0/0"), interfaces=())
    row, gap = rows_of(CHECK, contents, ("DescribeNetworkInterfaces", IRELAND))
    assert (row.severity, row.cells["Used by"]) == ("Critical", NOT_CHECKED)
    assert gap.id == f"{IRELAND}/interfaces/not-checked"


@pytest.mark.parametrize(
    ("excluded", "inside", "severity"),
    [
        pytest.param((), (), "Low", id="nothing excluded"),
        pytest.param(("vpc-1",), (), "Critical", id="its VPC"),
        pytest.param(("vpc-2",), (), "Low", id="another VPC"),
        pytest.param(
            ("subnet-9",),
            (interface("sg-9", id="eni-9", subnet="subnet-9"),),
            "Critical",
            id="another subnet of its VPC, with a load balancer",
        ),
        pytest.param(("subnet-9",), (), "Low", id="a subnet with nothing inside"),
        pytest.param(
            ("subnet-9",),
            (interface("sg-9", id="eni-9", subnet="subnet-9", vpc="vpc-2"),),
            "Low",
            id="a subnet of another VPC",
        ),
    ],
)
def test_an_exclusion_lets_the_internet_in_to_its_whole_vpc(
    excluded: tuple[str, ...], inside: tuple[Any, ...], severity: str
) -> None:
    contents = account(
        *(tcp(22, "0.0.0.0/0"),),
        interfaces=(*USED, *inside),
        block_mode="block-bidirectional",
        excluded=excluded,
    )
    (row,) = rows_of(CHECK, contents)
    assert row.severity == severity


@pytest.mark.parametrize(
    ("about", "public"),
    [
        ({}, False),
        ({"Association": {"PublicIp": "8.8.8.8"}}, True),
        ({"PrivateIpAddresses": [{"Association": {"PublicIp": "8.8.8.8"}}]}, True),
        ({"Ipv6Addresses": [{"Ipv6Address": "2600::1"}]}, True),
        ({"Ipv6Addresses": [{"Ipv6Address": "fd00::1"}]}, False),
        ({"Ipv6Prefixes": [{"Ipv6Prefix": "2600:1f00::/80"}]}, True),
        ({"Ipv6Addresses": [{"Ipv6Address": "2600::1"}], "DenyAllIgwTraffic": True}, False),
        ({"Association": {"CustomerOwnedIp": "203.0.113.9"}}, False),
        ({"Association": {"CarrierIp": "155.146.1.1"}}, False),
    ],
    ids=[
        *("none", "Elastic IP", "of a second address", "IPv6", "private IPv6", "IPv6 prefix"),
        *("IPv6 without the Internet", "of an Outpost", "of a Wavelength Zone"),
    ],
)
def test_whether_the_internet_reaches_an_interface(about: dict[str, Any], public: bool) -> None:
    assert is_public(interface("sg-1", **about)) == public


def test_a_response_without_a_field_is_not_from_aws(aws: Canned) -> None:
    """Such a row was an internal error."""
    aws.answer("ec2", "DescribeSecurityGroups", {"SecurityGroups": [{"GroupId": "sg-1"}]}, IRELAND)
    rows, _ = check_target(CHECK, aws, IRELAND)
    (row,) = (row for row in rows if row.error)
    assert str(row.error) == "MalformedResponse: ec2 DescribeSecurityGroups without IpPermissions"


# --- commands --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cidrs", "others", "removed"),
    [
        (["0.0.0.0/0", "203.0.113.0/24", "8.8.8.8/32"], [], ["0.0.0.0/0"]),
        (["10.0.0.0/8", "::/0"], [], ["::/0"]),
        (["0.0.0.0/1", "128.0.0.0/1"], [], ["0.0.0.0/1", "128.0.0.0/1"]),
        (["0.0.0.0/1", "192.168.0.0/16"], [], ["0.0.0.0/1"]),
        ([*SLASH_8, "10.0.0.0/8"], [], SLASH_8),
        (["203.0.113.0/24"], [], []),
        (["0.0.0.0/1", "8.8.8.8/32"], ["128.0.0.0/1"], ["0.0.0.0/1"]),
        (["8.0.0.0/8"], ["9.0.0.0/8"], ["8.0.0.0/8"]),
        (["8.0.0.0/5", "2000::/4", "3000::/4"], [], ["8.0.0.0/5", "2000::/4", "3000::/4"]),
    ],
    ids=lambda value: str(value[:2]),
)
def test_the_widest_sources_go_and_the_others_stay(
    cidrs: list[str], others: list[str], removed: list[str]
) -> None:
    found = sources_to_remove(cidrs, others)
    assert sorted(found) == sorted(removed)
    left = [cidr for cidr in cidrs if cidr not in found]
    assert exposure([*left, *others]).levels == exposure(others).levels


@pytest.mark.parametrize(
    ("rules", "removed"),
    [
        # each of the two sources opens it alone: neither is left
        ([tcp(22, "0.0.0.0/0", "pl-1")], ["0.0.0.0/0", "pl-1"]),
        # a part of the Internet gets in to all ports, whatever another rule lets in to one
        (
            [rule("-1", None, None, "3000::/4"), tcp(22, "128.0.0.0/1", "3000::/4")],
            ["3000::/4", "128.0.0.0/1", "3000::/4"],
        ),
    ],
    ids=["a list beside a source", "a part beside a greater part"],
)
def test_no_open_rule_is_without_a_command(rules: list[Any], removed: list[str]) -> None:
    """Nothing was to be removed where the rest, or another rule, lets in as much."""
    contents = account(*rules, lists={"pl-1": ["0.0.0.0/1", "128.0.0.0/1"]})
    commands = [row.remediation.command for row in rows_of(CHECK, contents)]
    assert all(commands)
    assert (
        re.findall(r'"(?:CidrIp|CidrIpv6|PrefixListId)":"([^"]+)"', " ".join(commands)) == removed
    )


def in_shell(line: str) -> None:
    """Run the line as a person would, whatever becomes of its commands."""
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    text = f"export PATH={path}; {line}"
    subprocess.run(["bash", "-c", text], capture_output=True, check=False)


def commands(*arguments: str) -> dict[str, str]:
    """The commands of the findings by ID."""
    main(["--json", "x.json", "--output", "x.xls", *arguments])
    (report,) = json.loads(Path("x.json").read_text())["accounts"]
    rows = [row for result in report["results"] for row in result["rows"]]
    return {row["id"]: row["remediation"]["command"] for row in rows if row["status"] == "FINDING"}


@pytest.mark.posix
def test_one_source_that_is_gone_does_not_save_the_other(cloud: Cloud) -> None:
    ec2 = cloud.client("ec2", IRELAND)
    id = ec2.create_security_group(GroupName="web", Description="x")["GroupId"]
    ranges = [{"CidrIp": "0.0.0.0/0"}, {"CidrIp": "203.0.113.0/24"}]
    both = {"IpRanges": ranges, "Ipv6Ranges": [{"CidrIpv6": "::/0"}]}
    ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22}
    ec2.authorize_security_group_ingress(GroupId=id, IpPermissions=[{**ssh, **both}])
    found = commands("--check", "security-groups")
    line = found[f"security-groups/{IRELAND}/{id}/TCP/22"]
    assert line.count("revoke-security-group-ingress") == 2
    # meanwhile somebody takes one source away, and lets an office in
    gone = {**ssh, "Ipv6Ranges": [{"CidrIpv6": "::/0"}]}
    ec2.revoke_security_group_ingress(GroupId=id, IpPermissions=[gone])
    office = {**ssh, "IpRanges": [{"CidrIp": "198.51.100.0/24"}]}
    ec2.authorize_security_group_ingress(GroupId=id, IpPermissions=[office])
    in_shell(line)
    (left,) = ec2.describe_security_groups(GroupIds=[id])["SecurityGroups"]
    (rule_left,) = left["IpPermissions"]
    cidrs = {one["CidrIp"] for one in rule_left["IpRanges"]}
    assert cidrs == {"203.0.113.0/24", "198.51.100.0/24"}
    assert rule_left["Ipv6Ranges"] == []
    assert not [one for one in commands("--check", "security-groups") if id in one]


def test_calls_of_a_region_with_an_open_group() -> None:
    aws = World(account(tcp(22, "0.0.0.0/0")))
    assert [*check_security_groups(aws, IRELAND)]
    assert aws.calls == {
        "DescribeSecurityGroups": 1,
        "DescribeNetworkInterfaces": 1,
        "DescribeVpcBlockPublicAccessOptions": 1,
    }
    assert aws.number == NUMBER
