"""Exit codes and streams: 1 is findings and nothing else, results are written or it is said."""

from __future__ import annotations

import ast
import errno
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cloud import Cloud

import security_check
from security_check import CannotRun, lambda_handler, main

SCRIPT = Path(security_check.__file__)
QUICK = ("--check", "mfa", "--output", "x.xls")
NO_SPACE = Path("/dev/full")
full = pytest.mark.skipif(not NO_SPACE.exists(), reason="there is no full device here")


def shell(command: str, **environment: str) -> tuple[int, str, str]:
    """The exit code and the streams of the script, as `script`, in a shell."""
    script = f'"{sys.executable}" "{SCRIPT}"'
    done = subprocess.run(
        ["bash", "-c", command.replace("script", script, 1)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


ARGUMENTS = " ".join(QUICK)


# --- what was not foreseen ----------------------------------------------------------------


NAMES: dict[str, Any] = {}
BUG = "def raise_bug(*_, **__): raise KeyError('a name that is not there')"
exec(compile(BUG, SCRIPT, "exec"), NAMES)  # as if it stood in the script
raise_bug = NAMES["raise_bug"]


@pytest.mark.survives_bugs
@pytest.mark.parametrize(
    "place",
    ["select_accounts", "make_overview", "report_outcome", "parse_arguments", "new_session",
     "sign_in", "check_before_start"],
)  # fmt: skip
def test_whatever_is_not_foreseen_is_a_traceback_and_a_line_and_2(
    place: str, cloud: Cloud, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(security_check, place, raise_bug)
    assert main(QUICK) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("Traceback (most recent call last)")
    assert "KeyError: 'a name that is not there'" in error
    last = error.splitlines()[-1]
    assert last.startswith("security_check.py: this is a bug of the script (KeyError)")


@pytest.mark.survives_bugs
def test_in_lambda_a_bug_is_told_and_raised(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(security_check, "select_accounts", raise_bug)
    with pytest.raises(CannotRun, match=r"^this is a bug of the script \(KeyError\)") as raised:
        lambda_handler({"arguments": [*QUICK]}, None)
    assert raised.value.__suppress_context__
    assert capsys.readouterr().err.startswith("Traceback")


@pytest.mark.survives_bugs
def test_what_a_library_says_of_a_bug_is_left_out(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def bug(*_: Any) -> None:
        try:
            json.loads("{", object_hook=int("token IQoJ"))  # type: ignore[arg-type]
        except ValueError as error:
            raise json.JSONDecodeError(f"{error}", "IQoJ", 0) from error

    def library(*_: Any) -> None:
        json.loads('{"IQoJ": "IQoJ" IQoJ')

    for place in (bug, library):
        monkeypatch.setattr(security_check, "select_accounts", place)
        assert main(QUICK) == 2
        error = capsys.readouterr().err
        assert "JSONDecodeError" in error
        assert "IQoJ" not in re.sub(r"(?m)^ .*$", "", error)  # but in lines of this file


@pytest.mark.survives_bugs
def test_a_bug_with_every_stream_closed_is_2() -> None:
    assert shell("script --check mfa --profile gone >&- 2>&-")[0] == 2


def test_a_process_that_cannot_even_start_a_thread_ends_with_2() -> None:
    no_thread = "threading.Thread.start = lambda _: exec('raise RuntimeError')"
    run = f"import runpy, threading; {no_thread}; runpy.run_path({str(SCRIPT)!r}, {{}}, '__main__')"
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "this is a bug of the script (RuntimeError)" in done.stderr.splitlines()[-1]


class Broken(io.StringIO):
    """A stream on a full disk."""

    def write(self, _: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.survives_bugs
@pytest.mark.parametrize("stream", [None, Broken()], ids=["closed", "full"])
def test_a_bug_in_a_check_that_cannot_be_printed_costs_its_target_only(
    stream: Any, cloud: Cloud, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(security_check, "root_mfa_row", raise_bug)
    monkeypatch.setattr(sys, "stderr", stream)
    assert main([*QUICK, "--json", "-"]) == 3
    assert "InternalError" in str(json.loads(capsys.readouterr().out))


@pytest.mark.survives_bugs
def test_what_a_library_says_of_a_bug_in_a_check_is_left_out_of_the_report(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    token = "IQo" + "J"
    monkeypatch.setattr(security_check, "root_mfa_row", lambda _: int(token))
    assert main([*QUICK, "--json", "-"]) == 3
    out, error = capsys.readouterr()
    assert "'detail': 'ValueError'" in str(json.loads(out))
    assert "IQoJ" not in out + error


# --- results and messages -----------------------------------------------------------------


@full
@pytest.mark.parametrize("options", [f"{ARGUMENTS} --json -", "--list -"])
def test_a_result_that_cannot_be_written_is_2_and_said(options: str, cloud: Cloud) -> None:
    code, _, error = shell(f"script {options} >/dev/full")
    assert code == 2
    assert error == (
        "security_check.py: cannot write to standard output: No space left on device\n"
    )
    code, _, error = shell(f"script {options} >&-")
    assert (code, error) == (
        2,
        "security_check.py: cannot write to standard output: it is closed\n",
    )


def test_a_reader_that_went_away_is_told(cloud: Cloud) -> None:
    command = f"set -o pipefail; script {ARGUMENTS} --json - | true"
    code, _, error = shell(command)
    assert code == 2
    assert error.startswith("security_check.py: cannot write to standard output: ")


@full
@pytest.mark.parametrize("closed", [">/dev/full", ">&-", "2>/dev/full", "2>&-", ">&- 2>&-"])
def test_a_message_that_cannot_be_printed_undoes_no_audit(closed: str, cloud: Cloud) -> None:
    assert shell(f"script {ARGUMENTS} {closed}")[0] == 1
    assert Path("x.xls").exists()


@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full"])
def test_nothing_meant_for_standard_error_reaches_standard_output(
    closed: str, cloud: Cloud
) -> None:
    Path("accept").write_text("mfa/nobody # is not there\n")
    code, out, _ = shell(f"script {ARGUMENTS} --debug --accept accept --json - {closed}")
    assert code == 1
    assert json.loads(out)["accounts"]
    code, out, _ = shell(f"script --profile gone --json - {closed}")
    assert (code, out) == (2, "")
    code, out, _ = shell(f"script --no-such-option {closed}")
    assert (code, out) == (2, "")


def test_the_list_is_whole(cloud: Cloud) -> None:
    assert shell("script --list -")[1] == "123456789012\n"


# --- what it runs on ----------------------------------------------------------------------


def old_pythons() -> list[str]:
    """Versions of Python on this machine that are too old."""
    found = Path("~/.pyenv/versions").expanduser().glob("3.[89].*")
    return [str(path / "bin" / "python") for path in found]


def test_the_file_keeps_to_the_grammar_of_3_8() -> None:
    ast.parse(SCRIPT.read_text(), feature_version=(3, 8))


@pytest.mark.parametrize("python", old_pythons())
def test_a_python_that_is_too_old_is_one_line(python: str) -> None:
    done = subprocess.run([python, SCRIPT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("security_check.py: run it with Python 3.10 or later, e.g. python3.12\n")


PACKAGES = {
    "missing": ("raise ModuleNotFoundError(name='boto3')", "boto3 is not installed"),
    "without its own": ("import bottocore_", "bottocore_ is not installed"),
    "broken": ("raise AttributeError('X509_V_FLAG')", r"boto3 is broken (AttributeError)"),
    "old": ("__version__ = '1.34.46'", "boto3 1.34.46 is too old, 1.44 is needed"),
    "new enough": ("__version__ = '1.44.0'", ""),
    "two digits": ("__version__ = '1.100.1'", ""),
    "without a version": ("", "boto3  is too old"),
}


@pytest.mark.parametrize(("code", "words"), PACKAGES.values(), ids=[*PACKAGES])
def test_a_boto3_that_cannot_work_is_one_line_before_any_call(
    code: str, words: str, cloud: Cloud
) -> None:
    Path("boto3.py").write_text(code)
    status, out, error = shell("script --list -", PYTHONPATH=str(Path.cwd()))
    assert (status, out) == (2, "")
    if words:
        assert error.startswith(f"security_check.py: {words}")
        assert "-m pip install --upgrade boto3 xlwt" in error
        assert error.count("\n") == 1
    assert cloud.layer.calls == []


def test_the_bound_is_that_of_the_metadata() -> None:
    bound = f"boto3>={security_check.MIN_BOTO3}"
    assert f'"{bound}"' in SCRIPT.read_text()
    assert bound in (SCRIPT.parent / "requirements.txt").read_text()


# --- what starts it -----------------------------------------------------------------------

README = SCRIPT.parent / "tests/deploy/README.md"


def success(code: int) -> bool:
    """Whether the systemd unit that is published takes this exit code for a success."""
    (line,) = re.findall(r"^SuccessExitStatus=(.*)$", README.read_text(), re.MULTILINE)
    return code == 0 or str(code) in line.split()


@pytest.mark.survives_bugs
def test_systemd_takes_findings_for_a_success_and_nothing_else(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert success(main(QUICK))
    assert not success(main([*QUICK, "--profile", "gone"]))
    monkeypatch.setattr(security_check, "report_outcome", raise_bug)
    assert not success(main(QUICK))


def test_nohup_is_obeyed(cloud: Cloud) -> None:
    command = f"trap '' HUP; exec script {ARGUMENTS}"
    assert shell(command)[0] == 1
