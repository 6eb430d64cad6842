"""No secret leaves: whatever form it has, wherever it comes from, however the run fails."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cloud import Cloud, Fault
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sign_in import Entrance, entrance, in_future
from test_sign_in import OTHER, ROLE, Desk, identity_center_to_refresh

from security_check import lambda_handler, main

MARK = "zQ7xKw"  # is in every secret, and in nothing else

# Printable, with line breaks at the end as in a file, with anything that an environment can hold
FORMS = st.one_of(
    st.text("abcXYZ0189+/=", max_size=60),
    st.text("abc0189", max_size=20).map(lambda text: f"{text}\n"),
    st.text(st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cs"])),
).map(lambda text: f"{text[:3]}{MARK}{text[3:]}")


# --- places -------------------------------------------------------------------------------


def in_the_secret_key(desk: Desk, secret: str) -> None:
    desk.patch.setenv("AWS_ACCESS_KEY_ID", "AKIA")
    desk.patch.setenv("AWS_SECRET_ACCESS_KEY", secret)


def in_the_session_token(desk: Desk, secret: str) -> None:
    in_the_secret_key(desk, "secret")
    desk.patch.setenv("AWS_SESSION_TOKEN", secret)


def in_a_profile(desk: Desk, secret: str) -> None:
    keys = f"aws_access_key_id = AKIA\naws_secret_access_key = {secret}\n"
    desk.config(f"[default]\n{keys}aws_session_token = {secret}\n")


def in_the_profile_of_a_role(desk: Desk, secret: str) -> None:
    keys = f"aws_access_key_id = AKIA\naws_secret_access_key = {secret}\n"
    desk.config(f"[default]\n{ROLE}source_profile = base\n[profile base]\n{keys}")


def helper(desk: Desk, text: str) -> None:
    path = desk.home / "helper.py"
    path.write_text(text)
    command = f"{shlex.quote(sys.executable)} {shlex.quote(str(path))}"
    desk.config(f"[default]\ncredential_process = {command}\n")


def in_what_a_program_gives(desk: Desk, secret: str) -> None:
    keys = {**desk.door.credentials(), "Version": 1, "SessionToken": secret}
    helper(desk, f"print({json.dumps(keys)!r})")


def in_what_a_program_gives_badly(desk: Desk, secret: str) -> None:
    helper(desk, f"print({secret!r})")


def in_what_a_program_complains_of(desk: Desk, secret: str) -> None:
    helper(desk, f"import sys; sys.exit('login failed with ' + {secret!r})")


def in_the_password_of_the_endpoint(desk: Desk, secret: str) -> None:
    in_the_secret_key(desk, "secret")
    url = desk.door.url.replace("http://", f"http://anna:{quote(secret, safe='')}@")
    desk.patch.setenv("AWS_ENDPOINT_URL_STS", url)


def in_an_endpoint_that_is_none(desk: Desk, secret: str) -> None:
    in_the_secret_key(desk, "secret")
    desk.patch.setenv("AWS_ENDPOINT_URL_STS", f"anna:{secret}@nowhere")


def in_the_password_of_the_proxy(desk: Desk, secret: str) -> None:
    in_the_secret_key(desk, "secret")
    desk.patch.delenv("AWS_ENDPOINT_URL_STS", raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        desk.patch.delenv(name)
    proxy = desk.door.url.replace("http://", f"http://anna:{quote(secret, safe='')}@")
    desk.patch.setenv("HTTP_PROXY", proxy)
    desk.patch.setenv("HTTPS_PROXY", proxy)


def in_the_token_of_a_cluster(desk: Desk, secret: str) -> None:
    (desk.home / "token").write_text(secret)
    desk.patch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/audit")
    desk.patch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(desk.home / "token"))


def in_the_token_of_a_pod(desk: Desk, secret: str) -> None:
    desk.patch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{desk.door.url}/pod")
    desk.patch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", secret)


def in_the_tokens_of_identity_center(desk: Desk, secret: str) -> None:
    identity_center_to_refresh(desk)
    (path,) = (desk.home / ".aws/sso/cache").glob("*.json")
    token = json.loads(path.read_text())
    secrets = dict.fromkeys(("accessToken", "refreshToken", "clientSecret"), secret)
    path.write_text(json.dumps({**token, **secrets}))


def in_the_session_of_a_login(desk: Desk, secret: str) -> None:
    desk.config(f"[default]\nlogin_session = anna\nregion = eu-west-1\ncolour = {secret}\n")
    name = "a" * 64
    token = {"secretAccessKey": secret, "sessionToken": secret, "expiresAt": in_future()}
    desk.cache("login", name, {"accessToken": token, "refreshToken": secret})


PLACES: list[Callable[[Desk, str], None]] = [
    in_the_secret_key,
    in_the_session_token,
    in_a_profile,
    in_the_profile_of_a_role,
    in_what_a_program_gives,
    in_what_a_program_gives_badly,
    in_what_a_program_complains_of,
    in_the_password_of_the_endpoint,
    in_an_endpoint_that_is_none,
    in_the_password_of_the_proxy,
    in_the_token_of_a_cluster,
    in_the_token_of_a_pod,
    in_the_tokens_of_identity_center,
    in_the_session_of_a_login,
]


# --- ways to fail -------------------------------------------------------------------------


def echo(place: str) -> Callable[[dict[str, Any]], tuple[int, str]]:
    """A server that says all that it was sent, as a code, a message or a page."""

    def answer(params: dict[str, Any]) -> tuple[int, str]:
        text = re.sub(r"[<>&]", "", " ".join(f"{name}={value}" for name, value in params.items()))
        texts = {"code": "AccessDenied", "message": "no", "id": "1", place: text}
        if place == "page":
            return 200, f"<html><body>{text}</body></html>"
        error = f"<Code>{texts['code']}</Code><Message>{texts['message']}</Message>"
        id = f"<RequestId>{texts['id']}</RequestId>"
        return 403, f"<ErrorResponse><Error>{error}</Error>{id}</ErrorResponse>"

    return answer


ANSWERS: dict[str, Any] = {
    "as AWS does": None,
    "a refusal": (403, "<ErrorResponse><Error><Code>AccessDenied</Code></Error></ErrorResponse>"),
    "an echo as code": echo("code"),
    "an echo as message": echo("message"),
    "an echo as request ID": echo("id"),
    "an echo as page": echo("page"),
    "half of it": (200, "<GetCallerIdentityResponse><GetCallerIdentityRes"),
    "nothing": (200, ""),
    "rubbish": (200, "{]"),
    "a failure": (400, "{"),
}
FAULTS = {
    "none": [],
    "a denied call": [Fault("AccessDenied", "iam", "ListUsers")],
    "expired": [Fault("ExpiredToken", "iam", "GetAccountSummary")],
    "a page": [Fault("rubbish", "iam", "ListUsers")],
}


class Output:
    """All that a run says: on its streams, in the log of Lambda's own handler, in its files."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self.folder, self.stream = folder, io.StringIO()
        patch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler(self.stream)])
        logging.getLogger().setLevel(logging.DEBUG)

    def text(self) -> str:
        files = (path.read_bytes().decode("latin-1") for path in self.folder.iterdir())
        return self.stream.getvalue() + "".join(files)


@pytest.fixture
def doors(cloud: Cloud) -> Iterator[Entrance]:
    with entrance(cloud.credentials()) as door:
        yield door


ARGUMENTS = ("--debug", "--check", "mfa", "--output", "x.xls", "--json", "x.json")


def output_of(
    cloud: Cloud, door: Entrance, folder: Path, place: Callable[[Desk, str], None], secret: str
) -> str:
    """All output of a run as a process would have it, and as a function of Lambda would."""
    home, out = folder / "home", folder / "out"
    home.mkdir(exist_ok=True)
    out.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        output = Output(patch, out)
        for name, value in cloud.environment.items():
            patch.setenv(name, value)
        patch.chdir(out)
        desk = Desk(home, door, patch)
        patch.setenv("AWS_ENDPOINT_URL_STS", door.url)
        patch.setattr("botocore.utils.ContainerMetadataFetcher.SLEEP_TIME", 0)
        patch.setattr("traceback.print_exc", REAL_PRINT_EXC)
        place(desk, secret)
        with redirect_stdout(output.stream), redirect_stderr(output.stream):
            main(ARGUMENTS)
            try:
                lambda_handler({"arguments": [*ARGUMENTS]}, None)
            except Exception as error:
                print(error)
    return output.text()


REAL_PRINT_EXC = traceback.print_exc


@pytest.mark.survives_bugs
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(secret=FORMS, answer=st.sampled_from([*ANSWERS]), fault=st.sampled_from([*FAULTS]))
def test_no_output_holds_a_secret(
    place: Callable[[Desk, str], None], secret: str, answer: str, fault: str,
    cloud: Cloud, doors: Entrance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("time.sleep", lambda _: None)
    doors.refuses = {"*": ANSWERS[answer]} if ANSWERS[answer] else {}
    cloud.layer.faults = [Fault(one.kind, one.service, one.operation) for one in FAULTS[fault]]
    text = output_of(cloud, doors, tmp_path, place, secret)
    assert MARK not in text
    assert "security_check.py: " in text or "GetCallerIdentity" in text  # it was heard


def test_a_line_for_each_call(cloud: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    cloud.layer.faults = [Fault("Throttling", "iam", "ListUsers", times=1)]
    assert main(["--account", OTHER, *ARGUMENTS]) == 1
    lines = capsys.readouterr().err.splitlines()
    pattern = r"(\S+) (\S+) us-east-1 (\d{12}|-) (\d{3}) (\S+) attempt (\d) \d+ ms"
    calls = [match.groups() for line in lines if (match := re.fullmatch(pattern, line))]
    assert len(calls) == len(lines) == len(cloud.layer.calls)
    assert ("sts", "GetCallerIdentity", "-", "200") in [call[:4] for call in calls]
    users = [call for call in calls if call[:2] == ("iam", "ListUsers")]
    assert [(call[2], call[3], call[5]) for call in users] == [
        (OTHER, "400", "1"),
        (OTHER, "200", "2"),
    ]


def test_without_debug_nothing_is_logged(cloud: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("botocore").setLevel(logging.DEBUG)
    assert main(ARGUMENTS[1:]) == 1
    assert capsys.readouterr().err == ""
    logging.getLogger("botocore").setLevel(logging.NOTSET)


@pytest.mark.parametrize("name", ["\x1b[31mred", "a\rb", "\x9b2J", "\u202eabc"])
def test_what_others_chose_reaches_a_terminal_printable(
    name: str, cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--profile", name]) == 2
    assert main(["--output", f"{name}/x.xls"]) == 2
    cloud.layer.faults = [Fault(name, "sts")]
    assert main([]) == 2
    assert all(line.isprintable() for line in capsys.readouterr().err.splitlines())


def test_a_token_with_a_line_break_is_told_what_is_wrong_with_it(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud.over_http = True
    monkeypatch.setattr("security_check.ATTEMPTS", 1)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "IQoJb3JpZ2luX2VjE\n")
    assert main([]) == 2
    error = capsys.readouterr().err
    assert "IQoJ" not in error
    assert "characters that do not belong there" in error
    assert os.environ["AWS_SESSION_TOKEN"].endswith("\n")
