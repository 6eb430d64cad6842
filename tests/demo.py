"""Try the script without an AWS account: `python tests/demo.py --help`.

An account is made up on 127.0.0.1, the real script audits it as it would audit yours, and
the workbook is left in the current folder.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from datetime import date, timedelta
from pathlib import Path

# Before moto, which reads the configuration of the real account when it is imported.
for name in list(os.environ):
    if name.startswith("AWS_") or name.lower().endswith("_proxy"):
        del os.environ[name]

from cloud import Cloud, running
from example import fill, fill_organization

SCRIPT = Path(__file__).resolve().parent.parent / "security_check.py"


def audit(cloud: Cloud, *options: str) -> int:
    command = [sys.executable, str(SCRIPT), *options]
    return subprocess.run(command, env=os.environ | cloud.environment, check=False).returncode


def a_month_passes(cloud: Cloud, state: Path) -> None:
    """Some findings are resolved and some are new; what is remembered is a month older."""
    ec2 = cloud.client("ec2", "eu-west-1")
    named = [{"Name": "group-name", "Values": ["bastion"]}]
    (bastion,) = ec2.describe_security_groups(Filters=named)["SecurityGroups"]
    ec2.revoke_security_group_ingress(
        GroupId=bastion["GroupId"], IpPermissions=bastion["IpPermissions"]
    )
    cloud.client("iam").create_user(UserName="new.colleague")
    a_month_ago = str(date.today() - timedelta(days=30))
    state.write_text(re.sub(r"\d{4}-\d\d-\d\d", a_month_ago, state.read_text()))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="demo.py",
        description="Try security_check.py on an account that is made up on 127.0.0.1.",
        epilog="Every other option is handed on to the script: see `security_check.py --help`.",
    )
    parser.add_argument("--organization", action="store_true",
        help="make up an organization of twelve accounts, and audit it")  # fmt: skip
    parser.add_argument("--months", type=int, choices=(1, 2), default=1,
        help="2: audit a second time, as if a month had passed")  # fmt: skip
    ours, others = parser.parse_known_args()
    options = [*(["--organization"] if ours.organization else []), *others]
    about = "This is a made-up account on 127.0.0.1: no real one is asked or changed."
    print(about, file=sys.stderr, flush=True)
    with running() as cloud, tempfile.TemporaryDirectory() as folder:
        (fill_organization if ours.organization else fill)(cloud)
        try:
            if ours.months == 1:
                return audit(cloud, *options)
            state = Path(folder) / "state.json"
            audit(cloud, *options, "--state", str(state), "--output", f"{folder}/first.xls")
            a_month_passes(cloud, state)
            return audit(cloud, *options, "--state", str(state))
        except KeyboardInterrupt:  # the script, which got it too, has said so
            return 130


if __name__ == "__main__":
    raise SystemExit(main())
