"""How people sign in in 2026: each way audits an account, with botocore's real providers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pty
import re
import shlex
import signal
import stat
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import botocore.credentials
import botocore.session
import botocore.tokens
import pytest
from cloud import Cloud, Fault
from sign_in import Entrance, entrance, in_future

import security_check
from security_check import Account, main

SCRIPT = Path(security_check.__file__)
QUICK = ("--check", "mfa", "--output", "x.xls")
ROLE = "role_arn = arn:aws:iam::123456789012:role/audit\n"
MFA = "mfa_serial = arn:aws:iam::123456789012:mfa/anna\n"
BASE = "[profile base]\naws_access_key_id = AKIA\naws_secret_access_key = secret\n"


class Desk:
    """A person's machine: the configuration, the caches, and what they sign in to."""

    def __init__(self, home: Path, door: Entrance, patch: pytest.MonkeyPatch) -> None:
        self.home, self.door, self.patch = home, door, patch
        self.closed = threading.Event()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name)
        patch.setenv("HOME", str(home))
        patch.setenv("AWS_CONFIG_FILE", str(home / "config"))
        for name in ("NO_PROXY", "no_proxy"):
            patch.setenv(name, door.url.removeprefix("http://"))
        for service in ("SSO", "SSO_OIDC", "SIGNIN"):
            patch.setenv(f"AWS_ENDPOINT_URL_{service}", door.url)
        sso = str(home / ".aws/sso/cache")  # botocore looks for home when it is imported
        patch.setattr(botocore.credentials.SSOProvider, "_SSO_TOKEN_CACHE_DIR", sso)
        patch.setattr(botocore.tokens.SSOTokenProvider, "_SSO_TOKEN_CACHE_DIR", sso)

    def config(self, text: str) -> None:
        (self.home / "config").write_text(text)

    def cache(self, folder: str, name: str, content: dict[str, Any]) -> None:
        path = self.home / ".aws" / folder / "cache"
        path.mkdir(parents=True, exist_ok=True)
        (path / f"{name}.json").write_text(json.dumps(content))

    def nested_sts(self) -> None:
        """STS is asked here by the providers; what the audit itself asks goes to the cloud."""
        self.patch.setenv("AWS_ENDPOINT_URL_STS", self.door.url)
        own = security_check.Account.client

        def client(aws: Account, service: str, region: str) -> Any:
            made = own(aws, service, region)
            if service == "sts":
                url = os.environ["AWS_ENDPOINT_URL"]
                made.meta.events.register_first(
                    "before-call", lambda params, **_: params.update(url=f"{url}/")
                )
            return made

        self.patch.setattr(security_check.Account, "client", client)


@pytest.fixture
def desk(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    with entrance(cloud.credentials()) as door:
        yield (desk := Desk(tmp_path, door, monkeypatch))
        desk.closed.set()


# --- every way audits ---------------------------------------------------------------------


def access_keys(desk: Desk) -> None:
    desk.config("[default]\naws_access_key_id = AKIA\naws_secret_access_key = secret\n")


def environment(desk: Desk) -> None:
    desk.patch.setenv("AWS_ACCESS_KEY_ID", "AKIA")
    desk.patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


def identity_center(desk: Desk, expires: str = "") -> None:
    desk.config(
        "[default]\nsso_session = s\nsso_account_id = 123456789012\nsso_role_name = audit\n"
        "[sso-session s]\nsso_start_url = https://d-1.awsapps.com/start\nsso_region = eu-west-1\n"
    )
    name = hashlib.sha1(b"s").hexdigest()
    token = {"accessToken": "old", "expiresAt": expires or in_future(), "refreshToken": "r"}
    client = {"clientId": "c", "clientSecret": "s", "registrationExpiresAt": in_future()}
    desk.cache("sso", name, {**token, **client, "startUrl": "https://d-1.awsapps.com/start"})


def identity_center_to_refresh(desk: Desk) -> None:
    identity_center(desk, in_future(timedelta(minutes=-5)))


def aws_login(desk: Desk, left: timedelta = timedelta(hours=1)) -> None:
    desk.config("[default]\nlogin_session = arn:aws:iam::123456789012:user/anna\n")
    keys = {name[0].lower() + name[1:]: one for name, one in desk.door.credentials().items()}
    token = {**keys, "accountId": "123456789012", "expiresAt": in_future(left)}
    name = hashlib.sha256(b"arn:aws:iam::123456789012:user/anna").hexdigest()
    more = {"refreshToken": "r", "clientId": "c", "dpopKey": "-----BEGIN\nAAAA\n-----END"}
    region = {"signInRegion": "eu-west-1"}
    desk.cache("login", name, {"accessToken": token, **more, **region})
    desk.patch.setattr(botocore.credentials, "EC", StandInForCrt)


def aws_login_to_refresh(desk: Desk) -> None:
    aws_login(desk, timedelta(minutes=4))


class StandInForCrt:
    """The three functions of awscrt that a proof of possession needs."""

    @classmethod
    def new_key_from_der_data(cls, data: bytes) -> StandInForCrt:
        return cls()

    def get_public_coords(self) -> tuple[bytes, bytes]:
        return b"x", b"y"

    def sign(self, digest: bytes) -> bytes:
        return b"signature"

    @staticmethod
    def decode_der_signature_to_padded_pair(signature: bytes, pad_to: int) -> bytes:
        return signature


def web_identity(desk: Desk) -> None:
    desk.nested_sts()
    (desk.home / "token").write_text("token of the cluster")
    desk.patch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/audit")
    desk.patch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(desk.home / "token"))


def credential_process(desk: Desk) -> None:
    program = desk.home / "helper.py"
    program.write_text(f"print('''{json.dumps({'Version': 1, **desk.door.credentials()})}''')")
    command = f"{shlex.quote(sys.executable)} {shlex.quote(str(program))}"
    desk.config(f"[default]\ncredential_process = {command}\n")


def role_of_a_profile(desk: Desk) -> None:
    desk.nested_sts()
    desk.config(f"[default]\n{ROLE}source_profile = base\nexternal_id = 42\n{BASE}")


def chain_of_roles(desk: Desk) -> None:
    desk.nested_sts()
    first = f"[profile first]\n{ROLE}source_profile = base\n"
    desk.config(f"[default]\n{ROLE}source_profile = first\n{first}{BASE}")


def role_of_an_instance(desk: Desk) -> None:
    desk.nested_sts()
    desk.patch.delenv("AWS_EC2_METADATA_DISABLED")
    desk.patch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", desk.door.url)
    desk.config(f"[default]\n{ROLE}credential_source = Ec2InstanceMetadata\n")


def role_of_a_container(desk: Desk) -> None:
    desk.nested_sts()
    desk.patch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{desk.door.url}/container")
    desk.config(f"[default]\n{ROLE}credential_source = EcsContainer\n")


def pod_identity(desk: Desk) -> None:
    (desk.home / "token").write_text("token of the pod")
    desk.patch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{desk.door.url}/v1/credentials")
    desk.patch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(desk.home / "token"))


STS = "AssumeRole"
WAYS: list[tuple[Callable[[Desk], None], list[str]]] = [
    (access_keys, []),
    (environment, []),
    (identity_center, ["GetRoleCredentials"]),
    (identity_center_to_refresh, ["CreateToken", "GetRoleCredentials"]),
    (aws_login, []),
    (aws_login_to_refresh, ["CreateOAuth2Token"]),
    (web_identity, ["AssumeRoleWithWebIdentity"]),
    (credential_process, []),
    (role_of_a_profile, [STS]),
    (chain_of_roles, [STS, STS]),
    (role_of_an_instance, ["/latest/meta-data/iam/security-credentials/audit", STS]),
    (role_of_a_container, ["/container", STS]),
    (pod_identity, ["/v1/credentials"]),
]


@pytest.mark.parametrize(("way", "asked"), WAYS, ids=lambda one: getattr(one, "__name__", ""))
def test_every_way_to_sign_in_audits_the_account(
    way: Callable[[Desk], None], asked: list[str], desk: Desk, cloud: Cloud
) -> None:
    way(desk)
    assert main(QUICK) == 1  # root has no MFA
    assert desk.door.operations == asked
    assert "iam:ListUsers" in [call.name for call in cloud.layer.calls]


def test_what_a_pod_and_a_profile_hand_on(desk: Desk) -> None:
    pod_identity(desk)
    assert main(QUICK) == 1
    assert desk.door.asked[0][1]["headers"]["Authorization"] == "token of the pod"
    desk.patch.delenv("AWS_CONTAINER_CREDENTIALS_FULL_URI")
    role_of_a_profile(desk)
    assert main(QUICK) == 1
    assert desk.door.asked[-1][1]["ExternalId"] == "42"


def test_without_awscrt_a_login_session_says_which_package_is_missing(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    aws_login(desk)
    desk.patch.setattr(botocore.credentials, "EC", None)
    assert main(QUICK) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pip install 'boto3[crt]'" in error


# --- whose clients can write --------------------------------------------------------------


def test_our_clients_cannot_write_and_those_of_botocore_keep_what_they_need(desk: Desk) -> None:
    access_keys(desk)
    base = security_check.sign_in(None)
    ours: Any = security_check.new_session(None, base)
    for service in ("ec2", "iam", "sts", "sso-oidc", "signin"):
        names = ours.client(service, "eu-west-1").meta.method_to_api_mapping.values()
        assert [name for name in names if not name.startswith(security_check.READ_PREFIXES)] == []
    names = ours.client("s3", "eu-west-1").meta.method_to_api_mapping.values()
    others = [name for name in names if not name.startswith(security_check.READ_PREFIXES)]
    assert others == ["CreateSession"]  # for directory buckets
    for service, needed in (
        ("sso-oidc", "create_token"),
        ("signin", "create_o_auth2_token"),
        ("sts", "assume_role_with_web_identity"),
        ("sso", "get_role_credentials"),
    ):
        assert hasattr(base.create_client(service, region_name="eu-west-1"), needed)


def test_our_time_outs_reach_the_clients_that_botocore_makes(desk: Desk) -> None:
    access_keys(desk)
    config = security_check.sign_in(None).create_client("sts", region_name="eu-west-1").meta.config
    assert (config.connect_timeout, config.read_timeout) == (5, 10)
    assert config.retries["mode"] == "standard"


# --- the configuration of the AWS CLI -----------------------------------------------------


def region_of_the_run(**environment: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        options = security_check.parse_arguments([])
        return security_check.connect(options, None).home_region


def test_the_region_is_read_as_by_the_aws_cli(cloud: Cloud) -> None:
    assert region_of_the_run() == "us-east-1"
    assert region_of_the_run(AWS_DEFAULT_REGION="eu-west-1") == "eu-west-1"
    assert region_of_the_run(AWS_REGION="us-west-2") == "us-west-2"
    both = {"AWS_REGION": "us-west-2", "AWS_DEFAULT_REGION": "eu-west-1"}
    assert region_of_the_run(**both) == "us-west-2"


def test_a_stale_profile_in_the_environment_does_not_matter_where_one_is_given(desk: Desk) -> None:
    desk.config(BASE)
    desk.patch.setenv("AWS_PROFILE", "gone")
    assert main(["--profile", "base", *QUICK]) == 1


def test_a_profile_that_does_not_exist_is_one_line(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    desk.config(BASE)
    desk.patch.setenv("AWS_PROFILE", "gone")
    assert main(QUICK) == 2
    error = capsys.readouterr().err
    assert "(gone)" in error
    assert "profiles: base" in error
    assert error.count("\n") == 1


PARTITIONS = [
    ("eusc-de-east-1", "amazonaws.eu"),
    ("us-iso-east-1", "c2s.ic.gov"),
    ("us-isob-east-1", "sc2s.sgov.gov"),
    ("eu-isoe-west-1", "cloud.adc-e.uk"),
    ("cn-northwest-1", "amazonaws.com.cn"),
    ("us-gov-east-1", "amazonaws.com"),
    ("eu-west-1", "amazonaws.com"),
]


@pytest.mark.parametrize(("region", "suffix"), PARTITIONS)
def test_a_region_that_is_asked_for_leads_to_its_partition(region: str, suffix: str) -> None:
    keys: Any = {"aws_access_key_id": "AKIA", "aws_secret_access_key": "x"}
    aws = Account(boto3.Session(**keys), security_check.utc_now(), [region])
    home = "us-east-1" if region == "eu-west-1" else region
    assert aws.home_region == home
    url = aws.client("sts", aws.home_region).meta.endpoint_url
    assert url == f"https://sts.{home}.{suffix}"


# --- MFA ----------------------------------------------------------------------------------


def with_mfa(desk: Desk) -> list[str]:
    """A profile with MFA, and the prompts that somebody has answered."""
    prompts: list[str] = []

    def answer(prompt: str) -> str:
        prompts.append(prompt)
        return f"{len(prompts):06}"

    desk.nested_sts()
    desk.config(f"[default]\n{ROLE}{MFA}source_profile = base\n{BASE}")
    desk.patch.setattr("getpass.getpass", answer)
    desk.patch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    return prompts


def test_a_code_is_asked_once_a_run_and_not_again_within_the_hour(desk: Desk, bucket: Any) -> None:
    prompts = with_mfa(desk)
    assert main(["--check", "mfa", "--output", "s3://reports/x.xls"]) == 1
    assert main(QUICK) == 1
    assert len(prompts) == 1
    assert [one["TokenCode"] for _, one in desk.door.asked] == ["000001"]
    (kept,) = (desk.home / ".aws/cli/cache").glob("*.json")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"Credentials": {}}'])
def test_a_damaged_cache_of_the_aws_cli_is_none(content: str, desk: Desk) -> None:
    prompts = with_mfa(desk)
    assert main(QUICK) == 1
    (kept,) = (desk.home / ".aws/cli/cache").glob("*.json")
    kept.write_text(content)
    assert main(QUICK) == 1
    assert len(prompts) == 2


def test_a_home_that_cannot_be_written_to_costs_a_prompt_a_run(desk: Desk, bucket: Any) -> None:
    prompts = with_mfa(desk)
    (desk.home / ".aws").write_text("no folder")
    assert main(["--check", "mfa", "--output", "s3://reports/x.xls"]) == 1
    assert len(prompts) == 1


@pytest.mark.posix
def test_who_has_no_home_signs_in_too(desk: Desk) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(uid)

    access_keys(desk)
    desk.patch.delenv("HOME")
    desk.patch.setattr("pwd.getpwuid", nobody)
    assert main(QUICK) == 1


def test_a_code_that_aws_refuses_is_no_missing_permission(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    with_mfa(desk)
    message = "MultiFactorAuthentication failed with invalid MFA one time pass code. "
    error = f"<Error><Code>AccessDenied</Code><Message>{message}</Message></Error>"
    desk.door.refuses = {"AssumeRole": (403, f"<ErrorResponse>{error}</ErrorResponse>")}
    assert main(QUICK) == 2
    assert capsys.readouterr().err == (
        "security_check.py: AWS does not accept the MFA code: run again with the next one, "
        "or check mfa_serial\n"
    )


WRONG_PROFILES = {
    "no configuration": "[default",
    "a role of nobody": f"[default]\n{ROLE}",
    "a role of a profile that is not there": f"[default]\n{ROLE}source_profile = gone\n",
    "roles in a circle": f"[default]\n{ROLE}source_profile = a\n[profile a]\n{ROLE}"
    "source_profile = default\n",
    "a program without its last quote": "[default]\ncredential_process = 'helper\n",
}


@pytest.mark.parametrize("what", WRONG_PROFILES)
def test_a_wrong_profile_is_one_line_that_says_where_to_look(
    what: str, desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    desk.config(WRONG_PROFILES[what])
    assert main(QUICK) == 2
    assert capsys.readouterr().err.endswith(": sign-in: check the AWS CLI's configuration\n")


def program(desk: Desk) -> list[str]:
    desk.config(f"[default]\n{ROLE}{MFA}source_profile = base\n{BASE}")
    return [sys.executable, str(SCRIPT), *QUICK]


@pytest.mark.posix
def test_without_a_terminal_a_code_cannot_be_asked_and_that_is_one_line(desk: Desk) -> None:
    read, write = os.pipe()
    command = program(desk)
    if not (child := os.fork()):
        os.setsid()  # no terminal any more
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(write, 2)
        os.execv(command[0], command)
    os.close(write)
    with os.fdopen(read) as file:
        error = file.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    assert error.count("\n") == 1
    assert "MFA code" in error
    assert "no terminal" in error


@pytest.mark.posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_left_with_echo_however_the_prompt_ends(
    number: signal.Signals, desk: Desk
) -> None:
    command = program(desk)
    child, terminal = pty.fork()
    if not child:
        os.execv(command[0], command)
    text = b""
    while b"Enter MFA code" not in text:
        text += os.read(terminal, 1000)
    while termios.tcgetattr(terminal)[3] & termios.ECHO:
        time.sleep(0.01)  # the prompt is printed first
    os.kill(child, number)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + number
    assert termios.tcgetattr(terminal)[3] & termios.ECHO


# --- credentials in mid-audit -------------------------------------------------------------


def test_an_expired_token_is_renewed_where_there_is_a_way_to(desk: Desk, cloud: Cloud) -> None:
    pod_identity(desk)
    cloud.layer.faults += [Fault("ExpiredToken", "iam", "ListUsers", times=1)]
    assert main(QUICK) == 1
    assert len(desk.door.asked) == 2


def test_an_expired_token_without_another_is_final(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud.layer.faults += [Fault("ExpiredToken", "iam", "ListUsers")]
    assert main(QUICK) == 3
    assert "the credentials expired during the audit" in capsys.readouterr().err


def test_a_clock_that_is_off_is_no_expiry(cloud: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    cloud.layer.faults += [Fault("RequestExpired", "ec2", "DescribeInstances")]
    assert main(["--check", "ec2-classic", "--check", "mfa", "--output", "x.xls"]) == 3
    assert "expired during" not in capsys.readouterr().err
    assert "iam:ListUsers" in [call.name for call in cloud.layer.calls]


def test_at_sign_in_a_clock_that_is_off_is_called_that(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud.layer.faults += [Fault("RequestExpired", "sts")]
    assert main(QUICK) == 2
    assert "the clock" in capsys.readouterr().err


HELPER = """
import json, pathlib, sys
count = pathlib.Path({count!r})
count.write_text(count.read_text() + "x" if count.exists() else "x")
if len(count.read_text()) in {fails!r}:
    sys.exit("the vault is sealed, token=hunter2hunter2hunter2")
print({keys!r})
"""


def helper(desk: Desk, fails: list[int], left: timedelta = timedelta(seconds=30)) -> None:
    """A program that has to be run again for each call, because its keys expire so soon."""
    desk.door.lifetime = left
    keys = json.dumps({"Version": 1, **desk.door.credentials()})
    path = desk.home / "helper.py"
    path.write_text(HELPER.format(count=str(desk.home / "count"), fails=fails, keys=keys))
    command = f"{shlex.quote(sys.executable)} {shlex.quote(str(path))}"
    desk.config(f"[default]\ncredential_process = {command}\n")


def test_a_program_that_fails_once_costs_one_call_and_its_words_are_told(desk: Desk) -> None:
    helper(desk, [])
    aws = security_check.connect(security_check.parse_arguments([]), None)
    helper(desk, [len((desk.home / "count").read_text()) + 1])
    with pytest.raises(security_check.AwsCallFailed) as failed:
        aws.ask("iam", "GetAccountSummary")
    code = "CredentialRetrievalError: sign-in the vault is sealed, ***"
    assert str(failed.value.error) == code
    assert code.partition(":")[0] not in security_check.EXPIRED_CODES
    assert aws.ask("iam", "GetAccountSummary")["SummaryMap"]


def test_a_program_that_fails_for_good_is_not_run_for_every_call(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    helper(desk, [*range(9, 1000)])
    assert main(["--output", "x.xls"]) == 3
    assert "the credentials expired" not in capsys.readouterr().err
    assert len((desk.home / "count").read_text()) < 60


def test_a_program_that_fails_at_once_is_one_line_with_its_words(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    helper(desk, [1])
    assert main(QUICK) == 2
    error = capsys.readouterr().err
    assert "the vault is sealed" in error
    assert error.count("\n") == 1


BAD_ANSWERS = {
    "rubbish": ("no JSON", "JSONDecodeError: sign-in"),
    "a list": ("[]", "AttributeError: sign-in"),
    "what has expired": ({"Expiration": "2020-01-01T00:00:00Z"}, "ExpiredToken: iam GetAcc"),
}


@pytest.mark.parametrize("what", BAD_ANSWERS)
def test_a_program_that_gives_rubbish_in_mid_audit_is_not_called_a_proxy(
    what: str, desk: Desk
) -> None:
    given, words = BAD_ANSWERS[what]
    helper(desk, [])
    aws = security_check.connect(security_check.parse_arguments([]), None)
    known = {"Version": 1, **desk.door.credentials()}
    text = json.dumps({**known, **given}) if isinstance(given, dict) else given
    (desk.home / "helper.py").write_text(f"print({text!r})")
    with pytest.raises(security_check.AwsCallFailed, match=f"^{words}"):
        aws.ask("iam", "GetAccountSummary")


def hangs(desk: Desk, answers: int, left: timedelta) -> list[int]:
    """A program that stops to answer, and how often it was run; it ends with the test."""
    runs: list[int] = []
    known = {"access_key": "AKIA", "secret_key": "secret", "token": "t"}

    def program(*_: Any) -> dict[str, str]:
        runs.append(len(runs))
        if len(runs) > answers:
            desk.closed.wait()
        return known | {"expiry_time": in_future(left)}

    desk.config("[default]\ncredential_process = hangs\n")
    provider = botocore.credentials.ProcessProvider
    desk.patch.setattr(provider, "_retrieve_credentials_using", program)
    for name in ("SIGN_IN_TIMEOUT", "REFRESH_TIMEOUT"):
        desk.patch.setattr(security_check, name, 0.1)
    return runs


def test_a_program_that_hangs_at_once_is_one_line(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    hangs(desk, 0, timedelta(hours=1))
    assert main(QUICK) == 2
    error = capsys.readouterr().err
    assert "CredentialRetrievalError: sign-in (no credentials within" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("code", ["", "ExpiredToken"])
def test_a_program_that_hangs_in_mid_audit_is_run_once_and_ends_it(
    code: str, desk: Desk, cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = 1 if code else 6
    runs = hangs(desk, answers, timedelta(hours=1) if code else timedelta(seconds=30))
    cloud.layer.faults += [Fault(code, "iam"), Fault(code, "ec2")] if code else []
    assert main(["--output", "x.xls"]) == 3
    assert "no credentials within" in capsys.readouterr().out
    assert len(runs) == answers + 1


def test_a_program_that_is_slow_is_waited_for_by_the_next_call(desk: Desk) -> None:
    runs = hangs(desk, 2, timedelta(seconds=30))
    credentials = security_check.sign_in(None).get_credentials()
    with pytest.raises(security_check.AwsCallFailed):
        credentials.get_frozen_credentials()
    with pytest.raises(security_check.AwsCallFailed):
        credentials.get_frozen_credentials()
    desk.closed.set()
    while True:
        with contextlib.suppress(security_check.AwsCallFailed):
            assert credentials.get_frozen_credentials().access_key == "AKIA"
            break
    assert len(runs) == 3


# --- roles in other accounts --------------------------------------------------------------

OTHER = "111122223333"
ENTER = ("--account", OTHER, "--external-id", "our+secret=word", *QUICK)


def assumed(cloud: Cloud) -> list[str]:
    return [call.text for call in cloud.layer.calls if call.operation == "AssumeRole"]


def test_a_role_is_held_down_to_the_policy_and_told_the_external_id(cloud: Cloud) -> None:
    assert main(ENTER) == 1
    (asked,) = assumed(cloud)
    assert json.dumps(security_check.READ_POLICY, separators=(",", ":")) in asked
    assert "ExternalId=our+secret=word" in asked
    assert len(json.dumps(security_check.READ_POLICY, separators=(",", ":"))) <= 2048  # of STS


def test_the_own_account_is_not_assumed(cloud: Cloud) -> None:
    assert main(["--account", "123456789012", *QUICK]) == 1
    assert assumed(cloud) == []


@pytest.mark.parametrize("id", ["", "x", "a b", "a" * 1225])
def test_what_is_no_external_id_is_refused(id: str, cloud: Cloud) -> None:
    with pytest.raises(SystemExit):
        main(["--external-id", id])
    assert cloud.layer.calls == []


def test_an_audit_may_take_longer_than_the_credentials_of_a_role(cloud: Cloud) -> None:
    options = security_check.parse_arguments([])
    caller = security_check.connect(options, None)
    aws = security_check.assume_role(caller, "security-check", OTHER)
    credentials: Any = aws.session.get_credentials()
    aws.ask("iam", "GetAccountSummary")
    assert len(assumed(cloud)) == 1
    credentials._expiry_time = datetime.now(timezone.utc) + timedelta(minutes=5)
    aws.ask("iam", "GetAccountSummary")
    assert len(assumed(cloud)) == 2


def test_the_policy_allows_what_the_checks_ask(cloud: Cloud) -> None:
    assert main(["--output", "x.xls"]) == 1
    (statement,) = security_check.READ_POLICY["Statement"]
    names: dict[str, str] = security_check.IAM_ACTION_NAMES
    asked = {names.get(call.name, call.name) for call in cloud.layer.calls}
    assert asked - {"sts:GetCallerIdentity"} <= {*statement["Action"]}


def test_what_is_published_is_that_policy() -> None:
    text = (SCRIPT.parent / "README.md").read_text()
    blocks = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    (policy,) = (json.loads(block) for block in blocks if "iam:ListUsers" in block)
    assert policy["Statement"] == [
        {**one, "Action": sorted(one["Action"])} for one in security_check.READ_POLICY["Statement"]
    ]
    role = (SCRIPT.parent / "tests/deploy/role.yaml").read_text()
    listed = re.findall(r"^ *- ((?:cloudtrail|ec2|iam|s3):\w+)$", role, re.MULTILINE)
    assert listed == policy["Statement"][0]["Action"]
