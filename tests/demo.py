"""Try the script without an AWS account: `python tests/demo.py [options of the script]`.

An account is made up on 127.0.0.1, the real script audits it as it would audit yours, and
the workbook is left in the current folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# Before moto, which reads the configuration of the real account when it is imported.
for name in list(os.environ):
    if name.startswith("AWS_") or name.lower().endswith("_proxy"):
        del os.environ[name]

from cloud import running
from example import fill

SCRIPT = Path(__file__).resolve().parent.parent / "security_check.py"


def main() -> int:
    about = "This is a made-up account on 127.0.0.1: no real one is asked or changed."
    print(about, file=sys.stderr, flush=True)
    with running() as cloud:
        fill(cloud)
        audit = [sys.executable, str(SCRIPT), *sys.argv[1:]]
        try:
            return subprocess.run(audit, env=os.environ | cloud.environment, check=False).returncode
        except KeyboardInterrupt:  # the script, which got it too, has said so
            return 130


if __name__ == "__main__":
    raise SystemExit(main())
