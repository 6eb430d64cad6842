"""Who denied a call, where AWS says so: one more Allow helps only against a missing one."""

from __future__ import annotations

import pytest
from botocore.exceptions import ClientError

from security_check import Call, describe_failure

USER = "User: arn:aws:iam::123456789012:user/auditor is not authorized to perform: iam:ListUsers "
# The sentences of AWS, as users quote them.
DENIED = {
    f"{USER}because no identity-based policy allows the iam:ListUsers action": "",
    f"{USER}because no resource-based policy allows the iam:ListUsers action": "",
    "You are not authorized to perform this operation.": "",
    "Access Denied": "",
    f"{USER}with an explicit deny in a service control policy": "service control policy",
    f"{USER}with an explicit deny in a service control policy: arn:aws:organizations::1:policy/p": (
        "service control policy"
    ),
    f"{USER}because no service control policy allows the iam:ListUsers action": (
        "service control policy"
    ),
    f"{USER}with an explicit deny in a resource control policy": "resource control policy",
    f"{USER}with an explicit deny in an identity-based policy": "identity-based policy",
    f"{USER}with an explicit deny in a permissions boundary": "permissions boundary",
    f"{USER}because no permissions boundary allows the iam:ListUsers action": (
        "permissions boundary"
    ),
    f"{USER}with an explicit deny in a VPC endpoint policy": "VPC endpoint policy",
}


@pytest.mark.parametrize(("message", "policy"), DENIED.items(), ids=range(len(DENIED)))
def test_a_permission_is_advised_only_where_it_would_help(message: str, policy: str) -> None:
    response = {"Error": {"Code": "AccessDenied", "Message": message}}
    call = Call("iam", "ListUsers", "us-east-1")
    error = describe_failure(ClientError(response, "ListUsers"), call)  # type: ignore[arg-type]
    assert error.detail == (f"(denied by: {policy})" if policy else "")
    assert error.missing_permission == ("" if policy else "iam:ListUsers")
