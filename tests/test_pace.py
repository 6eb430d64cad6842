"""Calls end: the pace is bounded, what is cut off is asked again, nothing is waited for forever."""

from __future__ import annotations

import contextlib
import http.server
import random
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import timedelta
from typing import Any

import boto3
import cloud as cloud_module
import pytest
from botocore.auth import SigV4Auth
from botocore.credentials import RefreshableCredentials
from botocore.retries.standard import ThrottledRetryableChecker
from cloud import Bucket, Cloud, Fault

import security_check
from security_check import LIMITS_USED_UP, NOT_AWS, Account, AwsCallFailed, Pace, main

# --- the pace -----------------------------------------------------------------------------


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


def run(
    pace: Pace, waiting: Waiting, refuses: Callable[[], bool], answers: int
) -> tuple[float, int, float]:
    """The seconds until there are so many answers, the refusals, and the longest delay."""
    began, answered, refused, longest = waiting.now, 0, 0, 0.0
    while answered < answers:
        pace.wait()
        waiting.now += 0.001
        if no := refuses():
            refused += 1
        else:
            answered += 1
        pace.learn(no)
        longest = max(longest, pace.delay)
    return waiting.now - began, refused, longest


def test_nobody_waits_before_aws_throttles(waiting: Waiting) -> None:
    pace = Pace()
    for _ in range(300):
        pace.wait()
        pace.learn(refused=False)
    assert waiting.now == 1000


def test_a_volley_of_refusals_slows_down_once(waiting: Waiting) -> None:
    pace = Pace()
    for _ in range(30):
        pace.learn(refused=True)
    pace.wait()
    pace.wait()
    assert waiting.now == 1000 + security_check.INITIAL_DELAY


@pytest.mark.parametrize("rate", [1, 5, 20, 30])
def test_the_pace_finds_what_aws_allows(waiting: Waiting, rate: float) -> None:
    pace, bucket = Pace(), Bucket(rate, burst=20)
    seconds, refused, _ = run(pace, waiting, lambda: not bucket.take(), 1000)
    assert seconds <= 1.1 * (1000 - bucket.burst) / rate
    assert refused <= 200
    assert not pace.settled


@pytest.mark.parametrize("share", [0.01, 0.03, 0.1, 0.2, 1 / 3, 0.5])
def test_refusals_that_do_not_depend_on_the_pace_cost_minutes_at_most(
    waiting: Waiting, share: float
) -> None:
    dice = random.Random(1)
    seconds, _, longest = run(Pace(), waiting, lambda: dice.random() < share, 500)
    assert longest <= security_check.MAX_DELAY
    assert seconds < 300


def test_the_pace_is_waited_for_before_a_call_is_signed(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    monkeypatch.setattr(Pace, "wait", lambda pace, **_: heard.append("wait"))
    own = SigV4Auth.add_auth

    def sign(auth: Any, request: Any) -> None:
        heard.append("sign")
        own(auth, request)

    monkeypatch.setattr(SigV4Auth, "add_auth", sign)
    keys: Any = {"aws_access_key_id": "AKIA", "aws_secret_access_key": "secret"}
    aws = Account(boto3.Session(region_name="us-east-1", **keys), security_check.utc_now())
    cloud.layer.faults.append(Fault("Throttling", "*", times=1))
    aws.ask("sts", "GetCallerIdentity")
    assert heard == ["wait", "sign"] * 2


def test_every_attempt_keeps_the_pace(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    monkeypatch.setattr(Pace, "wait", lambda pace, **_: heard.append("wait"))
    monkeypatch.setattr(Pace, "learn", lambda pace, refused: heard.append("learn"))
    cloud.layer.faults.append(Fault("Throttling", "iam", "ListUsers", times=1))
    main([])
    assert heard.count("wait") == heard.count("learn") == len(cloud.layer.calls)


# --- refusals -----------------------------------------------------------------------------

THROTTLING = vars(ThrottledRetryableChecker)["_THROTTLED_ERROR_CODES"]
ONE_CHECK = ("--check", "mfa", "--output", "x.xls")


@pytest.fixture
def no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)


@pytest.fixture
def account(cloud: Cloud, no_sleep: None) -> Account:
    return security_check.connect(security_check.parse_arguments([]), None)


@pytest.mark.parametrize("code", THROTTLING)
def test_what_is_throttling_is_botocores_knowledge(
    code: str, account: Account, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[bool] = []
    monkeypatch.setattr(Pace, "learn", lambda pace, refused: learned.append(refused))
    cloud.layer.faults.append(Fault(code, "iam", times=1))
    account.ask("iam", "GetAccountSummary")
    assert learned == [True, False]


def test_a_target_that_is_refused_for_good_is_given_up_and_told_why(
    account: Account, cloud: Cloud
) -> None:
    cloud.layer.faults.append(Fault("Throttling", "iam", "GetAccessKeyLastUsed"))
    said = set()
    for number in range(20):
        with pytest.raises(AwsCallFailed) as failed:
            account.ask("iam", "GetAccessKeyLastUsed", AccessKeyId=f"AKIA{number:012}")
        said.add(str(failed.value.error))
    assert said == {f"Throttling: iam GetAccessKeyLastUsed {LIMITS_USED_UP}"}
    attempts = security_check.ATTEMPTS * security_check.MAX_FAILURES
    assert cloud.layer.count()["iam:GetAccessKeyLastUsed"] <= attempts
    assert account.ask("iam", "GetAccountSummary")  # other calls go on


def test_one_line_says_that_others_use_up_the_limits(
    cloud: Cloud, no_sleep: None, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud.layer.faults.append(Fault("Throttling", "iam", "ListUsers"))
    assert main(ONE_CHECK) == 3
    out, error = capsys.readouterr()
    assert error.count("others use up its limits") == error.count("\n") == 1
    assert "NOT CHECKED" in out


def test_a_third_of_all_calls_refused_costs_nothing_but_time(
    cloud: Cloud, no_sleep: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = random.Random(1)

    class Foreign(Fault):
        def strikes(self, call: cloud_module.Call) -> bool:
            return call.service != "sts" and dice.random() < 1 / 3

    cloud.layer.faults.append(Foreign("RequestLimitExceeded"))
    assert main(["--output", "x.xls"]) == 1


# --- responses that are none --------------------------------------------------------------


@pytest.mark.parametrize(
    ("service", "operation"),
    [("iam", "GetAccountSummary"), ("ec2", "DescribeRegions"), ("cloudtrail", "DescribeTrails"),
     ("s3", "ListBuckets"), ("sts", "GetCallerIdentity")],
)  # fmt: skip
def test_a_response_that_is_cut_off_is_asked_for_again(
    service: str, operation: str, account: Account, cloud: Cloud
) -> None:
    cloud.layer.faults.append(Fault("truncate", service, operation, times=2))
    cloud.layer.calls.clear()
    assert account.ask(service, operation)
    assert cloud.layer.count() == {f"{service}:{operation}": 3}


def test_a_response_that_is_cut_off_for_good_is_called_that(account: Account, cloud: Cloud) -> None:
    cloud.layer.faults.append(Fault("truncate", "cloudtrail"))
    with pytest.raises(AwsCallFailed, match=r"^MalformedResponse: cloudtrail Des\w+ \(cut off\)$"):
        account.ask("cloudtrail", "DescribeTrails")


def test_an_object_that_is_cut_off_is_asked_for_again(
    account: Account, cloud: Cloud, bucket: Any
) -> None:
    bucket.put_object(Bucket="reports", Key="state.json", Body=b"x" * 1000)
    cloud.layer.faults.append(Fault("truncate", "s3", "GetObject", times=1))
    response = account.ask("s3", "GetObject", Bucket="reports", Key="state.json")
    assert response["Body"] == b"x" * 1000


PAGES = [
    "<html><head></head><body>Please sign in</body></html>",
    "<!DOCTYPE html>\n<html lang=en><br><p>Please sign in",
    "<?xml version='1.0'?><!DOCTYPE html PUBLIC '-//W3C//DTD XHTML 1.0 Strict//EN'><html></html>",
    "  <HTML>\n",
    "\ufeff<!DOCTYPE html><html><br></html>",
    "<!-- sign in --><html><body><br></body></html>",
    "Blocked by policy 17",
]


class Page(http.server.BaseHTTPRequestHandler):
    """A proxy that wants something else."""

    page, status = "", 200

    def do_POST(self) -> None:
        """Answer."""
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.page.encode())))
        self.end_headers()
        self.wfile.write(self.page.encode())

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serving(handler: type[Any]) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("status", [200, 302, 403])
@pytest.mark.parametrize("page", PAGES)
def test_something_else_that_answers_is_called_that(
    page: str, status: int, cloud: Cloud, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.delenv("HTTP_PROXY")
    monkeypatch.setattr(Page, "page", page)
    monkeypatch.setattr(Page, "status", status)
    with serving(Page) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        assert main(ONE_CHECK) == 2
    assert NOT_AWS in capsys.readouterr().err


def test_a_page_of_a_load_balancer_is_tried_again(account: Account, cloud: Cloud) -> None:
    own, pages = cloud.layer.inject, ["<html>Bad Gateway</html>", "", "Bad Gateway"]

    def inject(fault: Fault, call: Any, environ: Any, start: Any) -> Any:
        page = pages.pop().encode()
        start("502 Bad Gateway", [("Content-Length", str(len(page)))])
        return [page]

    cloud.layer.inject = inject  # type: ignore[method-assign]
    cloud.layer.faults.append(Fault("page", "iam", times=3))
    assert account.ask("iam", "GetAccountSummary")
    assert pages == []
    cloud.layer.inject = own  # type: ignore[method-assign]


def test_a_response_in_drops_is_given_up(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    class Drops(Page):
        def do_POST(self) -> None:
            """Answer a byte at a time, for ever."""
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while not ended.wait(0.05):
                    self.wfile.write(b" ")
                self.connection.shutdown(socket.SHUT_RDWR)

    account = security_check.connect(security_check.parse_arguments([]), None)
    monkeypatch.setattr(security_check, "CALL_TIMEOUT", 0.1)
    monkeypatch.delenv("HTTP_PROXY")
    with serving(Drops) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_IAM", url)
        for _ in range(4):
            with pytest.raises(AwsCallFailed, match=r"^NoResponse: iam GetAcc"):
                account.ask("iam", "GetAccountSummary")
        ended.set()
    account.close()


def test_a_call_that_no_thread_is_left_for_is_given_up(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    monkeypatch.setattr(security_check, "CALL_TIMEOUT", 0.02)
    monkeypatch.setattr(account, "callers", ThreadPoolExecutor(1))
    account.callers.submit(ended.wait)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(account.ask, "iam", "GetAccountSummary")
        done = wait([asked], timeout=10).done
        ended.set()
    assert done
    with pytest.raises(AwsCallFailed, match=r"^NoResponse: iam GetAccountSummary"):
        asked.result()


def test_a_renewal_of_credentials_that_does_not_end_holds_up_nobody(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, ended = threading.Event(), threading.Event()

    def program() -> dict[str, str]:
        began.set()
        ended.wait()
        raise RuntimeError

    later = security_check.utc_now() + timedelta(days=1)
    credentials = RefreshableCredentials("AKIA", "secret", "token", later, program, "x")
    monkeypatch.setattr(account.session, "get_credentials", lambda: credentials)
    with ThreadPoolExecutor(2) as pool:
        pool.submit(account._renew_credentials)
        began.wait()
        asked = pool.submit(account.ask, "sts", "GetCallerIdentity")
        done = wait([asked], timeout=10).done
        ended.set()
    assert done
    assert asked.result()["Account"]


def test_accounts_that_could_not_be_entered_do_not_keep_others_from_it(
    account: Account, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = account.client("sts", account.home_region)
    enter, silent = client.assume_role, [TimeoutError()] * 5

    def assume_role(**params: Any) -> Any:
        if silent:
            raise silent.pop()
        return enter(**params)

    monkeypatch.setattr(client, "assume_role", assume_role)
    numbers = [f"{number:012}" for number in range(6)]
    for number in numbers[:5]:
        with pytest.raises(AwsCallFailed, match=r"^NoResponse: sts AssumeRole .* within"):
            security_check.assume_role(account, "security-check", number)
    security_check.assume_role(account, "security-check", numbers[5])
