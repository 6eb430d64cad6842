"""The one way to AWS: the clients that it makes, where they go, and how fast they may ask."""

from __future__ import annotations

from typing import Any

import cloud as cloud_module
import pytest
from cloud import Bucket, Cloud, Fault
from conftest import Canned

import security_check
from security_check import READ_PREFIXES, AwsCallFailed, Pace, main

# --- clients ------------------------------------------------------------------------------


def test_the_clients_have_no_method_that_writes() -> None:
    keys = {"aws_access_key_id": "AKIA", "aws_secret_access_key": "x", "region_name": "us-east-1"}
    session: Any = security_check.new_session(None, **keys)
    for service in ("cloudtrail", "ec2", "iam", "organizations", "s3", "s3control", "sts"):
        client = session.client(service)
        names = client.meta.method_to_api_mapping.values()
        assert names
        assert not [name for name in names if not name.startswith(READ_PREFIXES)]
    assert not hasattr(session.client("ec2"), "terminate_instances")


def test_only_who_writes_has_the_one_method_for_it(cloud: Cloud) -> None:
    run = security_check.Run(security_check.parse_arguments([]))
    names = run.files_account.client("s3", "us-east-1").meta.method_to_api_mapping.values()
    assert [name for name in names if not name.startswith(READ_PREFIXES)] == ["PutObject"]
    caller = security_check.connect(run.options, None)
    names = caller.client("s3", "us-east-1").meta.method_to_api_mapping.values()
    assert not [name for name in names if not name.startswith(READ_PREFIXES)]


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


# --- the pace of calls --------------------------------------------------------------------

THROTTLED = (None, {"Error": {"Code": "Throttling"}})
ANSWERED: tuple[None, dict[str, Any]] = (None, {})


class Waiting:
    """Stands in for the module `time`, and for an hour of waiting."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Waiting:
    waiting = Waiting()
    monkeypatch.setattr(security_check, "time", waiting)
    monkeypatch.setattr(cloud_module, "time", waiting)
    return waiting


def test_nobody_waits_before_aws_throttles(waiting: Waiting) -> None:
    pace = Pace()
    for response in (ANSWERED, None, (None, {"Error": {"Code": "AccessDenied"}})) * 100:
        pace.before_send()
        pace.on_response(response)
    assert waiting.now == 1000


def test_a_volley_of_refusals_slows_down_once(waiting: Waiting) -> None:
    pace = Pace()
    for _ in range(30):
        pace.on_response(THROTTLED)
    pace.before_send()
    pace.before_send()
    assert waiting.now == 1000 + security_check.INITIAL_DELAY


@pytest.mark.parametrize("rate", [1, 5, 20, 30])
def test_the_pace_finds_what_aws_allows(waiting: Waiting, rate: float) -> None:
    pace, bucket, refused, answered = Pace(), Bucket(rate, burst=20), 0, 0
    while answered < 1000:
        pace.before_send()
        waiting.now += 0.001
        if bucket.take():
            answered += 1
            pace.on_response(ANSWERED)
        else:
            refused += 1
            pace.on_response(THROTTLED)
    assert waiting.now - 1000 <= 1.1 * (answered - bucket.burst) / rate
    assert refused <= answered / 5


def test_every_call_keeps_the_pace(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    monkeypatch.setattr(Pace, "before_send", lambda pace, **_: heard.append("wait"))
    monkeypatch.setattr(Pace, "on_response", lambda pace, **_: heard.append("learn"))
    cloud.layer.faults.append(Fault("Throttling", "iam", "ListUsers", times=1))
    main([])
    assert heard.count("wait") == heard.count("learn") == len(cloud.layer.calls)
