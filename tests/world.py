"""An AWS account as plain data: what it holds, and what of it may not be read.

`World` answers like AWS does, without a wire, so that a test can make thousands of accounts.
Calls are refused by what they ask about: an operation, and the resource or region in question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import boto3
from botocore import xform_name
from reading import NOW, NUMBER

from security_check import (
    Account,
    AwsCallFailed,
    AwsError,
    Check,
    CheckResult,
    ControlStatus,
    Row,
    evaluate_control,
    run_check,
)

IRELAND, VIRGINIA = "eu-west-1", "us-east-1"
OTHER_ACCOUNT = "999999999999"
OWNER, PARTNER = "a" * 64, "b" * 64  # canonical users
SESSION = boto3.Session("AKIAEXAMPLE", "secret", region_name=VIRGINIA)


# --- security groups -------------------------------------------------------------------------


def rule(protocol: str, first: int | None, last: int | None, *sources: str) -> dict[str, Any]:
    """A permission as EC2 describes it."""
    ports = {} if first is None else {"FromPort": first, "ToPort": last}
    cidrs = [name for name in sources if not name.startswith("pl-")]
    return {
        "IpProtocol": protocol,
        **ports,
        "IpRanges": [{"CidrIp": name} for name in cidrs if ":" not in name],
        "Ipv6Ranges": [{"CidrIpv6": name} for name in cidrs if ":" in name],
        "PrefixListIds": [{"PrefixListId": name} for name in sources if name.startswith("pl-")],
    }


def tcp(port: int, *sources: str) -> dict[str, Any]:
    return rule("tcp", port, port, *sources)


def group(
    *rules: dict[str, Any], id: str = "sg-1", vpc: str = "vpc-1", owner: str = NUMBER
) -> dict[str, Any]:
    about = {"GroupId": id, "GroupName": id, "OwnerId": owner, "IpPermissions": [*rules]}
    return about | ({"VpcId": vpc} if vpc else {})


def interface(
    *groups: str, id: str = "eni-1", subnet: str = "subnet-1", vpc: str = "vpc-1", **more: Any
) -> dict[str, Any]:
    return {
        "NetworkInterfaceId": id,
        "VpcId": vpc,
        "SubnetId": subnet,
        "OwnerId": NUMBER,
        "Groups": [{"GroupId": name} for name in groups],
        **more,
    }


# --- users -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class User:
    """A user now; `before` is what an older credential report says of password and MFA."""

    password: bool = False
    mfa: str = ""  # blank, "virtual" or "passkey"
    before: tuple[bool, bool] | None = None
    keys: tuple[tuple[int, str], ...] = ()  # age in days, status
    last_used: datetime | None = None


# --- trails ----------------------------------------------------------------------------------

ALL_EVENTS = {"ReadWriteType": "All", "IncludeManagementEvents": True}


@dataclass(frozen=True)
class TrailData:
    name: str = "main"
    home: str = IRELAND
    owner: str = NUMBER
    multi_region: bool = True
    validated: bool = True
    logging: bool = True
    selectors: tuple[dict[str, Any], ...] | None = None  # None: AWS's own
    delivery_error: str = ""
    digest_error: str = ""
    global_services: bool = True

    @property
    def arn(self) -> str:
        return f"arn:aws:cloudtrail:{self.home}:{self.owner}:trail/{self.name}"

    def describe(self) -> dict[str, Any]:
        return {
            "Name": self.name,
            "TrailARN": self.arn,
            "HomeRegion": self.home,
            "IsMultiRegionTrail": self.multi_region,
            "LogFileValidationEnabled": self.validated,
            "HasCustomEventSelectors": self.selectors is not None,
            "IncludeGlobalServiceEvents": self.global_services,
        }


def selector(kind: str = "All", *left_out: str) -> dict[str, Any]:
    found = {"ReadWriteType": kind, "IncludeManagementEvents": True}
    return found | ({"ExcludeManagementEventSources": [*left_out]} if left_out else {})


# --- buckets ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class BucketData:
    grants: tuple[tuple[dict[str, str], str], ...] = ()
    policy: bool = False  # a public one
    block: Mapping[str, bool] | None = None


def user_grant(id: str, permission: str) -> tuple[dict[str, str], str]:
    return {"Type": "CanonicalUser", "ID": id}, permission


def group_grant(uri: str, permission: str) -> tuple[dict[str, str], str]:
    return {"Type": "Group", "URI": uri}, permission


# --- the account -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Contents:
    """What an account holds. Groups and interfaces are in IRELAND."""

    regions: tuple[str, ...] = (IRELAND, VIRGINIA)
    groups: tuple[dict[str, Any], ...] = ()
    interfaces: tuple[dict[str, Any], ...] = ()
    lists: Mapping[str, list[str]] = field(default_factory=dict)
    block_mode: str = "off"
    vpcs: tuple[str, ...] = ("vpc-1", "vpc-2")  # its own
    excluded: tuple[str, ...] = ()  # from the block: VPCs and subnets
    users: Mapping[str, User] = field(default_factory=dict)
    root: Mapping[str, int] = field(default_factory=dict)
    fresh_report: bool = True
    trails: tuple[TrailData, ...] = ()
    buckets: Mapping[str, BucketData] = field(default_factory=dict)
    account_block: Mapping[str, bool] | None = None


class World(Account):
    """The account of these contents. `refused` holds (operation, resource or region)."""

    def __init__(
        self, contents: Contents, refused: Collection[tuple[str, str]] = (), **options: Any
    ) -> None:
        super().__init__(SESSION, NOW, number=NUMBER, **options)
        self.arn = f"arn:aws:iam::{NUMBER}:user/auditor"
        self.contents, self.denied = contents, refused
        self.calls: Counter[str] = Counter()

    def ask(
        self, service: str, operation: str, region: str = "",
        absent: Collection[str] = (), **params: Any,
    ) -> Any:  # fmt: skip
        about = [region or self.home_region, *map(str, params.values())]
        with self.lock:
            self.calls[operation] += 1
        if any((operation, name) in self.denied for name in about):
            raise AwsCallFailed(AwsError("AccessDenied", service, operation))
        answer = getattr(self, f"_{xform_name(operation)}")(region or self.home_region, params)
        if isinstance(answer, str) and answer not in absent:
            raise AwsCallFailed(AwsError(answer, service, operation))
        return {} if isinstance(answer, str) else answer

    def fetch(
        self, service: str, operation: str, items: str, region: str = "",
        page_size: int = 1000, **params: Any,
    ) -> Iterator[Any]:  # fmt: skip
        yield from self.ask(service, operation, region, **params)[items]

    # EC2

    def _describe_regions(self, *_: Any) -> Any:
        return {"Regions": [{"RegionName": name} for name in self.contents.regions]}

    def _describe_security_groups(self, region: str, _: Any) -> Any:
        return {"SecurityGroups": [*self.contents.groups] if region == IRELAND else []}

    def _get_managed_prefix_list_entries(self, _: str, params: Any) -> Any:
        listed = self.contents.lists[params["PrefixListId"]]
        return {"Entries": [{"Cidr": cidr} for cidr in listed]}

    def _describe_network_interfaces(self, _: str, params: Any) -> Any:
        (wanted,) = params["Filters"]
        found = [
            one
            for one in self.contents.interfaces
            if {*wanted["Values"]}
            & {one["SubnetId"] if wanted["Name"] == "subnet-id" else "", *groups_of(one)}
        ]
        return {"NetworkInterfaces": found}

    def _describe_vpc_block_public_access_options(self, *_: Any) -> Any:
        mode = self.contents.block_mode
        return {"VpcBlockPublicAccessOptions": {"InternetGatewayBlockMode": mode}}

    def _describe_vpcs(self, *_: Any) -> Any:
        shared = [{"VpcId": "vpc-shared", "OwnerId": OTHER_ACCOUNT}]
        return {"Vpcs": [{"VpcId": id, "OwnerId": NUMBER} for id in self.contents.vpcs] + shared}

    def _describe_vpc_block_public_access_exclusions(self, *_: Any) -> Any:
        found = [
            {
                "ResourceArn": f"arn:aws:ec2:x:1:x/{id}",
                "InternetGatewayExclusionMode": "allow-bidirectional",
                "State": "create-complete",
            }
            for id in self.contents.excluded
        ]
        return {"VpcBlockPublicAccessExclusions": found}

    # IAM

    def _get_account_summary(self, *_: Any) -> Any:
        usual = {"AccountMFAEnabled": 1, "AccountAccessKeysPresent": 0, "AccountPasswordPresent": 1}
        return {"SummaryMap": usual | {**self.contents.root}}

    def _list_users(self, *_: Any) -> Any:
        names = self.contents.users
        return {
            "Users": [{"UserName": name, "Arn": name, "UserId": f"AIDA{name}"} for name in names]
        }

    def _list_access_keys(self, _: str, params: Any) -> Any:
        keys = self.contents.users[params["UserName"]].keys
        found = [
            {
                "AccessKeyId": f"AKIA{params['UserName']}{number}",
                "CreateDate": NOW - timedelta(days=age),
                "Status": status,
            }
            for number, (age, status) in enumerate(keys)
        ]
        return {"AccessKeyMetadata": found}

    def _get_access_key_last_used(self, _: str, params: Any) -> Any:
        return {"AccessKeyLastUsed": {}}

    def _generate_credential_report(self, *_: Any) -> Any:
        return {"State": "STARTED" if self.contents.fresh_report else "COMPLETE"}

    def _get_credential_report(self, *_: Any) -> Any:
        lines = ["user,password_enabled,mfa_active"]
        for name, user in self.contents.users.items():
            password, mfa = user.password, bool(user.mfa)
            if user.before and not self.contents.fresh_report:
                password, mfa = user.before
            lines.append(f"{name},{password},{mfa}")
        return {"Content": "\n".join(lines).encode()}

    def _list_virtual_mfa_devices(self, *_: Any) -> Any:
        users = self.contents.users.items()
        have = [name for name, user in users if user.mfa == "virtual"]
        return {"VirtualMFADevices": [{"User": {"Arn": name}} for name in have]}

    def _list_mfa_devices(self, _: str, params: Any) -> Any:
        name = params["UserName"]
        serial = f"arn:aws:iam::{NUMBER}:u2f/user/{name}/passkey"
        return {"MFADevices": [{"SerialNumber": serial}] if self.contents.users[name].mfa else []}

    def _get_login_profile(self, _: str, params: Any) -> Any:
        has = self.contents.users[params["UserName"]].password
        return {"LoginProfile": {}} if has else "NoSuchEntity"

    # CloudTrail

    def _describe_trails(self, region: str, _: Any) -> Any:
        trails = self.contents.trails
        found = [one for one in trails if one.multi_region or one.home == region]
        return {"trailList": [one.describe() for one in found]}

    def _trail(self, arn: str) -> TrailData:
        return next(one for one in self.contents.trails if one.arn == arn)

    def _get_trail_status(self, _: str, params: Any) -> Any:
        trail = self._trail(params["Name"])
        return {
            "IsLogging": trail.logging,
            "LatestDeliveryError": trail.delivery_error,
            "LatestDigestDeliveryError": trail.digest_error,
        }

    def _get_event_selectors(self, _: str, params: Any) -> Any:
        return {"EventSelectors": [*(self._trail(params["TrailName"]).selectors or ())]}

    # S3

    def _list_buckets(self, *_: Any) -> Any:
        names = self.contents.buckets
        return {"Buckets": [{"Name": name, "BucketRegion": IRELAND} for name in names]}

    def _get_bucket_acl(self, _: str, params: Any) -> Any:
        grants = self.contents.buckets[params["Bucket"]].grants
        found = [{"Grantee": grantee, "Permission": permission} for grantee, permission in grants]
        return {"Owner": {"ID": OWNER}, "Grants": found}

    def _get_bucket_policy_status(self, _: str, params: Any) -> Any:
        public = self.contents.buckets[params["Bucket"]].policy
        return {"PolicyStatus": {"IsPublic": True}} if public else "NoSuchBucketPolicy"

    def _get_public_access_block(self, _: str, params: Any) -> Any:
        bucket = params.get("Bucket")
        block = self.contents.buckets[bucket].block if bucket else self.contents.account_block
        if block is None:
            return "NoSuchPublicAccessBlockConfiguration"
        names = (
            "BlockPublicAcls",
            "IgnorePublicAcls",
            "BlockPublicPolicy",
            "RestrictPublicBuckets",
        )
        return {"PublicAccessBlockConfiguration": dict.fromkeys(names, False) | {**block}}


def groups_of(one: dict[str, Any]) -> set[str]:
    return {found["GroupId"] for found in one["Groups"]}


def result_of(check: Check, aws: Account) -> CheckResult:
    """The check over all its targets, one after another."""
    return run_check(replace_threads(check), aws, lambda text: None)


def replace_threads(check: Check) -> Check:
    return replace(check, threads=1)


def rows_of(
    check: Check, contents: Contents, *refused: tuple[str, str], **options: Any
) -> list[Row]:
    """The rows that say something: no *nothing* row, no row of what is in order."""
    rows = result_of(check, World(contents, refused, **options)).rows
    return [row for row in rows if row.error or row.severity]


def controls_of(result: CheckResult) -> dict[str, ControlStatus]:
    return {name: evaluate_control(result, name) for name in result.check.controls}


def statuses(
    check: Check, contents: Contents, *refused: tuple[str, str], **options: Any
) -> dict[str, str]:
    """The status of each control of the check."""
    result = result_of(check, World(contents, refused, **options))
    return {name: one.status for name, one in controls_of(result).items()}
