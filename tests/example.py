"""Accounts to audit: a small company's, with every kind of finding, and large plain ones.

`fill` makes the company through the API, and through moto's models what moto's API cannot do.
`fill_many` uses the models only: it makes thousands of resources in a moment.
`fill_organization` makes the company and the other accounts of its organization.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

from cloud import BlockPublicAccess, Cloud, Fault
from moto.cloudtrail.models import Trail
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.ec2.models.instances import Instance
from moto.ec2.models.security_groups import SecurityGroupRule
from moto.iam.models import AccessKey, AccessKeyLastUsed
from moto.moto_api._internal import mock_random
from moto.s3.models import FakeBucket, get_canned_acl

IRELAND, VIRGINIA, OREGON = "eu-west-1", "us-east-1", "us-west-2"
DENIED_REGION, DENIED_BUCKET = OREGON, "harbour-books-payroll"

INTERNET, INTERNET_V6 = "0.0.0.0/0", "::/0"
PRIVATE, PUBLIC, PUBLIC_V6 = "private", "public", "public IPv6"  # the interfaces of a group


def rule(protocol: str, ports: tuple[int, ...], *sources: str) -> dict[str, Any]:
    """A permission as the API takes it. A source without a slash is the name of a prefix
    list; no source means the group itself."""
    v4 = [{"CidrIp": cidr} for cidr in sources if "/" in cidr and ":" not in cidr]
    v6 = [{"CidrIpv6": cidr} for cidr in sources if ":" in cidr]
    lists = [{"PrefixListId": name} for name in sources if "/" not in name]
    span = {"FromPort": ports[0], "ToPort": ports[-1]} if ports else {}
    return {
        "IpProtocol": protocol,
        **span,
        "IpRanges": v4,
        "Ipv6Ranges": v6,
        "PrefixListIds": lists,
    }


@dataclass(frozen=True)
class Group:
    region: str
    vpc: str
    name: str
    rules: tuple[dict[str, Any], ...]
    interfaces: tuple[str, ...] = ()


VPCS = {
    IRELAND: ("shop", "office"),
    VIRGINIA: ("archive", "status-page"),  # VPC block public access excludes the latter
    OREGON: ("lab",),
}
PREFIX_LISTS = {"partners": ("198.51.100.0/24", INTERNET), "offices": ("203.0.113.0/28",)}
CLOUDFRONT = "com.amazonaws.global.cloudfront.origin-facing"
GROUPS = (
    Group(IRELAND, "shop", "bastion", (rule("tcp", (22,), INTERNET),), (PUBLIC, PRIVATE)),
    Group(IRELAND, "shop", "orders-db", (rule("tcp", (5432,), INTERNET),)),
    Group(
        *(IRELAND, "shop", "web"),
        (
            rule("tcp", (80,), INTERNET, INTERNET_V6),
            rule("tcp", (443,), INTERNET, INTERNET_V6),
            rule("tcp", (22,), "203.0.113.0/24"),
        ),
        (PUBLIC, PUBLIC),
    ),
    Group(IRELAND, "shop", "game-server", (rule("udp", (7000, 8000), INTERNET),), (PUBLIC,)),
    Group(IRELAND, "shop", "dns", (rule("udp", (53,), INTERNET_V6),), (PUBLIC_V6,)),
    Group(IRELAND, "shop", "ping", (rule("icmp", (-1,), INTERNET),), (PUBLIC,)),
    Group(IRELAND, "shop", "partner-api", (rule("tcp", (8443,), "partners"),), (PUBLIC,)),
    Group(IRELAND, "shop", "origin", (rule("tcp", (443,), CLOUDFRONT),), (PUBLIC,)),
    Group(IRELAND, "shop", "cache", (rule("tcp", (6379,), "10.0.0.0/0"),), (PRIVATE,)),
    Group(
        *(IRELAND, "shop", "app"),
        (rule("-1", ()), rule("tcp", (8080,), "10.0.0.0/8"), rule("tcp", (9200,), "offices")),
        (PRIVATE, PRIVATE),
    ),
    Group(
        *(IRELAND, "office", "remote-desktop"),
        (rule("tcp", (3389,), "0.0.0.0/1", "128.0.0.0/1"),),
        (PRIVATE,),
    ),
    Group(IRELAND, "office", "lab", (rule("-1", (), INTERNET, INTERNET_V6),), (PUBLIC,)),
    Group(IRELAND, "office", "half-open", (rule("tcp", (9000,), "0.0.0.0/1"),), (PUBLIC,)),
    Group(IRELAND, "office", "tunnel", (rule("47", (-1,), INTERNET),), (PUBLIC,)),
    Group(VIRGINIA, "archive", "ftp", (rule("tcp", (20, 21), INTERNET),), (PUBLIC,)),
    Group(VIRGINIA, "status-page", "dashboard", (rule("tcp", (3000,), INTERNET),), (PUBLIC,)),
    Group(OREGON, "lab", "notebook", (rule("tcp", (8888,), INTERNET),), (PUBLIC,)),
)

# Region, Name tag, state, days since it was launched, whether it is outside a VPC. A terminated
# instance has no VpcId either.
INSTANCES = (
    (IRELAND, "web-1", "running", 40, False),
    (IRELAND, "web-2", "running", 12, False),
    (IRELAND, "Buchhaltung „Altbau“", "running", 3900, True),
    (IRELAND, "", "stopped", 3700, True),
    (IRELAND, "build-agent", "terminated", 1, True),
    (VIRGINIA, "archive", "stopped", 800, False),
    (OREGON, "notebook", "running", 5, False),
)

NO_PASSWORD, NEVER = None, -1
ACTIVE, INACTIVE = "Active", "Inactive"

# User, days since the last sign-in, MFA device, keys: age in days, status, days since its use.
Keys = tuple[tuple[int, str, int], ...]
USERS: tuple[tuple[str, int | None, str, Keys], ...] = (
    ("alice.meyer", 1, "virtual", ()),
    ("bob.tanaka", 3, "hardware", ((20, ACTIVE, 1),)),
    ("carla.rossi", 0, "passkey", ((89, ACTIVE, 0),)),
    ("dayo.okafor", 12, "", ()),
    ("erin.novak", NEVER, "", ()),
    ("beetroot", 40, "virtual", ((30, INACTIVE, NEVER),)),
    ("ci_build-2", NO_PASSWORD, "", ((70, ACTIVE, 0),)),
    ("deploy", NO_PASSWORD, "", ((91, ACTIVE, 2), (0, ACTIVE, NEVER))),
    ("reporting", NO_PASSWORD, "", ((90, ACTIVE, 1),)),
    ("legacy-erp", NO_PASSWORD, "", ((400, ACTIVE, 3),)),
    ("scanner", NO_PASSWORD, "", ((400, ACTIVE, NEVER),)),
    ("former.employee", 300, "", ((730, INACTIVE, 310),)),
    ("+39.support@harbour-books.example", 8, "virtual", ()),
    # moto's credential report breaks at a comma: this user is asked about live.
    ("backup=eu,nightly@harbour-books.example", NO_PASSWORD, "", ((5, ACTIVE, 0),)),
)

OWNER = "75aa57f09aa0c8caeab4f8c24e99d10f8e7faeebf76c078efc7c6caea54ba06a"  # as in moto
ANOTHER_ACCOUNT = "79a59df900b949e55d96a1e698fbacedfd6e09d98eacf8f8d5218e7cd47ef2be"
EVERYONE = "http://acs.amazonaws.com/groups/global/AllUsers"
ANY_AWS_ACCOUNT = "http://acs.amazonaws.com/groups/global/AuthenticatedUsers"
LOG_DELIVERY = "http://acs.amazonaws.com/groups/s3/LogDelivery"

WEBSITE, INTRANET = "www.harbour-books.example", "intranet.harbour-books.example"
TRAIL_BUCKET, BLOCKED_BUCKET = "harbour-books-trail", "harbour-books-invoices"

# Bucket, region, grants besides the owner's.
BUCKETS: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    (TRAIL_BUCKET, IRELAND, ((LOG_DELIVERY, "WRITE"), (LOG_DELIVERY, "READ_ACP"))),
    (DENIED_BUCKET, IRELAND, ()),
    (WEBSITE, IRELAND, ()),
    (INTRANET, IRELAND, ()),
    (BLOCKED_BUCKET, IRELAND, ((EVERYONE, "READ"),)),
    ("harbour-books-orders", IRELAND, ()),
    ("harbour-books-printer", IRELAND, ((ANOTHER_ACCOUNT, "READ"), (ANOTHER_ACCOUNT, "WRITE"))),
    ("harbour-books-covers", VIRGINIA, ((EVERYONE, "READ"),)),
    ("harbour-books-uploads", VIRGINIA, ((EVERYONE, "READ"), (EVERYONE, "WRITE"))),
    ("harbour-books-catalogue", OREGON, ((ANY_AWS_ACCOUNT, "READ"),)),
    (
        *("harbour-books-old-website", OREGON),
        (
            (EVERYONE, "FULL_CONTROL"),
            (EVERYONE, "READ_ACP"),
            (EVERYONE, "WRITE_ACP"),
            (ANY_AWS_ACCOUNT, "FULL_CONTROL"),
            (ANY_AWS_ACCOUNT, "WRITE"),
            (ANY_AWS_ACCOUNT, "READ_ACP"),
            (ANY_AWS_ACCOUNT, "WRITE_ACP"),
            (LOG_DELIVERY, "WRITE"),
            (ANOTHER_ACCOUNT, "FULL_CONTROL"),
        ),
    ),
)


class OutsideVpc(Instance):
    """An instance as EC2-Classic had them, and as EC2 shows one that is terminated."""

    __module__ = Instance.__module__  # moto reads the service from it
    vpc_id = None
    subnet_id = None


class CustomTrail(Trail):
    """A trail with event selectors of its own: moto never says that a trail has them."""

    __module__ = Trail.__module__

    def description(self, include_region: bool = False) -> dict[str, Any]:
        return {**super().description(include_region), "HasCustomEventSelectors": True}


def utc(now: datetime | None) -> datetime:
    """The moment as moto keeps it: in UTC, without saying so."""
    return (now or datetime.now(timezone.utc)).astimezone(timezone.utc).replace(tzinfo=None)


def fill(cloud: Cloud, now: datetime | None = None, denied: bool = True) -> None:
    """Make the company's account. Names, IDs and key IDs are always the same, all dates are
    relative to `now`. With `denied`, EC2 in one region and one bucket may not be read."""
    now = utc(now)
    for region in (IRELAND, VIRGINIA, OREGON):
        cloud.backend("ec2", region)
    cloud.backend("iam")  # made at first use, with random IDs
    mock_random.seed(1)
    client = cloud.client
    client("iam").create_account_alias(AccountAlias="harbour-books")
    for region in (IRELAND, VIRGINIA, OREGON):
        ec2 = client("ec2", region)
        subnets = make_vpcs(ec2, VPCS[region])
        make_groups(cloud, ec2, region, subnets)
        make_instances(cloud, ec2, region, subnets[VPCS[region][0]], now)
    block_public_access(cloud, client("ec2"))
    make_users(cloud, client("iam"), now)
    set_root(cloud, now)
    make_buckets(client("s3"))
    cloud.backend("s3control").put_public_access_block(
        DEFAULT_ACCOUNT_ID, {"BlockPublicAcls": True}
    )
    make_trails(cloud, client)
    if denied:
        cloud.layer.faults += [
            Fault(
                "UnauthorizedOperation",
                "ec2",
                "*",
                DENIED_REGION,
                "",
                403,
                account=DEFAULT_ACCOUNT_ID,
            ),
            Fault("AccessDenied", "s3", "GetBucketAcl", resource=DENIED_BUCKET, status=403),
        ]
    cloud.layer.calls.clear()


def make_vpcs(ec2: Any, names: Iterable[str]) -> dict[str, str]:
    """A subnet in each VPC, by the name of the VPC."""
    subnets = {}
    for name in names:
        tags = [{"ResourceType": "vpc", "Tags": [{"Key": "Name", "Value": name}]}]
        vpc = ec2.create_vpc(CidrBlock="10.20.0.0/16", TagSpecifications=tags)["Vpc"]["VpcId"]
        subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.20.1.0/24")["Subnet"]
        subnets[name] = subnet["SubnetId"]
    return subnets


def make_groups(cloud: Cloud, ec2: Any, region: str, subnets: dict[str, str]) -> None:
    lists = {
        found["PrefixListName"]: found["PrefixListId"]
        for found in ec2.describe_managed_prefix_lists()["PrefixLists"]
    }
    for name, cidrs in PREFIX_LISTS.items():
        lists[name] = ec2.create_managed_prefix_list(
            PrefixListName=name,
            AddressFamily="IPv4",
            MaxEntries=10,
            Entries=[{"Cidr": cidr} for cidr in cidrs],
        )["PrefixList"]["PrefixListId"]
    vpcs = {
        found["SubnetId"]: found["VpcId"]
        for found in ec2.describe_subnets(SubnetIds=[*subnets.values()])["Subnets"]
    }
    for group in GROUPS:
        if group.region == region:
            subnet = subnets[group.vpc]
            id = ec2.create_security_group(
                GroupName=group.name, Description=group.name, VpcId=vpcs[subnet]
            )["GroupId"]
            permissions = [permission(rule, id, lists) for rule in group.rules]
            ec2.authorize_security_group_ingress(GroupId=id, IpPermissions=permissions)
            models = cloud.backend("ec2", region)
            for made in models.get_security_group_from_id(id).ingress_rules:
                if made.ip_protocol == "47":  # AWS shows no ports where there are none
                    made.from_port = made.to_port = None
            for kind in group.interfaces:
                make_interface(models, subnet, id, kind)


def permission(rule: dict[str, Any], group: str, lists: dict[str, str]) -> dict[str, Any]:
    """The rule with the IDs of this group and of the prefix lists."""
    named = [{"PrefixListId": lists[one["PrefixListId"]]} for one in rule["PrefixListIds"]]
    if named or rule["IpRanges"] or rule["Ipv6Ranges"]:
        return {**rule, "PrefixListIds": named}
    return {**rule, "UserIdGroupPairs": [{"GroupId": group}]}


def make_interface(ec2: Any, subnet: str, group: str, kind: str) -> None:
    """An interface that has the group. moto's random public addresses are in 127.0.0.0/8."""
    number = len(ec2.enis) + 4
    v6 = [f"2a05:d018:abcd::{number:x}"] if kind == PUBLIC_V6 else []
    interface = ec2.create_network_interface(
        subnet, f"10.20.1.{number}", group_ids=[group], ipv6_addresses=v6
    )
    if kind == PUBLIC:
        interface.public_ip = f"198.51.100.{number}"


def make_instances(cloud: Cloud, ec2: Any, region: str, subnet: str, now: datetime) -> None:
    for where, name, state, days, outside in INSTANCES:
        if where != region:
            continue
        tags = [{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": name}]}]
        instance = ec2.run_instances(
            ImageId="ami-12c6146b", MinCount=1, MaxCount=1, SubnetId=subnet,
            InstanceType="t3.micro", **({"TagSpecifications": tags} if name else {}),
        )["Instances"][0]["InstanceId"]  # fmt: skip
        if state == "stopped":
            ec2.stop_instances(InstanceIds=[instance])
        if state == "terminated":
            ec2.terminate_instances(InstanceIds=[instance])
        model = cloud.backend("ec2", region).get_instance(instance)
        model.launch_time = now - timedelta(days=days)
        if outside:
            model.__class__ = OutsideVpc


def block_public_access(cloud: Cloud, ec2: Any) -> None:
    """VPC block public access in one region; one VPC is excluded."""
    tag = {"Name": "tag:Name", "Values": [VPCS[VIRGINIA][1]]}
    (vpc,) = ec2.describe_vpcs(Filters=[tag])["Vpcs"]
    arn = f"arn:aws:ec2:{VIRGINIA}:{DEFAULT_ACCOUNT_ID}:vpc/{vpc['VpcId']}"
    cloud.layer.block_public_access[VIRGINIA] = BlockPublicAccess(
        "block-bidirectional", (("allow-bidirectional", arn, "create-complete"),)
    )


def make_users(cloud: Cloud, iam: Any, now: datetime) -> None:
    for number, (name, sign_in, device, keys) in enumerate(USERS):
        iam.create_user(UserName=name)
        if sign_in is not NO_PASSWORD:
            iam.create_login_profile(UserName=name, Password="only.in.a.made-up.account")
        if device:
            code = {"AuthenticationCode1": "123456", "AuthenticationCode2": "654321"}
            serial = serial_number(iam, name, number, device)
            iam.enable_mfa_device(UserName=name, SerialNumber=serial, **code)
        for _ in keys:
            iam.create_access_key(UserName=name)
        user = cloud.backend("iam").users[name]
        user.create_date = now - timedelta(days=800 + number)
        if sign_in is not NO_PASSWORD and sign_in != NEVER:
            user.password_last_used = now - timedelta(days=sign_in)
        for key, (age, status, used) in zip(user.access_keys, keys, strict=True):
            set_key(key, now, age, status, used)


def serial_number(iam: Any, user: str, number: int, device: str) -> str:
    if device == "virtual":
        answer = iam.create_virtual_mfa_device(VirtualMFADeviceName=user)
        return str(answer["VirtualMFADevice"]["SerialNumber"])
    if device == "passkey":
        return f"arn:aws:iam::{DEFAULT_ACCOUNT_ID}:u2f/user/{user}/passkey-{number}"
    return f"GAHT{number:08}"


def set_key(key: AccessKey, now: datetime, age: int, status: str, used: int) -> None:
    key.create_date, key.status = now - timedelta(days=age), status
    if used != NEVER:
        key.last_used = AccessKeyLastUsed(now - timedelta(days=used), "s3", VIRGINIA)


ROOT_IN_USE = {"AccountMFAEnabled": 0, "AccountPasswordPresent": 1, "AccountAccessKeysPresent": 1}
ROOT_SAFE = {"AccountMFAEnabled": 1, "AccountAccessKeysPresent": 0}


def set_root(cloud: Cloud, now: datetime) -> None:
    """Root with a password, access keys and no MFA, which signed in long ago."""
    cloud.layer.summary = {**ROOT_IN_USE}
    cloud.layer.root = root_row(DEFAULT_ACCOUNT_ID, now)


def root_row(account: str, now: datetime) -> dict[str, str]:
    """What the credential report says of such a root."""
    return {
        "user": "<root_account>",
        "arn": f"arn:aws:iam::{account}:root",
        "user_creation_time": f"{now - timedelta(days=4000):%Y-%m-%dT%H:%M:%S+00:00}",
        "password_enabled": "not_supported",
        "password_last_used": f"{now - timedelta(days=610):%Y-%m-%dT%H:%M:%S+00:00}",
        "password_last_changed": "not_supported",
        "password_next_rotation": "not_supported",
        "mfa_active": "false",
        "access_key_1_active": "true",
        "access_key_2_active": "false",
    }


def make_buckets(s3: Any) -> None:
    for name, region, grants in BUCKETS:
        where = {"CreateBucketConfiguration": {"LocationConstraint": region}}
        s3.create_bucket(Bucket=name, **({} if region == VIRGINIA else where))
        acl = [grant(OWNER, "FULL_CONTROL"), *(grant(*one) for one in grants)]
        owned = {"Owner": {"ID": OWNER}, "Grants": acl}
        s3.put_bucket_acl(Bucket=name, AccessControlPolicy=owned)
    office = {"IpAddress": {"aws:SourceIp": "203.0.113.0/24"}}
    s3.put_bucket_policy(Bucket=WEBSITE, Policy=policy(WEBSITE))
    s3.put_bucket_policy(Bucket=INTRANET, Policy=policy(INTRANET, Condition=office))
    s3.put_public_access_block(
        Bucket=BLOCKED_BUCKET,
        PublicAccessBlockConfiguration={"BlockPublicAcls": True, "IgnorePublicAcls": True},
    )


def grant(grantee: str, permission: str) -> dict[str, Any]:
    group = {"Type": "Group", "URI": grantee}
    user = {"Type": "CanonicalUser", "ID": grantee}
    return {"Grantee": group if ":" in grantee else user, "Permission": permission}


def policy(bucket: str, **condition: Any) -> str:
    statement = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": "s3:GetObject",
        "Resource": f"arn:aws:s3:::{bucket}/*",
        **condition,
    }
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def make_trails(cloud: Cloud, client: Any) -> None:
    """One trail that records, with flaws; one that is stopped; a region without any."""
    ireland, virginia = client("cloudtrail", IRELAND), client("cloudtrail")
    ireland.create_trail(Name="ireland", S3BucketName=TRAIL_BUCKET)
    ireland.start_logging(Name="ireland")
    selector = {
        "ReadWriteType": "All",
        "IncludeManagementEvents": True,
        "ExcludeManagementEventSources": ["kms.amazonaws.com"],
    }
    ireland.put_event_selectors(TrailName="ireland", EventSelectors=[selector])
    cloud.backend("cloudtrail", IRELAND).trails["ireland"].__class__ = CustomTrail
    virginia.create_trail(Name="virginia", S3BucketName=TRAIL_BUCKET, EnableLogFileValidation=True)


# --- large and plain --------------------------------------------------------------------

FAULTY = 10  # every tenth user, bucket and group has something to find


def fill_many(
    cloud: Cloud,
    regions: Sequence[str],
    users: int,
    buckets: int,
    groups_per_region: int,
    now: datetime | None = None,
    account: str = DEFAULT_ACCOUNT_ID,
) -> None:
    """Make a large account without any instance, which one multi-region trail covers."""
    now = utc(now)
    mock_random.seed(1 if account == DEFAULT_ACCOUNT_ID else int(account))
    prefix = "" if account == DEFAULT_ACCOUNT_ID else f"{account}-"  # buckets share one space
    iam, s3 = (cloud.backend(service, account=account) for service in ("iam", "s3"))
    for number in range(users):
        add_user(iam, f"user-{number:05}", now, number % FAULTY == 0)
    for number in range(buckets):
        bucket = add_bucket(s3, f"{prefix}bucket-{number:05}", regions[number % 3])
        if number % FAULTY == 0:
            bucket.acl = get_canned_acl("public-read")
    for region in regions:
        add_groups(cloud.backend("ec2", region, account), groups_per_region)
    add_bucket(s3, f"{prefix}trail-bucket", regions[0])
    add_trail(cloud.backend("cloudtrail", regions[0], account), f"{prefix}trail-bucket")
    set_summary(cloud, account, ROOT_SAFE)


def set_summary(cloud: Cloud, account: str, summary: dict[str, int]) -> None:
    if account == DEFAULT_ACCOUNT_ID:
        cloud.layer.summary = {**summary}
    else:
        cloud.layer.summaries[account] = {**summary}


def add_trail(trails: Any, bucket: str) -> None:
    """A multi-region trail without a flaw."""
    name, none, yes, no = "all-regions", "", True, False
    trails.create_trail(name, bucket, none, none, yes, yes, yes, no, none, none, none, tags_list=[])
    trails.start_logging(name)


def add_user(iam: Any, name: str, now: datetime, faulty: bool) -> None:
    """A user with a password and a key: too old and without MFA, or fine."""
    user = iam.create_user(VIRGINIA, name)
    user.password = "only.in.a.made-up.account"
    set_key(iam.create_access_key(name), now, 400 if faulty else 30, ACTIVE, 3)
    if not faulty:
        user.enable_mfa_device(f"GAHT-{name}", "123456", "654321")


def add_bucket(s3: Any, name: str, region: str) -> Any:
    make: Any = FakeBucket  # which mypy takes for abstract
    s3.buckets[name] = make(name, s3.account_id, region)
    return s3.buckets[name]


def add_groups(ec2: Any, count: int) -> None:
    """Groups that one interface each has: SSH is open to the Internet, or to an office."""
    for number in range(count):
        source = INTERNET if number % FAULTY == 0 else "203.0.113.0/24"
        add_group(ec2, f"group-{number:05}", 22, source, number)


def add_group(ec2: Any, name: str, port: int, source: str, number: int) -> None:
    """A group with one port open, which an interface has; `number` makes its address."""
    group = ec2.create_security_group(name, "A group", force=True)
    span = (str(port), str(port))
    rule = SecurityGroupRule(ec2, "tcp", group.id, *span, {"CidrIp": source}, is_egress=False)
    group.ingress_rules.append(rule)
    subnet = next(iter(ec2.get_default_subnets().values()))
    address = f"172.31.{number // 250}.{number % 250}"
    ec2.create_network_interface(subnet, address, group_ids=[group.id])


# --- an organization --------------------------------------------------------------------

ROLE = "security-check"
COMPANY = "Harbour Books"  # the name of the management account


@dataclass(frozen=True)
class Member:
    """An account of the organization besides the management account."""

    number: str
    name: str
    groups: tuple[tuple[str, str, int], ...] = ()  # region, name, port open to the Internet
    users: tuple[tuple[str, bool], ...] = ()  # and whether it is faulty
    buckets: tuple[tuple[str, str, str], ...] = ()  # name, region, canned ACL
    classic: tuple[tuple[str, str], ...] = ()  # region and name of an instance outside a VPC
    alias: str = ""
    trail: bool = True
    root: bool = False  # whether root has keys and no MFA
    blocks: bool = False  # whether public access is blocked: S3's in all, VPCs' in one region
    state: str = "ACTIVE"
    closed: bool = False  # whether the role is missing


# Users, groups and instances have the same names in several accounts, as do two accounts.
MEMBERS = (
    Member("100000000001", "Nothing to find", users=(("alice.meyer", False),), alias="clean"),
    Member(
        *("111111111111", "Größe & Söhne „Produktion“"),
        groups=((IRELAND, "bastion", 22), (VIRGINIA, "orders-db", 5432)),
        users=(("alice.meyer", True), ("deploy", True), ("guenther", False)),
        buckets=(("soehne-covers", IRELAND, "public-read"),),
        alias="soehne",
    ),
    Member(
        *("222222222222", "東京支店の帳簿"),
        groups=((OREGON, "bastion", 3389),),
        users=(("deploy", True),),
        trail=False,
    ),
    Member(
        *("333333333333", "حسابات الميناء"),
        buckets=(("almina-catalogue", OREGON, "authenticated-read"),),
        users=(("alice.meyer", False), ("ci_build-2", True)),
        root=True,
    ),
    Member(
        *("444444444444", "🚀 sandbox"),
        groups=tuple((region, "bastion", 22) for region in (IRELAND, VIRGINIA, OREGON)),
        classic=((IRELAND, "web-1"),),
        trail=False,
        root=True,
    ),
    Member(
        *("555555555555", "sandbox"),
        groups=((VIRGINIA, "bastion", 22),),
        buckets=(("blocked-covers", VIRGINIA, "public-read"),),
        blocks=True,
    ),
    Member("666666666666", "sandbox", users=(("deploy", True),), state="SUSPENDED"),
    Member("777777777777", '=1+1;"quoted", O\'Neil/dev', users=(("=1+1", True),)),
    Member("888888888888", "Склад 🗄 архив", groups=((IRELAND, "bastion", 22),), closed=True),
    Member("999999999999", "Βιβλία", groups=((OREGON, "web", 80), (OREGON, "bastion", 22))),
    # A number with zeros in front, which a spreadsheet or int() would lose.
    Member("000000000012", "x" * 50, users=tuple((f"user-{i:02}", i == 0) for i in range(8))),
)


SOEHNE, TOKYO, SUSPENDED, CLOSED = "111111111111", "222222222222", "666666666666", "888888888888"


@dataclass
class Organization:
    id: str
    names: dict[str, str]  # of every account, by its number; the management account first
    states: dict[str, str] = field(default_factory=dict)  # of those that are not ACTIVE
    closed: set[str] = field(default_factory=set)  # those that are ACTIVE without the role

    @property
    def audited(self) -> list[str]:
        return [one for one in self.names if one not in self.states and one not in self.closed]


def fill_organization(
    cloud: Cloud,
    now: datetime | None = None,
    members: Sequence[Member] = MEMBERS,
    *,
    management: bool = True,
) -> Organization:
    """Make the company's account, which is the management account, and the members. Without
    `management` its account stays empty, which is quicker."""
    if management:
        fill(cloud, now)
    names = {DEFAULT_ACCOUNT_ID: COMPANY, **{member.number: member.name for member in members}}
    made = Organization(cloud.organize(names), names)
    for member in members:
        fill_member(cloud, member, utc(now))
        if member.state != "ACTIVE":
            made.states[member.number] = member.state
        elif member.closed:
            made.closed.add(member.number)
    cloud.layer.closed, cloud.layer.roles = {*made.closed, *made.states}, {ROLE}
    cloud.layer.calls.clear()
    return made


def fill_member(cloud: Cloud, member: Member, now: datetime) -> None:
    backend = functools.partial(cloud.backend, account=member.number)
    iam, s3 = backend("iam"), backend("s3")
    regions = {group[0] for group in member.groups} | {one[0] for one in member.classic}
    ec2 = {region: backend("ec2", region) for region in regions}
    mock_random.seed(int(member.number))  # after what is made at first use, with random IDs
    if member.alias:
        iam.create_account_alias(member.alias)
    for name, faulty in member.users:
        add_user(iam, name, now, faulty)
    for at, (region, name, port) in enumerate(member.groups):
        add_group(ec2[region], name, port, INTERNET, at + 4)
    for region, name in member.classic:
        add_classic(cloud.client("ec2", region, member.number), ec2[region], name, now)
    for name, region, acl in member.buckets:
        add_bucket(s3, name, region).acl = get_canned_acl(acl)
    if member.trail:
        add_bucket(s3, f"trail-{member.number}", IRELAND)
        add_trail(backend("cloudtrail", IRELAND), f"trail-{member.number}")
    set_account(cloud, member, now)


def set_account(cloud: Cloud, member: Member, now: datetime) -> None:
    """The settings of the account as a whole."""
    number, state = member.number, member.state
    set_summary(cloud, number, ROOT_IN_USE if member.root else ROOT_SAFE)
    if member.root:
        cloud.layer.roots[number] = root_row(number, now)
    if member.blocks:
        block = {"BlockPublicAcls": True, "IgnorePublicAcls": True}
        cloud.backend("s3control", account=number).put_public_access_block(number, block)
        cloud.layer.blocks[number] = {VIRGINIA: BlockPublicAccess("block-bidirectional")}
    cloud.set_state(number, state)


def add_classic(client: Any, ec2: Any, name: str, now: datetime) -> None:
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": name}]}]
    made = client.run_instances(
        ImageId="ami-12c6146b", MinCount=1, MaxCount=1, InstanceType="t3.micro",
        TagSpecifications=tags,
    )  # fmt: skip
    model = ec2.get_instance(made["Instances"][0]["InstanceId"])
    model.launch_time = now - timedelta(days=3650)
    model.__class__ = OutsideVpc
