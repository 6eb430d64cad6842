"""What stands in the README, found by what is in it and not by its place, so that the README can
be put in another order, or in part go to one beside the tests."""

from __future__ import annotations

import re
from pathlib import Path

TOP = Path(__file__).parent.parent
README = (TOP / "README.md").read_text()
PAGES = [README, *(path.read_text() for path in sorted(TOP.glob("tests/**/README.md")))]


def blocks(language: str) -> list[str]:
    """All code of a language, as it would be pasted."""
    code = rf"^```{language}\n(.*?)^```"
    return [text for page in PAGES for text in re.findall(code, page, re.MULTILINE | re.DOTALL)]


def block(language: str, *words: str, without: str = "\0") -> str:
    """The only code of a language that has these words."""
    found = [
        text
        for text in blocks(language)
        if all(word in text for word in words) and without not in text
    ]
    assert len(found) == 1, f"{len(found)} blocks of {language} have {words}"
    return found[0]


def cron_command(*words: str, without: str = "\0") -> str:
    """What cron is to run, of the only crontab that has these words."""
    text = block("crontab", *words, without=without)
    (command,) = re.findall(r"^(?:[\d*]+ ){5}(.*)$", text, re.MULTILINE)
    return str(command)


def table(*header: str) -> list[list[str]]:
    """The rows of the only table whose header begins so, without marks of code."""
    start = " | ".join(map(re.escape, header))
    rows = rf"^\| {start} \|.*\n\|[-|: ]+\|\n((?:\|.*\n)+)"
    (text,) = (found for page in PAGES for found in re.findall(rows, page, re.MULTILINE))
    return [
        [cell.strip(" `") for cell in line.strip("|").split(" | ")] for line in text.splitlines()
    ]


def says(words: str) -> bool:
    """Whether the words stand in the text, wherever its lines end."""
    return any(words in " ".join(page.split()) for page in PAGES)


def links() -> list[tuple[bool, str]]:
    """Where the README leads to on this machine, and whether it shows that as a picture."""
    found = re.findall(r"(!?)\[[^\]]*\]\(([^)]*)\)", README)
    return [(mark == "!", target) for mark, target in found if "://" not in target]
