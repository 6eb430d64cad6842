"""The script as a program: interrupted, with odd streams, in a bare environment, talkative."""

from __future__ import annotations

import base64
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cloud import Cloud, Fault
from conftest import patient

import security_check

pytestmark = pytest.mark.posix
SCRIPT = Path(security_check.__file__)
PROGRAM = [sys.executable, str(SCRIPT)]


def started(cloud: Cloud, *arguments: str, **how: Any) -> subprocess.Popen[str]:
    env = {"PATH": os.environ["PATH"], **cloud.environment, **how.pop("env", {})}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how}
    return subprocess.Popen([*PROGRAM, *arguments], env=env, text=True, **pipes)


def finished(cloud: Cloud, *arguments: str, **how: Any) -> tuple[int, str, str]:
    process = started(cloud, *arguments, **how)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_interrupted_it_leaves_at_once_and_leaves_nothing_behind(
    cloud: Cloud, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, number: signal.Signals
) -> None:
    """At once: the answer for which it waits never comes."""
    (tmp_path / "x.xls").write_text("old")
    cloud.layer.faults = [Fault("hang", "ec2", "DescribeInstances")]
    process = started(cloud, "--output", "x.xls", env=patient(tmp_path_factory.mktemp("patient")))
    cloud.layer.wait_for("DescribeInstances")
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 128 + number
    assert err == f"security_check.py: interrupted by {number.name}: nothing was written\n"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"x.xls": "old"}


def test_a_reader_that_goes_away_does_not_undo_the_audit(cloud: Cloud, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    code, _, err = finished(cloud, "--output", "x.xls", stdout=writing)
    os.close(writing)
    assert (code, err) == (1, "")
    assert (tmp_path / "x.xls").exists()


def test_closed_standard_output(cloud: Cloud, tmp_path: Path) -> None:
    command = f"exec {' '.join(PROGRAM)} --output x.xls >&-"
    ran = subprocess.run(
        ["/bin/sh", "-c", command],
        env={**os.environ, **cloud.environment},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (1, "")
    assert (tmp_path / "x.xls").exists()


@pytest.mark.parametrize(
    "env",
    [
        pytest.param({}, id="no HOME, no locale"),
        pytest.param({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, id="C locale"),
        pytest.param({"PYTHONIOENCODING": "ascii"}, id="ASCII streams"),
    ],
)
def test_bare_environments(cloud: Cloud, env: dict[str, str]) -> None:
    cloud.client("iam").create_user(UserName="alice")
    cloud.backend("iam").account_aliases = ["größe"]
    code, out, err = finished(cloud, env=env)
    assert (code, err) == (1, "")
    assert "AWS account 123456789012 (gr" in out


def test_nothing_but_the_summary_when_piped(cloud: Cloud) -> None:
    _, out, _ = finished(cloud, env={"TERM": "xterm-256color"})
    assert "\x1b" not in out


@pytest.mark.parametrize(("env", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colours_are_for_terminals_that_want_them(
    cloud: Cloud, env: dict[str, str], coloured: bool
) -> None:
    import pty

    ours, theirs = pty.openpty()
    process = started(cloud, stdout=theirs, env=env)
    process.communicate(timeout=300)
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert ("\x1b[1;31m" in shown) is coloured


def test_on_a_terminal_progress_stays_on_one_line(cloud: Cloud) -> None:
    import pty

    ours, theirs = pty.openpty()
    process = started(cloud, stderr=theirs)
    process.communicate(timeout=300)
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "Security groups: 3 of 3 regions" in shown
    assert "\n" not in shown
    assert shown.endswith("\r\x1b[K")


def test_debug_shows_calls_and_no_secrets(cloud: Cloud, tmp_path: Path) -> None:
    token = "FwoGZXIvYXdzEXAMPLETOKEN//////////wEaDA"
    cloud.client("iam").create_user(UserName="alice")
    code, out, err = finished(cloud, "--debug", env={"AWS_SESSION_TOKEN": token})
    assert code == 1
    assert "GetCredentialReport" in err
    report = base64.b64encode(b"user,arn,user_creation_time").decode()
    secrets = (token, cloud.environment["AWS_SECRET_ACCESS_KEY"], report, report[:-4])
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for secret in secrets:
        assert secret not in out + err
        assert secret.encode() not in written
    assert not re.search(r"Signature=[0-9a-f]{8}", err)


def test_a_package_that_is_missing_is_named_before_the_audit(cloud: Cloud) -> None:
    bare = [sys.executable, "-S", str(SCRIPT)]  # without site-packages
    ran = subprocess.run(bare, env=cloud.environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert ran.stderr == (
        "security_check.py: boto3 is not installed: "
        f"run `{sys.executable} -m pip install --upgrade boto3 xlwt`\n"
    )


INFINITE = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "raised"),
    [
        pytest.param(256, INFINITE, [(4096, INFINITE)], id="macOS"),
        pytest.param(1024, 524_288, [(4096, 524_288)], id="Linux"),
        pytest.param(256, 1024, [(1024, 1024)], id="no more than the system lets us"),
        pytest.param(8192, INFINITE, [], id="enough already"),
        pytest.param(INFINITE, INFINITE, [], id="no limit"),
    ],
)
def test_many_connections_may_be_open(
    soft: int, hard: int, raised: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = list[tuple[int, int]]()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: limits.append(limit))
    security_check.allow_open_files()
    assert limits == raised


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux tells another's limits")
def test_the_limit_is_raised_before_the_audit(cloud: Cloud) -> None:
    cloud.layer.faults = [Fault("hang", "iam", "GetAccountSummary")]
    process = started(cloud, "--check", "mfa", "--no-workbook")
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (64, 512))
    cloud.layer.wait_for("GetAccountSummary")
    limits = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    process.kill()
    process.communicate()
    assert limits == (512, 512)
