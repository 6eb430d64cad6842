"""Check 2: rules that are open to the Internet."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

import pytest
from conftest import NUMBER, Canned
from hypothesis import given, settings
from hypothesis import strategies as st
from making import finding, fine, not_checked, run_check, seen

from security_check import (
    PortRange,
    Row,
    VpcBlockPublicAccess,
    check_security_groups,
    describe_usage,
    exposure,
    failed_group_controls,
    is_public,
    one_level_lower,
    port_severity,
    protocol_name,
)

REGION, ELSEWHERE = "eu-west-1", "us-gov-west-1"
DENIED = "UnauthorizedOperation"


# --- the rules of security groups --------------------------------------------------------


def whole_internet(cidrs: list[str]) -> list[str]:
    found = exposure(cidrs)
    return [*found.open_to] if found.whole else []


def wide_sources(cidrs: list[str]) -> list[str]:
    return [*exposure(cidrs).open_to]


def verdict_on(ports: PortRange) -> tuple[str, str]:
    """Severity, and the control that gives it, if the ports are open to all of IPv4."""
    return port_severity(ports), next(iter(failed_group_controls(ports, ["0.0.0.0/0"])), "")


@pytest.mark.parametrize(
    ("cidrs", "whole"),
    [
        pytest.param(["0.0.0.0/0"], ["0.0.0.0/0"], id="IPv4"),
        pytest.param(["::/0"], ["::/0"], id="IPv6"),
        pytest.param(["::/0", "0.0.0.0/0"], ["0.0.0.0/0", "::/0"], id="both"),
        pytest.param(["0.0.0.0/1", "128.0.0.0/1"], ["0.0.0.0/0"], id="halves"),
        pytest.param(
            ["0.0.0.0/2", "64.0.0.0/2", "128.0.0.0/2", "192.0.0.0/2"], ["0.0.0.0/0"], id="quarters"
        ),
        pytest.param(["::/1", "8000::/1"], ["::/0"], id="IPv6 halves"),
        pytest.param(["10.0.0.0/0"], ["0.0.0.0/0"], id="host bits set"),
        pytest.param(["2000::/3"], ["::/0"], id="all of IPv6 that is routed"),
        pytest.param(
            ["0.0.0.0/1", "128.0.0.0/2", "192.0.0.0/3"], ["0.0.0.0/0"], id="all but multicast"
        ),
    ],
)
def test_the_whole_internet(cidrs: list[str], whole: list[str]) -> None:
    assert whole_internet(cidrs) == whole


@pytest.mark.parametrize(
    "cidrs",
    [
        pytest.param([], id="no source"),
        pytest.param(["10.0.0.0/8"], id="private"),
        pytest.param(["0.0.0.0/1"], id="one half"),
        pytest.param(["0.0.0.0/1", "128.0.0.0/2", "192.0.0.0/4"], id="all but a sixteenth"),
        pytest.param(["0.0.0.0/1", "8000::/1"], id="halves of different Internets"),
        pytest.param(["2000::/4"], id="half of IPv6 that is routed"),
        pytest.param(["203.0.113.7/32", "2001:db8::/32"], id="somebody in particular"),
    ],
)
def test_not_the_whole_internet(cidrs: list[str]) -> None:
    assert whole_internet(cidrs) == []


@st.composite
def pieces(draw: st.DrawFn) -> tuple[list[str], set[int]]:
    """The 256 /8s of IPv4 as networks of several sizes, and those that are left out."""
    left_out = draw(st.sets(st.integers(0, 255), max_size=4))
    whole: list[str] = []

    def split(network: IPv4Network) -> None:
        first, last = int(network[0]) >> 24, int(network[-1]) >> 24
        if not any(first <= number <= last for number in left_out):
            if network.prefixlen == 8 or draw(st.booleans()):
                whole.append(str(network))
                return
        elif network.prefixlen == 8:
            return
        for half in network.subnets():
            split(half)

    split(IPv4Network("0.0.0.0/0"))
    return draw(st.permutations(whole)), left_out


@settings(max_examples=60, deadline=None)
@given(pieces())
def test_whole_means_every_public_slash_8(drawn: tuple[list[str], set[int]]) -> None:
    cidrs, left_out = drawn
    private = {0, 10, 127, *range(224, 256)}
    assert whole_internet(cidrs) == (["0.0.0.0/0"] if left_out <= private else [])


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 15)))
def test_whole_means_every_routed_slash_4_of_ipv6(numbers: set[int]) -> None:
    cidrs = [str(IPv6Network((number << 124, 4))) for number in numbers]
    assert whole_internet(cidrs) == (["::/0"] if {2, 3} <= numbers else [])


@pytest.mark.parametrize(
    ("cidr", "wide"),
    [
        ("0.0.0.0/1", True),
        ("52.0.0.0/7", True),
        ("52.0.0.0/8", False),
        ("10.0.0.0/7", False),  # half of it is private, so it has as many hosts as a /8
        ("10.0.0.0/8", False),
        ("224.0.0.0/4", False),
        ("2000::/4", True),
        ("2a00::/12", True),
        ("2a00::/13", False),
    ],
)
def test_a_single_source_may_be_too_wide(cidr: str, wide: bool) -> None:
    assert wide_sources([cidr]) == ([cidr] if wide else [])


NOBODY = [
    # the range, and the hosts before and after it
    ("0.0.0.0/8", "", "1.0.0.0"),
    ("10.0.0.0/8", "9.255.255.255", "11.0.0.0"),
    ("100.64.0.0/10", "100.63.255.255", "100.128.0.0"),
    ("127.0.0.0/8", "126.255.255.255", "128.0.0.0"),
    ("169.254.0.0/16", "169.253.255.255", "169.255.0.0"),
    ("172.16.0.0/12", "172.15.255.255", "172.32.0.0"),
    ("192.0.0.0/24", "191.255.255.255", "192.0.1.0"),
    ("192.0.2.0/24", "192.0.1.255", "192.0.3.0"),
    ("192.168.0.0/16", "192.167.255.255", "192.169.0.0"),
    ("198.18.0.0/15", "198.17.255.255", "198.20.0.0"),
    ("198.51.100.0/24", "198.51.99.255", "198.51.101.0"),
    ("203.0.113.0/24", "203.0.112.255", "203.0.114.0"),
    ("224.0.0.0/3", "223.255.255.255", ""),
    ("::/3", "", "2000::"),
    ("4000::/2", "3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", ""),
    ("8000::/1", "", ""),
    ("fc00::/7", "", ""),
    ("fe80::/10", "", ""),
]
WHOLE = {4: "0.0.0.0/0", 6: "::/0"}


def all_but(cidr: str) -> list[str]:
    """The Internet in pieces, without a part of it."""
    part: Any = ip_network(cidr)
    return [str(net) for net in ip_network(WHOLE[part.version]).address_exclude(part)]


@pytest.mark.parametrize("cidr", [cidr for cidr, *_ in NOBODY])
def test_a_range_without_hosts_is_not_wide_and_not_missed(cidr: str) -> None:
    assert wide_sources([cidr]) == whole_internet([cidr]) == []
    assert whole_internet(all_but(cidr)) == [WHOLE[ip_network(cidr).version]]


@pytest.mark.parametrize("host", [host for _, *hosts in NOBODY for host in hosts if host])
def test_a_host_beside_such_a_range_is_missed(host: str) -> None:
    assert whole_internet(all_but(host)) == []


PORTS = [
    # protocol, first, last, words, how many, severity and control when open
    ("ALL", None, None, "ALL", 65536, ("Critical", "EC2.19")),
    ("TCP", 0, 65535, "ALL", 65536, ("Critical", "EC2.19")),
    ("UDP", 0, 65535, "ALL", 65536, ("High", "EC2.18")),
    ("TCP", 1, 65535, "1-65535", 65535, ("Critical", "EC2.19")),
    ("TCP", None, None, "ALL", 65536, ("Critical", "EC2.19")),
    ("TCP", -1, -1, "ALL", 65536, ("Critical", "EC2.19")),
    ("UDP", None, None, "ALL", 65536, ("High", "EC2.18")),
    ("TCP", 22, 22, "22 (SSH)", 1, ("Critical", "EC2.19")),
    ("TCP", 22, None, "22 (SSH)", 1, ("Critical", "EC2.19")),
    ("TCP", 20, 30, "20-30", 11, ("Critical", "EC2.19")),
    ("TCP", 1435, 2999, "1435-2999", 1565, ("High", "EC2.18")),
    ("TCP", 8000, 9000, "8000-9000", 1001, ("Critical", "EC2.19")),
    ("TCP", 8443, 8443, "8443", 1, ("High", "EC2.18")),
    ("TCP", 80, 80, "80 (HTTP)", 1, ("Low", "")),
    ("TCP", 443, 443, "443 (HTTPS)", 1, ("Low", "")),
    ("TCP", 80, 81, "80-81", 2, ("High", "EC2.18")),
    ("UDP", 443, 443, "443", 1, ("High", "EC2.18")),
    ("UDP", 53, 53, "53", 1, ("High", "EC2.18")),
    ("ICMP", -1, -1, "ALL types", 0, ("Low", "")),
    ("ICMP", 8, -1, "type 8", 0, ("Low", "")),
    ("ICMP", 3, 4, "type 3 code 4", 0, ("Low", "")),
    ("ICMP", 0, 0, "type 0 code 0", 0, ("Low", "")),
    ("ICMPv6", None, None, "ALL types", 0, ("Low", "")),
    ("GRE", None, None, "ALL", 0, ("High", "")),
    ("ESP", -1, -1, "ALL", 0, ("High", "")),
]


@pytest.mark.parametrize(("protocol", "first", "last", "words", "number", "verdict"), PORTS)
def test_ports(
    protocol: str, first: int | None, last: int | None, words: str, number: int, verdict: Any
) -> None:
    ports = PortRange(protocol, first, last)
    assert len(ports.ports) == number
    assert ports.cell() == words
    assert verdict_on(ports) == verdict


HIGH_RISK = [20, 21, 22, 23, 25, 110, 135, 143, 445, 1433, 1434, 3000, 3306, 3389, 4333, 5000]
HIGH_RISK += [5432, 5500, 5601, 8080, 8088, 8888, 9200, 9300]


def test_these_ports_are_critical_and_no_other() -> None:
    verdicts = [verdict_on(PortRange("TCP", port, port)) for port in range(65536)]
    critical = [port for port in range(65536) if verdicts[port] == ("Critical", "EC2.19")]
    assert critical == HIGH_RISK


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 65535), st.integers(0, 65535))
def test_a_range_is_critical_exactly_when_it_holds_a_high_risk_port(a: int, b: int) -> None:
    first, last = min(a, b), max(a, b)
    naive = any(first <= port <= last for port in HIGH_RISK)
    assert (port_severity(PortRange("TCP", first, last)) == "Critical") is naive


@pytest.mark.parametrize(
    ("number", "name"),
    [
        *(("-1", "ALL"), ("tcp", "TCP"), ("6", "TCP"), ("17", "UDP"), ("icmp", "ICMP")),
        *(("1", "ICMP"), ("icmpv6", "ICMPv6"), ("58", "ICMPv6"), ("50", "ESP"), ("47", "GRE")),
        ("99", "99"),
    ],
)
def test_protocols_have_names(number: str, name: str) -> None:
    assert protocol_name(number) == name


def test_one_severity_less() -> None:
    assert [one_level_lower(s) for s in ("Critical", "High", "Medium", "Low")] == [
        *("High", "Medium", "Low", "Low")
    ]


@pytest.mark.parametrize(
    ("about", "public"),
    [
        pytest.param({}, False, id="nothing"),
        pytest.param({"Association": {}}, False, id="association of nothing"),
        pytest.param({"Association": {"PublicIp": "192.0.2.1"}}, True, id="public or Elastic IP"),
        pytest.param(
            {"PrivateIpAddresses": [{}, {"Association": {"PublicIp": "192.0.2.1"}}]},
            True,
            id="Elastic IP of a second address",
        ),
        pytest.param({"PrivateIpAddresses": [{"PrivateIpAddress": "10.0.0.1"}]}, False, id="10/8"),
        pytest.param({"Ipv6Addresses": [{"Ipv6Address": "2600:1f18::1"}]}, True, id="IPv6"),
        pytest.param({"Ipv6Addresses": [{"Ipv6Address": "fd00::1"}]}, False, id="private IPv6"),
        pytest.param(
            {"Ipv6Addresses": [{"Ipv6Address": "fd00::1"}, {"Ipv6Address": "2600:1f18::1"}]},
            True,
            id="second IPv6",
        ),
    ],
)
def test_which_interfaces_are_public(about: dict[str, Any], public: bool) -> None:
    assert is_public(about) is public


PUBLIC = {"Association": {"PublicIp": "192.0.2.1"}}


@pytest.mark.parametrize(
    ("interfaces", "words"),
    [
        ([], "no interface"),
        ([{}], "1 interface, 0 public"),
        ([{}, PUBLIC], "2 interfaces, 1 public"),
        ([PUBLIC] * 1234, "1,234 interfaces, 1,234 public"),
    ],
)
def test_use_in_words(interfaces: list[dict[str, Any]], words: str) -> None:
    assert describe_usage(interfaces)[0] == words


@pytest.mark.parametrize(
    ("mode", "excluded", "blocked"),
    [
        pytest.param("off", [], False, id="off"),
        pytest.param("block-ingress", [], True, id="ingress"),
        pytest.param("block-bidirectional", [], True, id="both ways"),
        pytest.param("block-ingress", ["vpc-1"], False, id="this VPC is excluded"),
        pytest.param("block-ingress", ["vpc-2"], True, id="another VPC is excluded"),
    ],
)
def test_what_vpc_block_public_access_stops(mode: str, excluded: list[str], blocked: bool) -> None:
    ingress = VpcBlockPublicAccess(mode, frozenset({"vpc-1"} - {*excluded}))
    words = ingress.blocks("vpc-1", [{"SubnetId": "subnet-1"}])
    assert words == (f"VPC block public access ({mode})" if blocked else "")


@pytest.mark.parametrize(
    ("vpc", "used_in", "blocked"),
    [
        pytest.param("vpc-1", "vpc-2", True, id="in two VPCs of the account"),
        pytest.param("vpc-1", "vpc-excluded", False, id="in one that is excluded"),
        pytest.param("vpc-9", "vpc-9", False, id="in one that another account shares"),
        pytest.param("vpc-1", "vpc-9", False, id="used in one that another account shares"),
        pytest.param("", "", False, id="outside a VPC"),
    ],
)
def test_in_which_vpcs_it_stops_it(vpc: str, used_in: str, blocked: bool) -> None:
    own = {"vpc-1", "vpc-2", "vpc-excluded"}
    ingress = VpcBlockPublicAccess("block-ingress", frozenset(own - {"vpc-excluded"}))
    assert bool(ingress.blocks(vpc, [{"VpcId": used_in, "SubnetId": "subnet-1"}])) is blocked


# --- security groups, scenario by scenario ------------------------------------------------


def permission(protocol: str = "tcp", ports: Any = (22, 22), **sources: Any) -> dict[str, Any]:
    """A rule; sources are v4, v6, lists and groups."""
    answer: dict[str, Any] = {"IpProtocol": protocol}
    if ports:
        answer["FromPort"], answer["ToPort"] = ports
    answer["IpRanges"] = [{"CidrIp": c, "Description": "why"} for c in sources.get("v4", ())]
    answer["Ipv6Ranges"] = [{"CidrIpv6": cidr} for cidr in sources.get("v6", ())]
    answer["PrefixListIds"] = [{"PrefixListId": id} for id in sources.get("lists", ())]
    answer["UserIdGroupPairs"] = [{"GroupId": id} for id in sources.get("groups", ())]
    return answer


def group(*permissions: dict[str, Any], id: str = "sg-1", **about: Any) -> dict[str, Any]:
    base = {"GroupId": id, "GroupName": "web", "VpcId": "vpc-1", "Description": "x"}
    return {**base, "IpPermissions": list(permissions), **about}


def answer_groups(aws: Canned, *groups: dict[str, Any], region: str = REGION) -> None:
    sent = {"MaxResults": 1000}
    aws.answer("ec2", "DescribeSecurityGroups", {"SecurityGroups": list(groups)}, region, sent)


def answer_use(
    aws: Canned, *ids: str, mode: str = "off", region: str = REGION, **about: Any
) -> None:
    """Each ID is a group that an interface has; then the mode of block public access."""
    base = {"SubnetId": "subnet-1", **(about or PUBLIC)}
    found = [{"Groups": [{"GroupId": id}], **base} for id in ids]
    aws.answer("ec2", "DescribeNetworkInterfaces", {"NetworkInterfaces": found}, region)
    options = {"VpcBlockPublicAccessOptions": {"InternetGatewayBlockMode": mode}}
    aws.answer("ec2", "DescribeVpcBlockPublicAccessOptions", options, region)
    if mode != "off":
        vpcs = [{"VpcId": "vpc-1", "OwnerId": NUMBER}, {"VpcId": "vpc-9", "OwnerId": "9"}]
        aws.answer("ec2", "DescribeVpcs", {"Vpcs": vpcs}, region)


def answer_list(
    aws: Canned, *cidrs: str, id: str = "pl-1", region: str = REGION, page: str = "", **more: str
) -> None:
    entries = {"Entries": [{"Cidr": cidr} for cidr in cidrs], **more}
    sent = {"PrefixListId": id, "MaxResults": 100, **({"NextToken": page} if page else {})}
    aws.answer("ec2", "GetManagedPrefixListEntries", entries, region, sent)


def group_cells(**cells: str) -> dict[str, str]:
    """The cells of a row about SSH, open to all of IPv4, but for those that are given."""
    return {
        "Region": REGION,
        "Group ID": "sg-1",
        "Group name": "web",
        "VPC": "vpc-1",
        "Protocol": "TCP",
        "Ports": "22 (SSH)",
        "Open to": "0.0.0.0/0",
        "Used by": "1 interface, 1 public",
        "Blocked by": "",
        **cells,
    }


SSH_CONTROLS = "EC2.19, EC2.13, EC2.18, EC2.53"
BOTH_VERSIONS = f"{SSH_CONTROLS}, EC2.54"


def open_rule(
    *,
    protocol: str = "TCP",
    ports: str = "22 (SSH)",
    open_to: str = "0.0.0.0/0",
    item: str = "TCP/22",
    reached: str = "SSH (22)",
    by: str = "the whole Internet",
    severity: str = "Critical",
    control: str = SSH_CONTROLS,
    used_by: str = "1 interface, 1 public",
    blocked_by: str = "",
) -> Row:
    named = {"Protocol": protocol, "Ports": ports, "Open to": open_to}
    stopped = f"; {blocked_by} stops it" if blocked_by not in ("", "NOT CHECKED") else ""
    return finding(
        REGION,
        item=f"sg-1/{item}",
        message=f"lets {by} reach {reached}{USES[used_by]}{stopped}",
        severity=severity,
        control=control,
        cells=group_cells(**named, **{"Used by": used_by, "Blocked by": blocked_by}),
    )


USES = {
    "1 interface, 1 public": "; 1 interface uses it, 1 with a public address",
    "1 interface, 0 public": "; 1 interface uses it, none with a public address",
    "no interface": "; no interface has it now",
    "NOT CHECKED": "",
}


@pytest.mark.parametrize(
    "permissions",
    [
        pytest.param([], id="no rules"),
        pytest.param([permission(v4=["10.0.0.0/8", "203.0.113.7/32"])], id="closed"),
        pytest.param([permission(groups=["sg-1", "sg-2"])], id="itself and another group"),
        pytest.param([permission(v6=["fd00::/8"])], id="private IPv6"),
        pytest.param([permission(v4=["52.0.0.0/8"])], id="a large cloud's /8"),
    ],
)
def test_a_closed_group_gives_no_row_and_no_further_question(
    aws: Canned, permissions: list[dict[str, Any]]
) -> None:
    answer_groups(aws, group(*permissions))
    assert list(check_security_groups(aws, REGION)) == []


def test_what_a_group_lets_out_opens_nothing(aws: Canned) -> None:
    outward = permission("-1", None, v4=["0.0.0.0/0"], v6=["::/0"])
    answer_groups(aws, group(IpPermissionsEgress=[outward]))
    assert list(check_security_groups(aws, REGION)) == []


def test_the_groups_of_all_pages_and_regions_are_counted(aws: Canned) -> None:
    first = {"SecurityGroups": [group(), group(id="sg-2")], "NextToken": "more"}
    aws.answer("ec2", "DescribeSecurityGroups", first, REGION)
    aws.answer("ec2", "DescribeSecurityGroups", {"SecurityGroups": [group(id="sg-3")]}, REGION)
    answer_groups(aws, group(), group(id="sg-2"), region=ELSEWHERE)
    words = "No rule open to the Internet in 5 groups in 2 regions"
    found = run_check("security-groups", aws, regions=[REGION, ELSEWHERE])
    assert seen(found.rows) == seen([fine("<nothing>", message=words)])


@pytest.mark.parametrize(
    ("permissions", "row"),
    [
        pytest.param([permission(v4=["0.0.0.0/0"])], open_rule(), id="IPv4"),
        pytest.param(
            [permission(v4=["0.0.0.0/0"], v6=["::/0"])],
            open_rule(open_to="0.0.0.0/0, ::/0", item="TCP/22", control=BOTH_VERSIONS),
            id="IPv4 and IPv6 in one row",
        ),
        pytest.param(
            [permission(v4=["0.0.0.0/0"]), permission(v6=["::/0"])],
            open_rule(open_to="0.0.0.0/0, ::/0", item="TCP/22", control=BOTH_VERSIONS),
            id="two rules of the same ports",
        ),
        pytest.param(
            [permission("6", v4=["0.0.0.0/0"]), permission("tcp", v6=["::/0"])],
            open_rule(open_to="0.0.0.0/0, ::/0", item="TCP/22", control=BOTH_VERSIONS),
            id="TCP by number and by name",
        ),
        pytest.param(
            [permission(v4=["0.0.0.0/1"]), permission(v4=["128.0.0.0/1"])],
            open_rule(control=""),  # the controls know 0.0.0.0/0 only
            id="halves over two rules",
        ),
        pytest.param(
            [permission("-1", None, v4=["0.0.0.0/0"])],
            open_rule(
                protocol="ALL",
                ports="ALL",
                item="ALL/ALL",
                reached="all ports",
                control="EC2.19, EC2.13, EC2.14, EC2.18, EC2.53",
            ),
            id="protocol -1 without ports",
        ),
        pytest.param(
            [permission("icmpv6", None, v6=["::/0"])],
            open_rule(
                protocol="ICMPv6",
                ports="ALL types",
                open_to="::/0",
                item="ICMPv6/ALL-types",
                reached="ICMPv6",
                by="the whole IPv6 Internet",
                severity="Low",
                control="",
            ),
            id="ICMPv6 without types",
        ),
        pytest.param(
            [permission("47", None, v4=["0.0.0.0/0"])],
            open_rule(
                protocol="GRE",
                ports="ALL",
                item="GRE/ALL",
                reached="GRE",
                severity="High",
                control="",
            ),
            id="GRE",
        ),
        pytest.param(
            [permission(v4=["0.0.0.0/1", "10.0.0.0/8"])],
            open_rule(
                open_to="0.0.0.0/1",
                item="TCP/22",
                by="57 % of the Internet",
                severity="Medium",
                control="",
            ),
            id="half the Internet",
        ),
    ],
)
def test_an_open_rule_is_a_row(aws: Canned, permissions: list[dict[str, Any]], row: Row) -> None:
    answer_groups(aws, group(*permissions))
    answer_use(aws, "sg-1")
    assert seen(check_security_groups(aws, REGION)) == seen([row])


@pytest.mark.parametrize(
    ("protocol", "ports"),
    [
        pytest.param("tcp", (23, 24), id="the next ports"),
        pytest.param("tcp", (20, 21), id="the ports before"),
        pytest.param("udp", (22, 22), id="another protocol"),
    ],
)
def test_halves_of_different_ports_do_not_add_up(
    aws: Canned, protocol: str, ports: tuple[int, int]
) -> None:
    rules = [permission(v4=["0.0.0.0/1"]), permission(protocol, ports, v4=["128.0.0.0/1"])]
    answer_groups(aws, group(*rules))
    answer_use(aws, "sg-1")
    results = [row.cells["Open to"] for row in check_security_groups(aws, REGION)]
    assert results == ["0.0.0.0/1", "128.0.0.0/1"]


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (("TCP", 22, 22), "SSH (22)"),
        (("TCP", 3000, 3000), "web development (3000)"),
        (("UDP", 22, 22), "UDP 22"),
        (("TCP", 8443, 8443), "TCP 8443"),
        (("TCP", 8000, 9000), "TCP 8000-9000"),
        (("TCP", None, None), "all TCP ports"),
        (("UDP", 0, 65535), "all UDP ports"),
        (("ALL", None, None), "all ports"),
        (("ICMP", -1, -1), "ICMP"),
        (("ICMP", 8, -1), "ICMP type 8"),
        (("ICMPv6", 3, 4), "ICMPv6 type 3 code 4"),
        (("GRE", None, None), "GRE"),
    ],
)
def test_what_a_rule_opens_as_people_name_it(
    rule: tuple[str, int | None, int | None], words: str
) -> None:
    assert PortRange(*rule).service() == words


@pytest.mark.parametrize(
    ("interfaces", "words"),
    [
        ([], "; no interface has it now"),
        ([{}], "; 1 interface uses it, none with a public address"),
        ([PUBLIC], "; 1 interface uses it, 1 with a public address"),
        ([PUBLIC, {}], "; 2 interfaces use it, 1 with a public address"),
        ([{}] * 1234, "; 1,234 interfaces use it, none with a public address"),
    ],
)
def test_who_uses_an_open_group(interfaces: list[Any], words: str) -> None:
    assert describe_usage(interfaces)[1] == words


def test_a_group_in_no_use_is_one_severity_less(aws: Canned) -> None:
    answer_groups(aws, group(permission(v4=["0.0.0.0/0"])))
    answer_use(aws)
    found = check_security_groups(aws, REGION)
    assert seen(found) == seen([open_rule(used_by="no interface", severity="High")])


OF_ELB: dict[str, Any] = {"RequesterId": "amazon-elb", "RequesterManaged": True, **PUBLIC}
OF_LAMBDA = {"RequesterId": "AROAEXAMPLE:123456789012", "InterfaceType": "lambda"}


@pytest.mark.parametrize(
    ("about", "public"),
    [
        pytest.param(OF_ELB, 1, id="ALB"),
        pytest.param({**OF_ELB, "InterfaceType": "network_load_balancer"}, 1, id="NLB"),
        pytest.param({"RequesterId": "amazon-rds", "RequesterManaged": True}, 0, id="database"),
        pytest.param(OF_LAMBDA, 0, id="Lambda"),
        pytest.param({"Operator": {"Managed": True}}, 0, id="node of EKS"),
    ],
)
def test_interfaces_of_aws_services_count_like_any_other(
    aws: Canned, about: dict[str, Any], public: int
) -> None:
    answer_groups(aws, group(permission(v4=["0.0.0.0/0"])))
    answer_use(aws, "sg-1", **about)
    found = check_security_groups(aws, REGION)
    assert seen(found) == seen([open_rule(used_by=f"1 interface, {public} public")])


def test_a_default_group_and_one_of_another_account_are_listed_too(aws: Canned) -> None:
    rule = permission(v4=["0.0.0.0/0"])
    shared = group(rule, id="sg-2", OwnerId="999999999999", VpcId="vpc-9")
    answer_groups(aws, group(rule, GroupName="default"), shared)
    answer_use(aws, "sg-1")  # who uses the other one is for its account to say
    names = ("Group ID", "Group name", "VPC")
    found = [tuple(map(row.cells.get, names)) for row in check_security_groups(aws, REGION)]
    assert found == [("sg-1", "default", "vpc-1"), ("sg-2", "web", "vpc-9")]


def test_two_hundred_groups_at_a_time_are_asked_about(aws: Canned) -> None:
    ids = [f"sg-{n:03}" for n in range(201)]
    answer_groups(aws, *(group(permission(v4=["0.0.0.0/0"]), id=id) for id in ids))
    for some in (ids[:200], ids[200:]):
        sent = {
            "Filters": [{"Name": "group-id", "Values": some}],
            "MaxResults": 1000,
            "IncludeManagedResources": True,
        }
        found = {"NetworkInterfaces": [{"Groups": [{"GroupId": id} for id in some]}]}
        aws.answer("ec2", "DescribeNetworkInterfaces", found, REGION, sent)
    options = {"VpcBlockPublicAccessOptions": {"InternetGatewayBlockMode": "off"}}
    aws.answer("ec2", "DescribeVpcBlockPublicAccessOptions", options, REGION)
    rows = list(check_security_groups(aws, REGION))
    assert [row.cells["Used by"] for row in rows] == ["1 interface, 0 public"] * 201


# --- prefix lists ---------------------------------------------------------------------------


def test_the_internet_in_a_prefix_list(aws: Canned) -> None:
    answer_groups(aws, group(permission(lists=["pl-1"])))
    answer_list(aws, "0.0.0.0/0")
    answer_use(aws, "sg-1")
    expected = open_rule(open_to="0.0.0.0/0 (pl-1)", by="the whole Internet through pl-1")
    assert seen(check_security_groups(aws, REGION)) == seen([expected])


def test_half_in_the_rule_and_half_in_the_list(aws: Canned) -> None:
    answer_groups(aws, group(permission(v4=["0.0.0.0/1"], lists=["pl-1"])))
    answer_list(aws, "128.0.0.0/1")
    answer_use(aws, "sg-1")
    (row,) = seen(check_security_groups(aws, REGION))
    assert row.result.startswith("Lets the whole Internet through pl-1 reach SSH (22); ")


def test_half_on_each_page_of_a_list(aws: Canned) -> None:
    answer_groups(aws, group(permission(lists=["pl-1"])))
    answer_list(aws, "0.0.0.0/1", NextToken="more")
    answer_list(aws, "128.0.0.0/1", page="more")
    answer_use(aws, "sg-1")
    (row,) = seen(check_security_groups(aws, REGION))
    assert row.result.startswith("Lets the whole Internet through pl-1 reach SSH (22); ")


def test_a_list_is_another_one_in_another_region(aws: Canned) -> None:
    for region, cidr in ((REGION, "0.0.0.0/0"), (ELSEWHERE, "::/0")):
        answer_groups(aws, group(permission(lists=["pl-1"])), region=region)
        answer_list(aws, cidr, region=region)
        answer_use(aws, "sg-1", region=region)
    rows = run_check("security-groups", aws, regions=[REGION, ELSEWHERE]).rows
    found = [(row.cells["Region"], row.cells["Open to"]) for row in rows]
    assert found == [(REGION, "0.0.0.0/0 (pl-1)"), (ELSEWHERE, "::/0 (pl-1)")]


@pytest.mark.parametrize(
    ("cidrs", "lists", "open_to"),
    [
        pytest.param(*([], ["10.0.0.0/8", "0.0.0.0/0"], "0.0.0.0/0 (pl-2)"), id="the Internet"),
        pytest.param(*([], ["52.0.0.0/8", "0.0.0.0/1"], "0.0.0.0/1 (pl-2)"), id="a wide source"),
        pytest.param(
            *(["0.0.0.0/1"], ["10.0.0.0/8", "52.0.0.0/8"], "0.0.0.0/1"),
            id="a wide source of the rule itself",
        ),
        pytest.param(
            *([], ["0.0.0.0/1", "128.0.0.0/1"], "0.0.0.0/0 (pl-1, pl-2)"), id="half in each list"
        ),
    ],
)
def test_a_list_that_opens_nothing_is_not_named(
    aws: Canned, cidrs: list[str], lists: list[str], open_to: str
) -> None:
    answer_groups(aws, group(permission(v4=cidrs, lists=["pl-1", "pl-2"])))
    for number, cidr in enumerate(lists, 1):
        answer_list(aws, cidr, id=f"pl-{number}")
    answer_use(aws, "sg-1")
    (row,) = check_security_groups(aws, REGION)
    assert (row.id, row.cells["Open to"]) == (f"{REGION}/sg-1/TCP/22", open_to)


def test_the_list_of_a_cloud_front_is_not_the_internet(aws: Canned) -> None:
    answer_groups(aws, group(permission(lists=["pl-1"])), group(permission(lists=["pl-1"])))
    answer_list(aws, "120.52.22.96/27", "205.251.249.0/24")  # asked once for both groups
    assert list(check_security_groups(aws, REGION)) == []


def test_a_list_that_may_not_be_read_is_not_checked(aws: Canned) -> None:
    answer_groups(aws, group(permission(lists=["pl-1"])))
    aws.refuse("ec2", "GetManagedPrefixListEntries", DENIED, REGION)
    cells = group_cells(**{"Open to": "pl-1"})
    del cells["Used by"], cells["Blocked by"]
    unread = not_checked(
        REGION, item="sg-1/TCP/22", error=f"{DENIED}: ec2 GetManagedPrefixListEntries", cells=cells
    )
    assert seen(check_security_groups(aws, REGION)) == seen([unread])


def test_a_list_that_may_not_be_read_does_not_hide_another(aws: Canned) -> None:
    answer_groups(aws, group(permission(lists=["pl-2", "pl-1"])))
    answer_list(aws, "0.0.0.0/0")
    aws.refuse("ec2", "GetManagedPrefixListEntries", DENIED, REGION)
    answer_use(aws, "sg-1")
    unread, row = check_security_groups(aws, REGION)
    assert (row.status, row.severity) == ("FINDING", "Critical")
    assert row.id == f"{REGION}/sg-1/TCP/22"
    assert unread.status == "NOT CHECKED"


def test_a_list_that_may_not_be_read_does_not_hide_the_rules_own_source(aws: Canned) -> None:
    answer_groups(aws, group(permission(v4=["52.0.0.0/7"], lists=["pl-1"])))
    aws.refuse("ec2", "GetManagedPrefixListEntries", DENIED, REGION)
    answer_use(aws, "sg-1")
    assert [(row.status, row.id) for row in check_security_groups(aws, REGION)] == [
        ("NOT CHECKED", f"{REGION}/sg-1/TCP/22/not-checked"),
        ("FINDING", f"{REGION}/sg-1/TCP/22"),
    ]


def test_what_two_lists_open_stays_a_finding_when_one_may_not_be_read(aws: Canned) -> None:
    answer_groups(aws, group(permission(lists=["pl-1", "pl-2"])))
    answer_list(aws, "52.0.0.0/7")
    aws.refuse("ec2", "GetManagedPrefixListEntries", DENIED, REGION)
    answer_use(aws, "sg-1")
    assert [(row.status, row.id) for row in check_security_groups(aws, REGION)] == [
        ("NOT CHECKED", f"{REGION}/sg-1/TCP/22/not-checked"),
        ("FINDING", f"{REGION}/sg-1/TCP/22"),
    ]


def test_open_rules_of_the_first_page_stay_when_the_second_is_refused(aws: Canned) -> None:
    found = {"SecurityGroups": [group(permission(v4=["0.0.0.0/0"]))], "NextToken": "more"}
    aws.answer("ec2", "DescribeSecurityGroups", found, REGION)
    aws.refuse("ec2", "DescribeSecurityGroups", DENIED, REGION)
    rows = run_check("security-groups", aws, regions=[REGION]).rows
    assert [row.status for row in rows] == ["FINDING", "NOT CHECKED"]


def test_a_list_does_not_matter_where_the_rule_is_open_anyway(aws: Canned) -> None:
    answer_groups(aws, group(permission(v4=["0.0.0.0/0"], v6=["::/0"], lists=["pl-1"])))
    answer_use(aws, "sg-1")
    assert seen(check_security_groups(aws, REGION)) == seen(
        [open_rule(open_to="0.0.0.0/0, ::/0", control=BOTH_VERSIONS)]
    )


# --- VPC block public access, and what may not be read ----------------------------------------


def answer_exclusion(
    aws: Canned, resource: str, mode: str = "allow-bidirectional", state: str = "create-complete"
) -> None:
    arn = f"arn:aws:ec2:{REGION}:123456789012:{resource}"
    one = {"ResourceArn": arn, "InternetGatewayExclusionMode": mode, "State": state}
    answer = {"VpcBlockPublicAccessExclusions": [one]}
    aws.answer("ec2", "DescribeVpcBlockPublicAccessExclusions", answer, REGION)


@pytest.mark.parametrize(
    ("resource", "mode", "severity"),
    [
        pytest.param("vpc/vpc-1", "allow-bidirectional", "Critical", id="VPC"),
        pytest.param("vpc/vpc-2", "allow-bidirectional", "Low", id="other VPC"),
        pytest.param("vpc/vpc-1", "allow-egress", "Low", id="outward only"),
    ],
)
def test_an_exclusion_opens_the_rule_again(
    aws: Canned, resource: str, mode: str, severity: str
) -> None:
    answer_groups(aws, group(permission(v4=["0.0.0.0/0"])))
    answer_use(aws, "sg-1", mode="block-bidirectional")
    answer_exclusion(aws, resource, mode)
    (row,) = check_security_groups(aws, REGION)
    blocked = "VPC block public access (block-bidirectional)" if severity == "Low" else ""
    assert seen([row]) == seen([open_rule(severity=severity, blocked_by=blocked)])


@pytest.mark.parametrize(
    ("state", "counts"),
    [
        *(("create-in-progress", True), ("create-failed", False)),
        *(("update-in-progress", True), ("update-complete", True), ("update-failed", True)),
        *(("delete-in-progress", True), ("delete-complete", False)),
        *(("disable-in-progress", True), ("disable-complete", False)),
    ],
)
def test_an_exclusion_counts_until_it_is_gone(aws: Canned, state: str, counts: bool) -> None:
    answer_groups(aws, group(permission(v4=["0.0.0.0/0"])))
    answer_use(aws, "sg-1", mode="block-ingress")
    answer_exclusion(aws, "vpc/vpc-1", state=state)
    (row,) = check_security_groups(aws, REGION)
    assert row.severity == ("Critical" if counts else "Low")


def test_the_block_of_this_account_does_not_count_in_the_vpc_of_another(aws: Canned) -> None:
    shared = group(permission(v4=["0.0.0.0/0"]), id="sg-9", VpcId="vpc-9")
    answer_groups(aws, shared, group(permission(v4=["0.0.0.0/0"])))
    answer_use(aws, "sg-1", "sg-9", mode="block-ingress")
    answer_exclusion(aws, "vpc/vpc-2")
    assert [row.severity for row in check_security_groups(aws, REGION)] == ["Critical", "Low"]


def test_exclusions_on_several_pages(aws: Canned) -> None:
    answer_groups(aws, group(permission(v4=["0.0.0.0/0"])))
    answer_use(aws, "sg-1", mode="block-ingress")
    first = {"VpcBlockPublicAccessExclusions": [], "NextToken": "more"}
    aws.answer("ec2", "DescribeVpcBlockPublicAccessExclusions", first, REGION)
    answer_exclusion(aws, "vpc/vpc-1")
    assert seen(check_security_groups(aws, REGION)) == seen([open_rule()])


@pytest.mark.parametrize(
    "call", ["DescribeNetworkInterfaces", "DescribeVpcBlockPublicAccessOptions"]
)
def test_a_rule_is_open_also_where_its_use_may_not_be_read(aws: Canned, call: str) -> None:
    answer_groups(aws, group(permission(v4=["0.0.0.0/0"])))
    used = call == "DescribeVpcBlockPublicAccessOptions"
    if used:
        interfaces = {"NetworkInterfaces": [{"Groups": [{"GroupId": "sg-1"}], **PUBLIC}]}
        aws.answer("ec2", "DescribeNetworkInterfaces", interfaces, REGION)
    aws.refuse("ec2", call, DENIED, REGION)
    if not used:
        options = {"VpcBlockPublicAccessOptions": {"InternetGatewayBlockMode": "off"}}
        aws.answer("ec2", "DescribeVpcBlockPublicAccessOptions", options, REGION)
    rows = run_check("security-groups", aws, regions=[REGION]).rows
    known = open_rule().cells["Used by"] if used else "NOT CHECKED"
    item = "block" if used else "interfaces"
    unread = not_checked(REGION, item=item, error=f"{DENIED}: ec2 {call}", cells={"Region": REGION})
    assert seen(rows) == seen([open_rule(used_by=str(known), blocked_by="NOT CHECKED"), unread])


# --- controls, and lists that may not be read --------------------------------------------------


def controls(row: Row) -> dict[str, str]:
    return {one.control: one.status for one in row.control_findings}


def test_a_refused_list_leaves_controls_undecided_that_another_list_does_not_fail(
    aws: Canned,
) -> None:
    """The readable list holds the Internet in pieces, which no control matches."""
    answer_groups(aws, group(permission(lists=["pl-1", "pl-2"])))
    answer_list(aws, "0.0.0.0/1", "128.0.0.0/1")
    aws.refuse("ec2", "GetManagedPrefixListEntries", DENIED, REGION)
    answer_use(aws, "sg-1")
    row, _ = check_security_groups(aws, REGION)
    undecided = ("EC2.13", "EC2.18", "EC2.19", "EC2.53", "EC2.54")
    assert controls(row) == dict.fromkeys(undecided, "NOT CHECKED")


def test_lists_that_were_all_read_leave_no_control_undecided(aws: Canned) -> None:
    answer_groups(aws, group(permission(v4=["52.0.0.0/7"], lists=["pl-1"])))
    answer_list(aws, "10.0.0.0/8")
    answer_use(aws, "sg-1")
    (row,) = check_security_groups(aws, REGION)
    assert controls(row) == {}
