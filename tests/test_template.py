"""The templates, as they are written: silence means that all is well."""

from __future__ import annotations

import functools
import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import security_check

DEPLOY = Path(__file__).parent / "deploy"


@functools.cache
def template(name: str) -> Any:
    """A template as CloudFormation reads it. Its reader takes long to import, so only who needs
    it does."""
    from cfnlint.decode import cfn_yaml  # type: ignore[import-untyped]

    return cfn_yaml.load(str(DEPLOY / name))


def resources() -> Any:
    return template("organization.yaml")["Resources"]


def properties(name: str) -> Any:
    return resources()[name]["Properties"]


def alarms() -> list[Any]:
    """The alarms that tell the topic about one thing that is worth it."""
    found = (one for one in resources().values() if one["Type"] == "AWS::CloudWatch::Alarm")
    told = [one["Properties"] for one in found if one["Properties"]["AlarmActions"] == [topic()]]
    for alarm in told:
        assert (alarm["Threshold"], alarm["EvaluationPeriods"]) == (0, 1)
        assert alarm["ComparisonOperator"] == "GreaterThanThreshold"
        assert alarm["TreatMissingData"] == "notBreaching"
    return told


def topic() -> Any:
    """The topic to which the subscription belongs."""
    reference = properties("Subscription")["TopicArn"]
    assert resources()[reference["Ref"]]["Type"] == "AWS::SNS::Topic"
    return reference


def definition() -> Any:
    text, inner = properties("StateMachine")["DefinitionString"]["Fn::Sub"]
    text = re.sub(r"\$\{Retry\w*\}", "[]", text)
    assert {"Given", "Retry", "RetryTell"} == {*inner}
    return json.loads(re.sub(r"\$\{\w+\}", "1", text.replace('"1"', "")))


@pytest.mark.parametrize("metric", ["ExecutionsFailed", "ExecutionsTimedOut", "ExecutionsAborted"])
def test_an_execution_that_does_not_succeed_is_told(metric: str) -> None:
    (alarm,) = (one for one in alarms() if one["MetricName"] == metric)
    assert (alarm["Namespace"], alarm["Statistic"]) == ("AWS/States", "Sum")
    assert alarm["Dimensions"] == [{"Name": "StateMachineArn", "Value": {"Ref": "StateMachine"}}]


def test_a_run_that_does_not_start_is_told() -> None:
    queue = properties("EveryMonth")["Target"]["DeadLetterConfig"]["Arn"]
    (statements,) = (
        policy["PolicyDocument"]["Statement"] for policy in properties("ScheduleRole")["Policies"]
    )
    assert queue in [one["Resource"] for one in statements if one["Action"] == "sqs:SendMessage"]
    name = {"Fn::GetAtt": [queue["Fn::GetAtt"][0], "QueueName"]}
    assert [(one["Namespace"], one["MetricName"]) for one in alarms()
        if one["Dimensions"] == [{"Name": "QueueName", "Value": name}]] == [
        ("AWS/SQS", "ApproximateNumberOfMessagesVisible")
    ]  # fmt: skip


def test_an_alarm_may_use_the_topic_and_its_key() -> None:
    key = properties(topic()["Ref"])["KmsMasterKeyId"]["Ref"]
    statements = properties(key)["KeyPolicy"]["Statement"]
    statements += properties("TopicPolicy")["PolicyDocument"]["Statement"]
    alarm = [
        one for one in statements if one["Principal"] == {"Service": "cloudwatch.amazonaws.com"}
    ]
    assert [one["Action"] for one in alarm] == [
        ["kms:Decrypt", "kms:GenerateDataKey*"],
        "sns:Publish",
    ]
    account = {"StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}}
    assert [one["Condition"] for one in alarm] == [account] * 2
    assert properties("TopicPolicy")["Topics"] == [topic()]


def test_the_readme_says_how_to_know_that_mail_arrives() -> None:
    text = " ".join((DEPLOY / "README.md").read_text("utf-8").split())
    assert "only once the subscription is confirmed" in text
    output = template("organization.yaml")["Outputs"]["TryAlarm"]
    assert "`TryAlarm`" in text
    assert "set-alarm-state --alarm-name ${RunFailed}" in output["Value"]["Fn::Sub"]


def test_an_execution_ends_while_its_reports_are_of_one_run() -> None:
    machine = definition()
    assert timedelta(seconds=machine["TimeoutSeconds"]) <= security_check.MAX_RUN_DURATION


def test_the_choice_reads_what_the_function_returns() -> None:
    states = definition()["States"]
    read = states["Overview"]["ResultSelector"]
    assert {path.removeprefix("$.Payload.") for path in read.values()} <= {
        *security_check.Outcome._fields
    }
    (choice,) = states["Attention"]["Choices"]
    assert choice["Variable"] == "$.result.needs_attention"
    assert (choice["BooleanEquals"], choice["Next"]) == (False, "Done")
    assert states["Attention"]["Default"] == "Tell"


def test_an_external_id_is_asked_for_only_if_there_is_one() -> None:
    (statement,) = template("role.yaml")["Resources"]["Role"]["Properties"][
        "AssumeRolePolicyDocument"
    ]["Statement"]
    wanted = statement["Condition"]["StringEquals"]["sts:ExternalId"]["Fn::If"]
    assert wanted == ["HasExternalId", {"Ref": "ExternalId"}, {"Ref": "AWS::NoValue"}]
    assert template("role.yaml")["Parameters"]["ExternalId"]["Default"] == ""
    assert statement["Action"] == ["sts:AssumeRole", "sts:SetSourceIdentity"]


@pytest.mark.parametrize("value", ["", "x1", "a+b=c,d.e@f:g/h-i"])
def test_external_ids_that_both_templates_take(value: str) -> None:
    pattern = template("role.yaml")["Parameters"]["ExternalId"]["AllowedPattern"]
    assert re.fullmatch(pattern, value)
    parameters = template("organization.yaml")["Parameters"]
    assert re.fullmatch(parameters["ExternalId"]["AllowedPattern"], value)
