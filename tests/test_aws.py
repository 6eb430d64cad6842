"""The one way to AWS: the clients that it makes, and where they go; test_pace.py: how they ask."""

from __future__ import annotations

from typing import Any

import botocore.session
import pytest
from cloud import Cloud
from conftest import Canned

import security_check
from security_check import READ_OPERATIONS, READ_PREFIXES, AwsCallFailed

READS = (*READ_PREFIXES, *READ_OPERATIONS)

# --- clients ------------------------------------------------------------------------------


def test_the_clients_have_no_method_that_writes() -> None:
    session: Any = security_check.new_session(None, botocore.session.Session())
    for service in ("cloudtrail", "ec2", "iam", "organizations", "s3", "s3control", "sts"):
        client = session.client(service, "us-east-1")
        names = client.meta.method_to_api_mapping.values()
        assert names
        assert not [name for name in names if not name.startswith(READS)]
    assert not hasattr(session.client("ec2", "us-east-1"), "terminate_instances")


def test_only_who_writes_has_the_one_method_for_it(cloud: Cloud) -> None:
    run = security_check.Run(security_check.parse_arguments([]))
    names = run.files_account.client("s3", "us-east-1").meta.method_to_api_mapping.values()
    assert sorted(name for name in names if not name.startswith(READS)) == [
        "DeleteObject",
        "PutObject",
    ]
    caller = security_check.connect(run.options, None)
    names = caller.client("s3", "us-east-1").meta.method_to_api_mapping.values()
    assert not [name for name in names if not name.startswith(READS)]


def test_nothing_is_asked_of_an_account_that_is_done(cloud: Cloud) -> None:
    run = security_check.Run(security_check.parse_arguments([]))
    aws = security_check.connect(run.options, None)
    aws.close()
    with pytest.raises(AwsCallFailed, match="Closed"):
        aws.ask("iam", "GetAccountSummary")
    assert aws.clients == {}


@pytest.mark.parametrize(
    ("configured", "only", "home", "sts"),
    [
        pytest.param(None, [], "us-east-1", "https://sts.us-east-1.amazonaws.com", id="nothing"),
        pytest.param(
            "cn-north-1", [], "cn-north-1", "https://sts.cn-north-1.amazonaws.com.cn", id="China"
        ),
        pytest.param(
            None,
            ["cn-northwest-1"],
            "cn-northwest-1",
            "https://sts.cn-northwest-1.amazonaws.com.cn",
            id="China, asked for",
        ),
        pytest.param(
            "us-gov-west-1",
            [],
            "us-gov-west-1",
            "https://sts.us-gov-west-1.amazonaws.com",
            id="Gov",
        ),
        pytest.param(
            "eu-west-1", ["mars-1"], "eu-west-1", "https://sts.eu-west-1.amazonaws.com", id="typo"
        ),
    ],
)
def test_partitions_start_from_a_region_of_their_own(
    monkeypatch: pytest.MonkeyPatch, configured: str | None, only: list[str], home: str, sts: str
) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    aws = Canned(region=configured, only_regions=only)
    assert aws.home_region == home
    assert aws.client("sts", aws.home_region).meta.endpoint_url == sts
