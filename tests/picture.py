"""Make the README's pictures: `python tests/picture.py`. Needs LibreOffice and pdftoppm."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PAGES = {"summary": 1, "security_groups": 3}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        demo = [sys.executable, str(TESTS / "demo.py"), "--months", "2", "--output", "demo.xls"]
        subprocess.run(demo, cwd=folder, check=False)
        convert = ["soffice", "--headless", "--convert-to", "pdf", "demo.xls"]
        subprocess.run(convert, cwd=folder, check=True)
        for name, page in PAGES.items():
            one = ["-f", str(page), "-l", str(page), "-singlefile", "-r", "110", "-png"]
            target = str(TESTS / name)
            subprocess.run(["pdftoppm", *one, "demo.pdf", target], cwd=folder, check=True)


if __name__ == "__main__":
    main()
