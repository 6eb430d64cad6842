"""Without a machine: the function that Lambda calls, and the template whose state machine calls
it for a thousand accounts.

moto's CloudFormation makes what it knows of the template, and its Step Functions do what the
definition says. The function is called in this process, under the test's credentials.
"""

from __future__ import annotations

import ast
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timezone
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import readme
from cloud import DEFAULT_ACCOUNT_ID, Cloud, Fault, executing
from conftest import BUCKET, Clock, objects
from example import (
    CLOSED,
    IRELAND,
    SOEHNE,
    TOKYO,
    VIRGINIA,
    Member,
    Organization,
    fill_organization,
)
from reading import DEPLOY, read_sheet, timeless

import security_check
from security_check import CHECKS, IAM_ACTION_NAMES, CannotRun, lambda_handler, main

TEMPLATE = (DEPLOY / "organization.yaml").read_text()
AUDITED = {"cloudtrail", "ec2", "iam", "organizations", "s3", "s3control"}


# --- the function ---------------------------------------------------------------------------


def handled(*arguments: str) -> dict[str, Any]:
    answer = lambda_handler({"arguments": [*arguments]}, None)
    assert json.loads(json.dumps(answer)) == answer
    return answer


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder that a function may write to; the current one cannot be written."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_a_function_tells_what_came_out_and_leaves_nothing(
    cloud: Cloud, org_with_bucket: Organization, temporary: Path
) -> None:
    names = [f"s3://{BUCKET}/{{account}}.{kind}" for kind in ("json", "xls")]
    before, here = {*Path().rglob("*")}, Path.cwd()
    answer = handled("--account", TOKYO, "--json", names[0], "--output", names[1])
    assert answer == {
        "exit_code": 1,
        "headline": f"AWS account {TOKYO}: 7 findings, everything was checked",
        "needs_attention": True,
        "files": [f"s3://{BUCKET}/{TOKYO}.xls", f"s3://{BUCKET}/{TOKYO}.json"],
    }
    lost = handled("--account", TOKYO, "--csv", ".", "--state", "state.json")
    assert lost["files"] == []
    assert ({*Path().rglob("*")}, Path.cwd()) == (before, here)
    assert not [*temporary.iterdir()]


def test_nobody_has_to_look_when_there_is_nothing_new(
    cloud: Cloud, org_with_bucket: Organization, clock: Clock
) -> None:
    run = ["--account", TOKYO, "--state", f"s3://{BUCKET}/state.json"]
    attention = []
    for month in ("2030-08-01", "2030-09-01"):
        clock.set(month)
        attention.append(handled(*run)["needs_attention"])
    assert attention == [True, False]
    cloud.client("iam", account=TOKYO).create_user(UserName="new")
    assert handled(*run)["needs_attention"] is True


def test_an_account_that_cannot_be_opened_has_a_report_all_the_same(
    cloud: Cloud, org_with_bucket: Organization, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = handled("--account", CLOSED, "--json", f"s3://{BUCKET}/{{account}}.json")
    assert (answer["exit_code"], answer["needs_attention"]) == (3, True)
    assert answer["files"] == [f"s3://{BUCKET}/{CLOSED}.json"]
    (account,) = json.loads(objects(cloud.client("s3"))[f"{CLOSED}.json"])["accounts"]
    assert account["error"]["code"] == "AccessDenied"
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot open the account: AccessDenied: sts AssumeRole" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--frobnicate"], "bad arguments"),
        (["--help"], "bad arguments"),
        (["--json", "s3://nowhere-at-all/x.json"], "NoSuchBucket"),
        (["--account", CLOSED], "cannot open the account: AccessDenied"),
        (["--region", "mars-1"], "no such region"),
        (["--merge", f"s3://{BUCKET}/none/"], "there is no report to merge"),
    ],
    ids=" ".join,
)
def test_what_no_report_can_be_written_for_is_raised(
    cloud: Cloud, org_with_bucket: Organization, arguments: list[str], words: str
) -> None:
    here = Path.cwd()
    with pytest.raises(CannotRun, match=words):
        handled(*arguments)
    assert Path.cwd() == here


@pytest.mark.parametrize(
    "event",
    [
        {},
        None,
        [],
        {"arguments": None},
        {"arguments": "--quiet"},
        {"arguments": ["--max-key-age", 9]},
    ],
    ids=str,
)
def test_an_event_that_is_none_is_told(event: Any) -> None:
    with pytest.raises(CannotRun, match=r'^bad event: it has to be {"arguments": \[...\]}'):
        security_check.lambda_handler(event, None)


def test_a_warm_start_keeps_nothing_of_the_last_account(
    cloud: Cloud, org_with_bucket: Organization, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a process that has served others an account is what it is in a fresh one."""
    checks = [*CHECKS]
    run = ["--json", f"s3://{BUCKET}/{{account}}.json", "--output", f"s3://{BUCKET}/x.xls"]
    text = (
        "import json, sys, security_check as s; s.lambda_handler({'arguments': sys.argv[1:]}, None)"
    )
    path = os.pathsep.join(sys.path)
    fresh = [sys.executable, "-c", text, "--account", TOKYO, *run]
    subprocess.run(fresh, env={**os.environ, "PYTHONPATH": path}, check=True, capture_output=True)
    s3 = cloud.client("s3")
    first = json.loads(objects(s3)[f"{TOKYO}.json"])
    handled("--account", SOEHNE, *run, "--debug", "--state", f"s3://{BUCKET}/state.json")
    capsys.readouterr()
    cloud.layer.calls.clear()
    handled("--account", TOKYO, *run)
    assert {call.account for call in cloud.layer.calls} == {DEFAULT_ACCOUNT_ID, TOKYO}
    assert capsys.readouterr().err == ""
    assert logging.getLogger("botocore").level == logging.NOTSET  # and --debug is over
    second = json.loads(objects(s3)[f"{TOKYO}.json"])
    for document in (first, second):
        for name in ("started", "seconds"):
            del document["accounts"][0][name]
    assert second == first
    assert checks == CHECKS


# --- the stack ------------------------------------------------------------------------------

LOCKED, DEAD, THROTTLED, SUSPENDED = (f"1000000000{n:02}" for n in (7, 11, 8, 9))
MEMBERS = [
    Member(
        f"1000000000{n:02}",
        f"Account {n}",
        groups=((IRELAND, "bastion", 22),) if n % 3 == 0 else (),
        users=(("deploy", n % 2 == 0),),
        buckets=((f"covers-{n}", VIRGINIA, "public-read"),) if n % 5 == 0 else (),
        state="SUSPENDED" if f"1000000000{n:02}" == SUSPENDED else "ACTIVE",
        closed=f"1000000000{n:02}" == LOCKED,
    )
    for n in range(1, 13)
]
DIES = Fault("die", "lambda", "Invoke", resource=DEAD)


def deployable(template: str) -> str:
    """The template as moto can take it: it knows no schedules and no policies of buckets, a
    percentage has a point, and $$ is $ each time that Fn::Sub puts one of its own names in."""
    for name in ("EveryMonth", "ReportsPolicy"):
        template, found = re.subn(rf"^  {name}:\n(    .*\n)+", "", template, flags=re.MULTILINE)
        assert found == 1
    return template.replace('Percentage": 100', 'Percentage": 100.0').replace("$$", "$$" * 8)


@dataclass
class Engine:
    """The stack, deployed."""

    cloud: Cloud
    outputs: dict[str, str]
    resources: dict[str, str]  # the names of what was made, by the template's
    waited: list[float]  # seconds, before something was tried again

    def run(self, name: str = "run") -> dict[str, Any]:
        """Execute the state machine to its end; the execution."""
        states = self.cloud.client("stepfunctions")
        started = states.start_execution(stateMachineArn=self.outputs["StateMachine"], name=name)
        found: dict[str, Any] = states.describe_execution(executionArn=started["executionArn"])
        return found

    def folder(self, run: dict[str, Any]) -> str:
        return f"runs/{run['startDate'].astimezone(timezone.utc):%Y-%m-%d}-{run['name']}"

    @property
    def told(self) -> list[str]:
        """What went to the topic."""
        topic = self.cloud.backend("sns", "us-east-1").topics[self.outputs["Topic"]]
        return [f"{subject}\n{text}" for _, text, subject, *_ in topic.sent_notifications]

    @property
    def definition(self) -> Any:
        states = self.cloud.client("stepfunctions")
        made = states.describe_state_machine(stateMachineArn=self.outputs["StateMachine"])
        return json.loads(made["definition"])

    def overview(self, run: dict[str, Any]) -> bytes:
        found = self.cloud.client("s3").get_object(
            Bucket=self.outputs["Bucket"], Key=f"{self.folder(run)}/overview.xls"
        )
        return bytes(found["Body"].read())

    def allowed(self, role: str) -> set[tuple[str, str]]:
        """Actions and resources, each with each, of the role's policies."""
        iam, found = self.cloud.client("iam"), set()
        name = self.resources[role]
        for policy in iam.list_role_policies(RoleName=name)["PolicyNames"]:
            document = iam.get_role_policy(RoleName=name, PolicyName=policy)["PolicyDocument"]
            if isinstance(document, str):  # moto keeps a role's own policy as Python writes it
                document = ast.literal_eval(document)
            for statement in document["Statement"]:
                assert statement["Effect"] == "Allow"
                found |= {
                    (action, resource)
                    for action in listed(statement["Action"])
                    for resource in listed(statement["Resource"])
                }
        return found


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def may(allowed: set[tuple[str, str]], action: str, resource: str = "*") -> bool:
    return any(action == one and fnmatchcase(resource, pattern) for one, pattern in allowed)


@pytest.fixture
def deploy(cloud: Cloud) -> Iterator[Callable[..., Engine]]:
    """Makes the stack with these parameters."""
    with executing(cloud) as waited:

        def make(**parameters: str) -> Engine:
            s3, stacks = cloud.client("s3"), cloud.client("cloudformation")
            s3.create_bucket(Bucket="code")
            s3.put_object(Bucket="code", Key="security_check.zip", Body=b"PK\5\6" + bytes(18))
            given = {"CodeBucket": "code", "Concurrency": "4", **parameters}
            stacks.create_stack(
                StackName="audit",
                TemplateBody=deployable(TEMPLATE),
                Parameters=[{"ParameterKey": key, "ParameterValue": given[key]} for key in given],
                Capabilities=["CAPABILITY_IAM"],
            )
            (stack,) = stacks.describe_stacks(StackName="audit")["Stacks"]
            outputs = {one["OutputKey"]: one["OutputValue"] for one in stack["Outputs"]}
            made = stacks.describe_stack_resources(StackName="audit")["StackResources"]
            names = {  # a resource that is left out by its condition is there without a name
                one["LogicalResourceId"]: one["PhysicalResourceId"]
                for one in made
                if "LogicalResourceId" in one
            }
            cloud.layer.function = lambda event: security_check.lambda_handler(event, None)
            return Engine(cloud, outputs, names, waited)

        yield make


# --- runs ----------------------------------------------------------------------------------------


def test_the_overview_is_that_of_one_process_also_where_functions_fail(
    cloud: Cloud, deploy: Callable[..., Engine]
) -> None:
    organization = fill_organization(cloud, members=MEMBERS, management=False)
    engine = deploy()
    cloud.layer.pages = lambda found: [found[:7], found[7:]]
    throttled = Fault("TooManyRequestsException", "lambda", resource=THROTTLED, status=429, times=2)
    cloud.layer.faults = [DIES, throttled]
    run = engine.run()
    assert run["status"] == "SUCCEEDED"
    assert (throttled.hits, len(engine.waited)) == (2, 2)
    invoked = [call.text for call in cloud.layer.calls if call.name == "lambda:Invoke"]
    assert len(invoked) == 1 + 12 + 2 + 1  # list, accounts, again, overview
    assert not [text for text in invoked if SUSPENDED in text]
    lines = {line["Account"]: line for line in read_sheet(engine.overview(run), "Accounts")}
    assert len(lines) == 13
    assert lines.keys() == organization.names.keys()
    unread = {number for number, line in lines.items() if line["Status"] == "NOT CHECKED"}
    assert unread == {LOCKED, DEAD}
    assert lines[DEAD]["Result"].startswith("NoReport")
    (told,) = engine.told
    assert ", 2 NOT CHECKED\n" in told
    assert f"s3://{engine.outputs['Bucket']}/{engine.folder(run)}/overview.xls" in told

    cloud.layer.closed |= {DEAD}
    main(["--organization", "--output", "local.xls", "--state", "state.json"])
    denied = rf"AccessDenied: sts AssumeRole arn:aws:iam::{DEAD}:role/security-check \(.*\)"
    but = ("NoReport: of this run", denied)  # why one account was not checked
    assert timeless(engine.overview(run), *but) == timeless("local.xls", *but)


def test_months_without_and_with_something_to_read(
    cloud: Cloud, deploy: Callable[..., Engine], clock: Clock
) -> None:
    fill_organization(cloud, members=MEMBERS[9:12], management=False)
    engine = deploy(Accept="accept.txt")
    accept_file = {"Bucket": engine.outputs["Bucket"], "Key": "accept.txt"}
    cloud.client("s3").put_object(**accept_file, Body=b"100000000010/mfa/deploy # a robot\n")
    clock.set("2030-08-01")
    first = engine.run("the-first")
    assert first["status"] == "SUCCEEDED"
    lines = [line for line in read_sheet(engine.overview(first), "MFA") if line["User"] == "deploy"]
    assert {line["Account"]: line["Status"] for line in lines} == {
        "100000000010": "ACCEPTED",
        "100000000012": "FINDING",
    }
    assert len(engine.told) == 1
    clock.set("2030-09-01")
    assert engine.run("nothing-is-new")["status"] == "SUCCEEDED"
    assert len(engine.told) == 1
    clock.set("2030-10-01")
    cloud.layer.faults = [DIES]
    last = engine.run("one-dies")  # there are reports of it, but none of this run
    assert last["status"] == "SUCCEEDED"
    assert ", 1 NOT CHECKED\n" in engine.told[1]
    (unread,) = (
        line["Account"]
        for line in read_sheet(engine.overview(last), "Accounts")
        if line["Status"] == "NOT CHECKED"
    )
    assert unread == DEAD


class Fake:
    """A function that audits nothing and finds nothing; what it was told to do."""

    def __init__(self, engine: Engine, numbers: tuple[str, ...] = (DEFAULT_ACCOUNT_ID,)) -> None:
        self.engine, self.numbers, self.needs_attention = engine, numbers, False
        self.events: list[list[str]] = []
        engine.cloud.layer.function = self

    def __call__(self, event: dict[str, Any]) -> dict[str, Any]:
        arguments = event["arguments"]
        self.events.append(arguments)
        if "--list" in arguments:
            self.write(arguments[-1], "".join(f"{number}\n" for number in self.numbers))
        return {
            "exit_code": 0,
            "headline": "nothing found",
            "needs_attention": self.needs_attention,
            "files": [],
        }

    def write(self, name: str, text: str) -> None:
        bucket, _, key = name.removeprefix("s3://").partition("/")
        self.engine.cloud.client("s3").put_object(Bucket=bucket, Key=key, Body=text.encode())


def test_what_the_function_is_told_to_do(deploy: Callable[..., Engine]) -> None:
    engine = deploy(Accept="decisions/accept.txt", RoleName="audit")
    fake = Fake(engine, ("000000000012", "123456789012"))
    top = f"s3://{engine.outputs['Bucket']}"
    for name in ("one", "two"):
        fake.events.clear()
        run = engine.run(name)
        folder = f"{top}/{engine.folder(run)}"
        listed, *audited, merged = fake.events
        assert listed == ["--organization", "--list", f"{folder}/accounts.csv"]
        assert sorted(audited) == [
            [
                *("--account", number, "--role", "audit"),
                *("--json", f"{folder}/{number}.json", "--output", f"{folder}/{number}.xls"),
                *("--state", f"{top}/state/{number}.json"),
                *("--accept", f"{top}/decisions/accept.txt"),
            ]
            for number in fake.numbers
        ]
        assert merged == [
            *("--merge", f"{folder}/", "--organization", "--output", f"{folder}/overview.xls"),
            *("--state", f"{top}/state/{{account}}.json"),
        ]


def test_errors_of_lambda_and_of_the_topic_are_tried_again_in_every_step(
    cloud: Cloud, deploy: Callable[..., Engine]
) -> None:
    engine = deploy()
    fake = Fake(engine)
    fake.needs_attention = True
    cloud.layer.faults = [
        Fault("TooManyRequestsException", "lambda", resource="--list", status=429, times=3),
        Fault("ServiceException", "lambda", resource="--account", status=500, times=2),
        Fault("TooManyRequestsException", "lambda", resource="--merge", status=429, times=1),
        Fault("InternalError", "sns", "Publish", status=500, times=2),
    ]
    assert engine.run()["status"] == "SUCCEEDED"
    assert [one.hits for one in cloud.layer.faults] == [3, 2, 1, 2]
    assert (len(fake.events), len(engine.told)) == (3, 1)
    assert len(engine.waited) == 8
    assert all(0 <= seconds <= 300 for seconds in engine.waited)


@pytest.mark.parametrize("step", ["List", "Accounts", "Overview"])
def test_a_step_that_fails_is_told_and_the_execution_failed(
    cloud: Cloud, deploy: Callable[..., Engine], step: str
) -> None:
    engine = deploy()
    fake = Fake(engine)

    def function(event: dict[str, Any]) -> Any:
        flag = {"List": "--list", "Overview": "--merge"}.get(step)
        if flag in event["arguments"]:
            raise security_check.CannotRun('no, it\'s "impossible" {}')
        if step == "Accounts":
            return {}  # and writes no list
        return fake(event)

    cloud.layer.function = function
    run = engine.run()
    assert run["status"] == "FAILED"
    (told,) = engine.told
    assert told.startswith("AWS security check: no overview was made\n")
    assert run["executionArn"] in told
    if step == "Accounts":
        assert "NoSuchKey" in told
    else:
        assert run["error"] == "CannotRun"
        assert "impossible" in told
        assert "impossible" in run["cause"]


# --- the template --------------------------------------------------------------------------------


def test_the_function_may_what_the_readme_says_and_what_its_files_need(
    deploy: Callable[..., Engine],
) -> None:
    engine = deploy()
    reports, log = f"arn:aws:s3:::{engine.outputs['Bucket']}", engine.resources["Log"]
    policy = json.loads(readme.block("json", "cloudtrail:DescribeTrails"))["Statement"]
    ours = json.loads(readme.block("json", "sts:AssumeRole", without="Principal"))["Statement"]
    files = {
        ("s3:ListBucket", reports),
        ("s3:GetObject", f"{reports}/*"),
        ("s3:PutObject", f"{reports}/runs/*"),
        ("s3:PutObject", f"{reports}/state/*"),
    }
    logs = {
        (f"logs:{action}", f"arn:aws:logs:us-east-1:{DEFAULT_ACCOUNT_ID}:log-group:{log}")
        for action in ("CreateLogStream", "PutLogEvents")
    }
    assert engine.allowed("FunctionRole") == {
        *((action, "*") for action in policy[0]["Action"]),
        *((statement["Action"], statement["Resource"]) for statement in ours),
        *files,
        *logs,
    }


def test_the_function_asks_for_nothing_that_it_may_not(
    cloud: Cloud, deploy: Callable[..., Engine]
) -> None:
    fill_organization(cloud, members=MEMBERS[:2], management=False)
    engine = deploy()
    cloud.layer.calls.clear()
    assert engine.run()["status"] == "SUCCEEDED"
    calls, reports = [*cloud.layer.calls], engine.outputs["Bucket"]
    allowed = engine.allowed("FunctionRole")
    files = {
        "GetObject": "s3:GetObject",
        "PutObject": "s3:PutObject",
        "ListObjectsV2": "s3:ListBucket",
    }
    asked = set()
    for call in calls:
        path = call.text.partition(" ")[0].removeprefix(f"/{reports}").rstrip("/")
        if call.service == "s3" and call.operation in files and call.text.startswith(f"/{reports}"):
            asked.add((files[call.operation], f"arn:aws:s3:::{reports}{path}"))
        elif call.operation == "AssumeRole":
            (role,) = re.findall(r"RoleArn=([^&]+)", call.text)
            asked.add(("sts:AssumeRole", role))
        elif call.account == DEFAULT_ACCOUNT_ID and call.service in AUDITED:
            asked.add((IAM_ACTION_NAMES.get(call.name, call.name), "*"))
    assert {"s3:PutObject", "s3:GetObject", "ec2:DescribeRegions"} <= {name for name, _ in asked}
    assert [one for one in asked if not may(allowed, *one)] == []


def test_the_state_machine_may_what_it_does_and_nothing_else(deploy: Callable[..., Engine]) -> None:
    engine = deploy()
    Fake(engine)
    run = engine.run()
    states = engine.definition["States"]
    machine, reports = engine.outputs["StateMachine"], engine.outputs["Bucket"]
    execution = machine.replace(":stateMachine:", ":execution:")
    reader = states["Accounts"]["ItemReader"]
    assert reader["Resource"].endswith(":s3:getObject")
    does = {
        ("s3:GetObject", f"arn:aws:s3:::{reports}/{engine.folder(run)}/accounts.csv"),
        ("states:StartExecution", machine),
        ("states:DescribeExecution", f"{execution}/{states['Accounts']['Label']}:1"),
        ("states:StopExecution", f"{execution}/{states['Accounts']['Label']}:1"),
    }
    for state in [*states.values(), *states["Accounts"]["ItemProcessor"]["States"].values()]:
        if state["Type"] == "Task":
            integration, parameters = state["Resource"].split(":::")[1], state["Parameters"]
            action = {"lambda:invoke": "lambda:InvokeFunction", "sns:publish": "sns:Publish"}
            target = parameters.get("FunctionName") or parameters["TopicArn"]
            does.add((action[integration], target))
    allowed = engine.allowed("StateMachineRole")
    assert [one for one in does if not may(allowed, *one)] == []
    assert {action for action, _ in allowed} == {action for action, _ in does}
    assert not may(allowed, "s3:GetObject", f"arn:aws:s3:::{reports}/state/1.json")
    (queue,) = engine.cloud.client("sqs").list_queues()["QueueUrls"]
    asked = {"QueueUrl": queue, "AttributeNames": ["QueueArn"]}
    letters = engine.cloud.client("sqs").get_queue_attributes(**asked)["Attributes"]["QueueArn"]
    allowed = {("states:StartExecution", machine), ("sqs:SendMessage", letters)}
    assert engine.allowed("ScheduleRole") == allowed


def test_the_readme_says_what_the_template_does() -> None:
    default = dict(
        re.findall(r"^  (\w+):\n(?:    .*\n)*?    Default: (.*)$", TEMPLATE, re.MULTILINE)
    )
    assert readme.says(f"a run is kept for {default['KeepDays']} days")
    assert default["Schedule"] == "cron(15 6 1 * ? *)"  # on the first of the month
    assert readme.says(f"| 5,000 | {default['Concurrency']} |")
    assert readme.says(f"A function of {int(default['Memory']):,} MB")
    names = set(
        re.findall(r"(\w+)=\S+", readme.block("sh", "cloudformation deploy", "organization.yaml"))
    ) - {"Description"}
    assert names == {"CodeBucket", "Email"}
    assert names | {"Accept", "CodeKey", "Concurrency", "OverviewMemory"} <= {
        *default,
        "CodeBucket",
    }
    a_medium_one = 10.7 * 1769 / 1024 * 0.0000166667 + 3 * 0.000025 + 6 * 0.000005
    assert readme.says(f"= ${a_medium_one:.5f}:")
    assert readme.says(f"| ${100_000 * a_medium_one:.0f} |")


def test_the_functions_are_the_scripts(cloud: Cloud, deploy: Callable[..., Engine]) -> None:
    engine = deploy(Memory="2048", OverviewMemory="4096")
    for name, memory in (("Function", 2048), ("OverviewFunction", 4096)):
        function = engine.resources[name]
        found = cloud.client("lambda").get_function_configuration(FunctionName=function)
        handler = f"{security_check.__name__}.{security_check.lambda_handler.__name__}"
        assert (found["Handler"], found["MemorySize"]) == (handler, memory)
        assert found["Timeout"] == 900
    states = engine.definition["States"]
    steps = [states["List"], states["Accounts"]["ItemProcessor"]["States"]["Audit"]]
    names = [step["Parameters"]["FunctionName"] for step in [*steps, states["Overview"]]]
    wanted = ["Function", "Function", "OverviewFunction"]
    assert [name.rpartition(":")[2] for name in names] == [engine.resources[one] for one in wanted]


def test_the_definition_keeps_to_the_limits_of_step_functions(
    deploy: Callable[..., Engine], tmp_path: Path
) -> None:
    definition = deploy(Concurrency="250").definition
    accounts = definition["States"]["Accounts"]
    assert accounts["MaxConcurrency"] == 250  # a number
    assert len(accounts["Label"]) <= 40
    children = accounts["ItemProcessor"]
    assert children["ProcessorConfig"] == {"Mode": "DISTRIBUTED", "ExecutionType": "STANDARD"}
    # what the accounts answer together is never more than a pair of braces each
    assert all(state["OutputPath"] is None for state in children["States"].values())
    assert accounts["ResultPath"] is None
    for state in definition["States"].values():
        assert len(state.get("Parameters", {}).get("Subject", "")) < 100
    # cfn-lint reads a definition only where it is no string
    machine = {
        "Type": "AWS::StepFunctions::StateMachine",
        "Properties": {
            "RoleArn": f"arn:aws:iam::{DEFAULT_ACCOUNT_ID}:role/x",
            "Definition": definition,
        },
    }
    (tmp_path / "one.json").write_text(json.dumps({"Resources": {"Machine": machine}}))
    lint = [str(Path(sys.executable).parent / "cfn-lint"), "--", "one.json"]
    ran = subprocess.run(lint, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, "")
