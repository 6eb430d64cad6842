"""Seven rooms with doors: the order of security_check.py, its map, and how its words begin.

The map in the script's docstring says what each section offers to the others. Each rule
below is a function from source text to sentences, one a problem; the script is read, not
imported. As a program, this file prints all problems of a script:

    python tests/test_structure.py [FILE]
"""

from __future__ import annotations

import ast
import doctest
import functools
import io
import re
import sys
import tokenize
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "security_check.py"

MAP_ENTRY = re.compile(r" {4}([a-z0-9:-]+(?: [a-z0-9:-]+)?) {2,}(\S.*)")
BANNER = re.compile(r"# === ([a-z0-9: -]+?) =+")
DOCSTRINGS_BEGIN_NOT = {"Which", "It", "One", "Who", "Else", "What", "Whose", "That"}
COMMENTS_BEGIN_NOT = {"which", "it", "one", "who", "else", "whose", "that"}

Rule = Callable[[str], list[str]]  # from a source to problems

NO_ROOM = -1  # of what stands above the first banner

Function = (ast.FunctionDef, ast.AsyncFunctionDef)
Documented = (*Function, ast.ClassDef)
Import = (ast.Import, ast.ImportFrom)


# --- a source, read once for all rules ---------------------------------------------------


class Bound(NamedTuple):
    """A name that is bound: by a definition, an assignment, an import, as an argument."""

    name: str
    line: int
    room: int
    scope: str  # "module", "class" or "local"
    owner: str  # the class around it, if the scope is "class"
    node: ast.AST
    typing: bool  # under `if TYPE_CHECKING:`


class Use(NamedTuple):
    """A name that is read, or an attribute that is read or set."""

    name: str
    line: int
    room: int
    classes: tuple[str, ...]  # around it, the outermost first
    silent: bool  # in an annotation, or under `if TYPE_CHECKING:`
    of: str = ""  # the plain name before an attribute's dot


class Reader(ast.NodeVisitor):
    """Walks a module once, and notes what is bound and what is used, and where."""

    def __init__(self) -> None:
        self.bound: list[Bound] = []
        self.names: list[Use] = []
        self.attributes: list[Use] = []
        self.room = NO_ROOM
        self.scope = "module"
        self.classes: tuple[str, ...] = ()
        self.me = ""  # a method's first argument
        self.fields: set[str] = set()  # bound so far in this class body
        self.shared: set[str] = set()  # declared `global` in this function
        self.silent = self.typing = False

    @contextmanager
    def inside(self, **state: Any) -> Iterator[None]:
        """Change the state for a while."""
        before = {name: getattr(self, name) for name in state}
        vars(self).update(state)
        yield
        vars(self).update(before)

    def bind(self, name: str, line: int, node: ast.AST) -> None:
        """Note a name that is bound here."""
        if name in self.shared:
            return
        owner = self.classes[-1] if self.scope == "class" else ""
        self.bound.append(Bound(name, line, self.room, self.scope, owner, node, self.typing))
        if self.scope == "class":
            self.fields.add(name)

    def use(self, name: str, line: int) -> None:
        """Note a name that is read here."""
        self.names.append(Use(name, line, self.room, self.classes, self.silent))

    def visit_all(self, *nodes: ast.AST | None) -> None:
        """Visit each node that is there."""
        for node in nodes:
            if node:
                self.visit(node)

    def visit_annotation(self, node: ast.AST | None) -> None:
        """Visit what is not evaluated when the script runs."""
        with self.inside(silent=True):
            self.visit_all(node)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            self.bind(node.id, node.lineno, node)
        elif self.scope != "class" or node.id not in self.fields:
            self.use(node.id, node.lineno)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        of = node.value.id if isinstance(node.value, ast.Name) else ""
        use = Use(node.attr, node.lineno, self.room, self.classes, self.silent, of)
        self.attributes.append(use)
        if isinstance(node.ctx, ast.Store) and of and of == self.me:
            with self.inside(scope="class", fields=set(), shared=set()):
                self.bind(node.attr, node.lineno, node)
        self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit_all(node.value, *node.targets)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.visit_annotation(node.annotation)
        self.visit_all(node.value, node.target)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.bind(node.name, node.lineno, node)
        self.visit_all(*node.decorator_list)
        self.visit_annotation(node.returns)
        self.visit_call(node.args, *node.body)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self.visit_FunctionDef(node)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.visit_call(node.args, node.body)

    def visit_call(self, signature: ast.arguments, *body: ast.AST) -> None:
        """Visit defaults and annotations here, arguments and body in a scope of their own."""
        plain = [*signature.posonlyargs, *signature.args]
        stars = [argument for argument in (signature.vararg, signature.kwarg) if argument]
        arguments = [*plain, *signature.kwonlyargs, *stars]
        self.visit_all(*signature.defaults, *signature.kw_defaults)
        for argument in arguments:
            self.visit_annotation(argument.annotation)
        me = plain[0].arg if plain and self.scope == "class" else self.me
        with self.inside(scope="local", shared=set(), me=me):
            for argument in arguments:
                self.bind(argument.arg, argument.lineno, argument)
            self.visit_all(*body)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.bind(node.name, node.lineno, node)
        self.visit_all(*node.decorator_list, *node.bases, *node.keywords)
        classes = (*self.classes, node.name)
        with self.inside(scope="class", classes=classes, fields=set(), shared=set(), me=""):
            self.visit_all(*node.body)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        with self.inside(scope="local", shared=set()):
            self.visit(node.target)
        self.visit_all(node.iter, *node.ifs)

    def visit_If(self, node: ast.If) -> None:
        typing = ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}
        self.visit(node.test)
        with self.inside(silent=self.silent or typing, typing=self.typing or typing):
            self.visit_all(*node.body)
        self.visit_all(*node.orelse)

    def visit_Global(self, node: ast.Global) -> None:
        self.shared.update(node.names)
        for name in node.names:
            self.use(name, node.lineno)

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            return
        for alias in node.names:
            self.bind(alias.asname or alias.name.partition(".")[0], node.lineno, node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self.visit_Import(node)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.name:
            self.bind(node.name, node.lineno, node)
        self.generic_visit(node)

    def visit_MatchAs(self, node: ast.MatchAs | ast.MatchStar) -> None:
        if node.name:
            self.bind(node.name, node.lineno, node)
        self.generic_visit(node)

    def visit_MatchStar(self, node: ast.MatchStar) -> None:
        self.visit_MatchAs(node)

    def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
        if node.rest:
            self.bind(node.rest, node.lineno, node)
        self.generic_visit(node)


class Comment(NamedTuple):
    """A comment: where it stands, its text, and the code before it."""

    line: int
    text: str
    code: str  # blanks, if the line has none; nothing, if the comment is at its beginning


class Source(NamedTuple):
    """All that the rules ask of a script."""

    tree: ast.Module
    comments: list[Comment]
    map: list[tuple[str, list[str]]]  # sections, and what they offer
    banners: list[tuple[int, str]]  # lines, and what is written there; rooms are numbered so
    bound: list[Bound]
    names: list[Use]
    attributes: list[Use]

    def title(self, room: int) -> str:
        """How a room is called in a sentence."""
        return "the top" if room == NO_ROOM else f'"{self.banners[room][1]}"'

    def offers(self, room: int) -> list[str]:
        """What the map offers for a room."""
        name = "" if room == NO_ROOM else self.banners[room][1]
        return dict(self.map).get(name, [])

    def doors(self) -> list[tuple[int, str]]:
        """Each offered name, with its room: none if the section has no banner."""
        names = [name for _, name in self.banners]
        return [
            (names.index(section) if section in names else NO_ROOM, door)
            for section, offers in self.map
            for door in offers
        ]

    def definitions(self, name: str, room: int) -> list[Bound]:
        """Where a room defines a name at top level."""
        return [one for one in self.tops() if (one.name, one.room) == (name, room)]

    def tops(self) -> list[Bound]:
        """What the rooms define at top level; imports belong to all."""
        return [
            one
            for one in self.bound
            if one.scope == "module" and one.room != NO_ROOM and not isinstance(one.node, Import)
        ]

    def members(self, owner: str) -> list[Bound]:
        """What a class has, and what it inherits from classes of the file."""
        bases = [
            base.id
            for one in self.bound
            if one.name == owner and isinstance(one.node, ast.ClassDef)
            for base in one.node.bases
            if isinstance(base, ast.Name) and base.id != owner
        ]
        own = [one for one in self.bound if one.scope == "class" and one.owner == owner]
        return own + [member for base in bases for member in self.members(base)]

    def owners(self) -> dict[str, set[str]]:
        """The classes that have a member of a name; dunder names are everyone's."""
        owners = defaultdict(set)
        for one in self.bound:
            if one.scope == "class" and not is_dunder(one.name):
                owners[one.name].add(one.owner)
        return owners


@functools.cache
def read(text: str) -> Source:
    """Read a script: its tree, its comments, its map and its banners."""
    tree = ast.parse(text)
    comments = list(comments_of(text))
    banners = [
        (comment.line, match[1])
        for comment in comments
        if not comment.code and (match := BANNER.fullmatch(comment.text))
    ]
    reader = Reader()
    for statement in tree.body:
        above = [line for line, _ in banners if line < statement.lineno]
        room = len(banners if is_main(statement) else above) - 1
        with reader.inside(room=room):
            reader.visit(statement)
    sections = list(map_of(ast.get_docstring(tree, clean=False) or ""))
    return Source(tree, comments, sections, banners, reader.bound, reader.names, reader.attributes)


def is_main(statement: ast.stmt) -> bool:
    """Whether a statement is `if __name__ == "__main__":`, of the last section."""
    return isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test)


def comments_of(text: str) -> Iterator[Comment]:
    """All comments, also those behind code."""
    lines = text.split("\n")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            line, column = token.start
            yield Comment(line, token.string, lines[line - 1][:column])


def map_of(docstring: str) -> Iterator[tuple[str, list[str]]]:
    """The map's sections, and the names that each offers."""
    name, words = "", ""
    for line in [*docstring.splitlines(), ""]:
        if name and line.startswith(" " * 5):
            words += " " + line.strip()
            continue
        if name:
            names = words.partition("offers:")[2].split(",")
            yield name, [door.strip() for door in names if door.strip()]
        match = MAP_ENTRY.fullmatch(line)
        name, words = (match[1], match[2]) if match else ("", "")


# --- the rules -------------------------------------------------------------------------


def banners_are_the_map(text: str) -> list[str]:
    """The banners are the map's sections in its order, and all code stands below one."""
    source = read(text)
    listed = [name for name, _ in source.map]
    found = [name for _, name in source.banners]
    problems = [f'the map has "{name}" twice' for name, n in Counter(listed).items() if n > 1]
    problems += [f'"{name}" has two banners' for name, n in Counter(found).items() if n > 1]
    problems += [f'"{name}" has no banner' for name in listed if name not in found]
    problems += [f'"{name}" is not in the map' for name in found if name not in listed]
    if not problems and listed != found:
        problems = [f"the map's order is {', '.join(listed)}; the banners' {', '.join(found)}"]
    if not listed:
        problems.append("the docstring has no map")
    return problems + bad_banners(source) + homeless(source)


def bad_banners(source: Source) -> list[str]:
    """Comments that look like banners of sections, and are none."""
    return [
        f"line {comment.line}: a banner has the form `# === name ===`, at the line's beginning"
        for comment in source.comments
        if comment.text.startswith("# === ")
        and (comment.code or not BANNER.fullmatch(comment.text))
    ]


def homeless(source: Source) -> list[str]:
    """Definitions above the first banner; imports and names like __version__ may stand there."""
    return [
        f"line {one.line}: `{one.name}` is defined above the first banner"
        for one in source.bound
        if one.scope == "module" and one.room == NO_ROOM and source.banners
        if not isinstance(one.node, Import) and not is_dunder(one.name)
    ]


def is_dunder(name: str) -> bool:
    """Whether a name is one like `__version__`."""
    return name.startswith("__") and name.endswith("__")


def other_rooms_are_entered_by_their_doors(text: str) -> list[str]:
    """A name of another section is of one above, and the map offers it."""
    source = read(text)
    homes = defaultdict(set)
    for one in source.tops():
        homes[one.name].add(one.room)
    problems = []
    for use in source.names:
        rooms = homes.get(use.name, set())
        if use.silent or not rooms or use.room in rooms:
            continue
        home, here = source.title(min(rooms)), source.title(use.room)
        if min(rooms) > use.room:
            problems.append(
                f"line {use.line}: {here} uses `{use.name}` of {home}, which stands below it"
            )
        if not any(use.name in source.offers(room) for room in rooms):
            problems.append(
                f"line {use.line}: {here} uses `{use.name}`, which {home} does not offer"
            )
    return list(dict.fromkeys(problems))


def doors_are_there_and_used(text: str) -> list[str]:
    """What is offered is defined there, and used elsewhere; the last section's is for the world."""
    source = read(text)
    problems = []
    for section, offers in source.map:
        rooms = [room for room, (_, name) in enumerate(source.banners) if name == section]
        for door in offers:
            if "." in door:
                continue
            if not any(source.definitions(door, room) for room in rooms):
                problems.append(f'"{section}" offers `{door}`, but does not define it')
            elif section != source.map[-1][0] and not any(
                use.name == door and use.room not in rooms for use in source.names
            ):
                problems.append(f'"{section}" offers `{door}`, but no other section uses it')
    return problems


def classes_are_entered_by_their_doors(text: str) -> list[str]:
    """A class with dotted doors is used by them alone, and `_methods` only where they are."""
    source = read(text)
    problems = missing_members(source) + back_doors(source) + private_uses(source)
    return list(dict.fromkeys(problems))


def missing_members(source: Source) -> list[str]:
    """Dotted doors that lead nowhere."""
    problems = []
    for room, door in source.doors():
        owner, dot, name = door.partition(".")
        classes = [
            one for one in source.definitions(owner, room) if isinstance(one.node, ast.ClassDef)
        ]
        if dot and not classes:
            problems.append(f"`{door}` is offered, but `{owner}` is no class of that section")
        elif dot and name not in {member.name for member in source.members(owner)}:
            problems.append(f"`{door}` is offered, but `{owner}` has no `{name}`")
    return problems


def back_doors(source: Source) -> list[str]:
    """Members used outside of their section that are no doors; of classes that have doors.

    An attribute of an imported module or class, as in `time.sleep`, is no member of ours.
    """
    imported = {one.name for one in source.bound if isinstance(one.node, Import)}
    entered = [(door.partition(".")[0], room) for room, door in source.doors() if "." in door]
    rooms = {owner: room for owner, room in entered if source.definitions(owner, room)}
    offered = {door for _, door in source.doors()}
    owners = source.owners()
    left_out = private_methods(source)
    problems = []
    for use in source.attributes:
        if use.silent or use.of in imported or use.name in left_out:
            continue
        if len(owners.get(use.name, ())) != 1:
            continue
        (owner,) = owners[use.name]
        if f"{owner}.{use.name}" not in offered and rooms.get(owner, use.room) != use.room:
            problems.append(
                f"line {use.line}: {source.title(use.room)} uses `.{use.name}`, "
                f"which `{owner}` does not offer"
            )
    return problems


def private_methods(source: Source) -> set[str]:
    """The methods of all classes that are named like `_ask`."""
    return {
        one.name
        for one in source.bound
        if one.scope == "class" and isinstance(one.node, Function)
        if one.name.startswith("_") and not one.name.startswith("__")
    }


def private_uses(source: Source) -> list[str]:
    """Private methods that are used outside of their class."""
    private, owners = private_methods(source), source.owners()
    return [
        f"line {use.line}: `.{use.name}` is used outside of its class"
        for use in source.attributes
        if use.name in private and not owners[use.name] & {*use.classes}
    ]


def nothing_hides_a_top_level_name(text: str) -> list[str]:
    """No local name is a top-level one; a module only typed at the top may be imported late."""
    source = read(text)
    tops = [one for one in source.bound if one.scope == "module"]
    names = {one.name for one in tops}
    live = {one.name for one in tops if not (one.typing and isinstance(one.node, Import))}
    return [
        f"line {one.line}: the local name `{one.name}` hides a top-level one"
        for one in source.bound
        if one.scope == "local" and one.name != "_" and not is_dunder(one.name)
        if one.name in (live if isinstance(one.node, Import) else names)
    ]


def doors_have_docstrings(text: str) -> list[str]:
    """Offered functions, classes and methods say what they are for; constants need not."""
    source = read(text)
    problems = []
    for room, door in source.doors():
        owner, dot, name = door.partition(".")
        found = source.members(owner) if dot else source.definitions(owner, room)
        nodes = [
            one.node
            for one in found
            if one.name == (name or owner) and isinstance(one.node, Documented)
        ]
        if nodes and not any(ast.get_docstring(node) for node in nodes):
            problems.append(f"`{door}` is offered, and has no docstring")
    return problems


def docstrings_begin_with_a_sentence(text: str) -> list[str]:
    """The first line of a docstring is a whole sentence, or just an example."""
    problems = []
    for node in ast.walk(read(text).tree):
        if isinstance(node, (ast.Module, *Documented)):
            docstring = ast.get_docstring(node)
            if docstring is not None:
                first = docstring.partition("\n")[0].strip()
                line = node.body[0].lineno
                problems += [f"line {line}: {flaw}" for flaw in flaws(first)]
    return problems


def flaws(first: str) -> list[str]:
    """What is wrong with a docstring's first line."""
    if "`" in first and not re.search(r"\w", re.sub(r"`[^`]*`|\b(and|or)\b", "", first)):
        return []
    found = []
    if not (first[:1].isupper() or first[:1].isdigit() or first.startswith("`")):
        found.append(f'"{first}" begins with no capital letter, digit or backtick')
    if not first.endswith((".", "?", "!", ":")):
        found.append(f'"{first}" breaks off: it ends without ".", "?", "!" or ":"')
    if first_word(first) in DOCSTRINGS_BEGIN_NOT:
        found.append(f'"{first}" begins with the subject of a clause: "{first_word(first)}"')
    return found


def first_word(text: str) -> str:
    """The word that a text begins with: `It` of "It's", `One-way` of "One-way"."""
    match = re.match(r"\w+(?:-\w+)*", text)
    return match[0] if match else ""


def trailing_comments_are_no_clauses(text: str) -> list[str]:
    """A comment behind code does not begin as half a sentence does."""
    return [
        f'line {comment.line}: the comment begins with "{word}"'
        for comment in read(text).comments
        if comment.code.strip()
        if (word := first_word(comment.text.lstrip("# ")).lower()) in COMMENTS_BEGIN_NOT
    ]


RULES: dict[str, Rule] = {
    rule.__name__: rule
    for rule in (
        banners_are_the_map,
        other_rooms_are_entered_by_their_doors,
        doors_are_there_and_used,
        classes_are_entered_by_their_doors,
        nothing_hides_a_top_level_name,
        doors_have_docstrings,
        docstrings_begin_with_a_sentence,
        trailing_comments_are_no_clauses,
    )
}


# --- a small script that keeps the rules -------------------------------------------------

GOOD = '''#!/usr/bin/env python3
"""Count what lies on a shelf, and say so.

The file reads from top to bottom:

    model         what everything is made of: Thing -> Number
                  offers: Thing, LIMIT, Number,
                  once
    shelf         the only code that looks; it
                  looks twice
                  offers: Shelf, Shelf.count, Shelf.label, Shelf.board
    command line  arguments
                  offers: main, handler

Use it so:

    python shelf.py
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import boto3

    from boards import Board

__version__ = "1.0"

# === model ============================================================================

LIMIT = 3  # things that fit
Number = int | None
SEEN = [letter for letter in "abc"]


class Thing(NamedTuple):
    """A thing on a shelf."""

    name: str
    number: Number = None
    text: str = ""

    def heavy(self) -> bool:
        return bool(self.number)


def once(function):
    """Make a function that runs once."""
    return functools.cache(function)


# --- kinds ----------------------------------------------------------------------------


def early(late: Shelf) -> Shelf | None:
    found: Shelf | None = late
    return found


# === shelf ============================================================================


class Basket:
    """`Basket`, `Basket and more`"""

    @property
    def label(self) -> str:
        """2 words at most!"""
        return self.text.strip()

    def _open(self) -> None:
        self._open()


class Shelf(Basket):
    """A shelf, and its things:"""

    early: int = 0
    most = LIMIT
    twice = [early for _ in range(2)]

    def __init__(self, board: Board) -> None:
        import boto3

        self.board, self.text, self.sleep = board, "", boto3.client(board)

    @once
    def count(self) -> Number:
        """How many are there?"""
        return self._find(self)

    def _find(self, other: Shelf, bound=LIMIT) -> int:
        key = lambda word: word  # noqa: E731 that it is
        return other._find(key)  # the other one looks


# === command line =====================================================================


if TYPE_CHECKING:
    Basket
else:
    COUNT = 0


def everything(first, /, second=1, *rest, third=2, **more):
    for fourth in [fifth for fifth in rest]:
        with fourth as sixth:
            seventh = sixth
    try:
        if eighth := more:
            import ninth
    except OSError as tenth:
        pass
    match seventh:
        case {"a": _, **eleventh}:
            pass
        case [*twelfth] as thirteenth:
            pass

    def fourteenth():
        global COUNT
        COUNT = 1

    return lambda fifteenth: 0


def main(words: list[str]) -> int:
    """Count once.

    which is all
    """
    # which is a comment of a line of its own
    shelf = Shelf(Thing(words[0]))
    print(shelf.count(), shelf.board, shelf.text, sys.sleep)
    return 0


handler = main

if __name__ == "__main__":
    sys.exit(main(sys.argv))
'''

ORDER = """'Say nothing.

    a  this
    b  that
'
# === b ===
# === a ===
""".replace("'", '"' * 3)

SMALL = "begins with no capital letter, digit or backtick"
BREAKS = 'breaks off: it ends without ".", "?", "!" or ":"'
FORM = "line @: a banner has the form `# === name ===`, at the line's beginning"
BELOW = 'line @: "model" uses `Shelf` of "shelf", which stands below it'
BASKET = 'line @: "command line" uses `Basket`, which "shelf" does not offer'
PRIVATE = "line @: `._find` is used outside of its class"

# For each rule: a piece of the script above, what stands there instead, and the problems that
# this makes; "line @" is the line on which the change begins.
BROKEN: dict[Rule, Sequence[tuple[str, ...]]] = {
    banners_are_the_map: [
        ("# === shelf =", "# --- shelf -", '"shelf" has no banner'),
        ("# === shelf =", "# === attic ==\n# === shelf =", '"attic" is not in the map'),
        ("# === shelf =", "# === shelf ==\n# === shelf =", '"shelf" has two banners'),
        ("    shelf      ", "    model  x\n    shelf      ", 'the map has "model" twice'),
        ("    shelf      ", "    attic  x\n    shelf      ", '"attic" has no banner'),
        (GOOD, ORDER, "the map's order is a, b; the banners' b, a"),
        (GOOD, '"""Say."""\nx = 0\n', "the docstring has no map"),
        (GOOD, "", "the docstring has no map"),
        ("# --- kinds -", "# === Kinds -", FORM),
        ("    # which is", "    # === kinds ===\n    # which is", FORM),
        ('__version__ = "1.0"', "MOST = 3", "line @: `MOST` is defined above the first banner"),
        ('__version__ = "1.0"', "def f(x): 0", "line @: `f` is defined above the first banner"),
    ],
    other_rooms_are_entered_by_their_doors: [
        ("return found", "return Shelf(found)", BELOW),
        ("return found", "return Shelf or Shelf.count", BELOW),
        ("return found", "return [lambda: {Shelf for _ in found}]", BELOW),
        ("return found", 'return f"{Shelf}"', BELOW),
        ("return found", "global Shelf", BELOW),
        ("SEEN = [", "SEEN = Shelf.count or [", BELOW),
        ("number: Number = None", "number: Number = Shelf", BELOW),
        ("class Thing(NamedTuple)", "class Thing(Shelf)", BELOW),
        ("def once(function)", "def once(function=Shelf)", BELOW),
        ("def once(function)", "def once(*, function=Shelf)", BELOW),
        ("def once(function)", "@Shelf.count\ndef once(function)", BELOW),
        ("class Thing(", "@Shelf.count\nclass Thing(", BELOW),
        (
            "return found",
            "return COUNT",
            BELOW.replace("Shelf", "COUNT").replace('"shelf"', '"command line"'),
            'line @: "model" uses `COUNT`, which "command line" does not offer',
        ),
        (
            '__version__ = "1.0"',
            "x = LIMIT",
            'line @: the top uses `LIMIT` of "model", which stands below it',
        ),
        ("    return 0", "    return Basket()", BASKET),
        ("    COUNT = 0", "    COUNT = Basket", BASKET),
        ("fifth in rest]", "fifth in Basket]", BASKET),
        ("fifth in rest]", "fifth in rest if Basket]", BASKET),
        ("except OSError as", "except Basket as", BASKET),
        ("pass\n    match", "Basket\n    match", BASKET),
        ("lambda fifteenth: 0", "lambda fifteenth=Basket: 0", BASKET),
        ("lambda fifteenth: 0", "lambda fifteenth: Basket", BASKET),
        ("    sys.exit(main", "    sys.exit(Basket", BASKET),
        ("case [*twelfth] as", "case Basket() as", BASKET),
        ("handler = main", "class Handler(Basket): pass", BASKET),
        ("handler = main", "class Handler(metaclass=Basket): pass", BASKET),
        ("handler = main", "class Handler: once: int = Basket", BASKET),
        ("handler = main", "class Handler: Basket = Basket", BASKET),
        ("handler = main", "class Handler: Basket: int = Basket", BASKET),
        ("handler = main", "async def handler(word: Board = Basket): pass", BASKET),
        ("handler = main", "handler: Board = Basket", BASKET),
        ("handler = main", "if not TYPE_CHECKING: handler = Basket", BASKET),
        ("handler = main", "handler = 0 if TYPE_CHECKING else Basket", BASKET),
    ],
    doors_are_there_and_used: [
        ("Number,\n", "Number, Box,\n", '"model" offers `Box`, but does not define it'),
        ("Number,\n", "Number, Shelf,\n", '"model" offers `Shelf`, but does not define it'),
        ("Number,\n", "Number, name,\n", '"model" offers `name`, but does not define it'),
        ("Number,\n", "Number, sys,\n", '"model" offers `sys`, but does not define it'),
        ("Number,\n", "Number, early,\n", '"model" offers `early`, but no other section uses it'),
        ("    @once\n", "", '"model" offers `once`, but no other section uses it'),
        ("main, handler", "main, run", '"command line" offers `run`, but does not define it'),
        (
            "    shelf      ",
            "    attic  offers: Box\n    shelf      ",
            '"attic" offers `Box`, but does not define it',
        ),
    ],
    classes_are_entered_by_their_doors: [
        (
            "Number,\n",
            "Number, once.x,\n",
            "`once.x` is offered, but `once` is no class of that section",
        ),
        (
            "Shelf.board",
            "Shelf.board, Box.x",
            "`Box.x` is offered, but `Box` is no class of that section",
        ),
        (
            "Shelf.board",
            "Shelf.board, Thing.name",
            "`Thing.name` is offered, but `Thing` is no class of that section",
        ),
        (
            "Shelf.board",
            "Shelf.board, Shelf.wide",
            "`Shelf.wide` is offered, but `Shelf` has no `wide`",
        ),
        (
            "Shelf.board",
            "Shelf.board, Shelf.key",
            "`Shelf.key` is offered, but `Shelf` has no `key`",
        ),
        (
            "    return 0",
            "    return shelf.twice",
            'line @: "command line" uses `.twice`, which `Shelf` does not offer',
        ),
        (
            "    return 0",
            "    shelf.sleep = 0",
            'line @: "command line" uses `.sleep`, which `Shelf` does not offer',
        ),
        (
            "return found",
            "return found.sleep",
            'line @: "model" uses `.sleep`, which `Shelf` does not offer',
        ),
        (
            "handler = main",
            "handler = Shelf.early",
            'line @: "command line" uses `.early`, which `Shelf` does not offer',
        ),
        ("return self.text.strip()", "return self._find(self)", PRIVATE),
        ("return found", "return lambda: found._find", PRIVATE),
        ("    return 0", "    return shelf._find(0)", PRIVATE),
        ("return self._find(self)", "return self._open()", PRIVATE.replace("find", "open")),
    ],
    nothing_hides_a_top_level_name: [
        (old, new, f"line @: the local name `{name}` hides a top-level one")
        for old, new, name in [
            ("first, /", "Thing, /", "Thing"),
            ("second=1", "once=1", "once"),
            ("*rest, third", "*early, third", "early"),
            ("third=2", "SEEN=2", "SEEN"),
            ("**more", "**main", "main"),
            ("for fourth in", "for sys in", "sys"),
            ("for fifth in", "for functools in", "functools"),
            ("as sixth", "as Basket", "Basket"),
            ("seventh = sixth", "handler = sixth", "handler"),
            ("seventh = sixth", "_, (x, *NamedTuple) = sixth", "NamedTuple"),
            ("seventh = sixth", "Number += sixth", "Number"),
            ("eighth := more", "Shelf := more", "Shelf"),
            ("eighth := more", "[Shelf := 1 for _ in more]", "Shelf"),
            ("import ninth", "import sys", "sys"),
            ("import ninth", "import sys.path", "sys"),
            ("import ninth", "import ninth as once", "once"),
            ("import ninth", "from ninth import Thing", "Thing"),
            ("as tenth", "as LIMIT", "LIMIT"),
            ("**eleventh", "**LIMIT", "LIMIT"),
            ('"a": _', '"a": LIMIT', "LIMIT"),
            ("[*twelfth]", "[*LIMIT]", "LIMIT"),
            ("as thirteenth", "as LIMIT", "LIMIT"),
            ("def fourteenth()", "def main()", "main"),
            ("def fourteenth()", "async def main()", "main"),
            ("def fourteenth():", "class main:", "main"),
            ("lambda fifteenth:", "lambda LIMIT:", "LIMIT"),
            ("def main(words:", "def main(boto3:", "boto3"),
            ("def main(words:", "def main(Board:", "Board"),
            ("found: Shelf | None = late", "once: Shelf", "once"),
            ("def heavy(self)", "def heavy(self, once)", "once"),
            ("for letter in", "for once in", "once"),
        ]
    ],
    doors_have_docstrings: [
        (f'"""{old}"""', "0", f"`{door}` is offered, and has no docstring")
        for old, door in [
            ("A thing on a shelf.", "Thing"),
            ("Make a function that runs once.", "once"),
            ("A shelf, and its things:", "Shelf"),
            ("How many are there?", "Shelf.count"),
            ("2 words at most!", "Shelf.label"),
        ]
    ]
    + [("handler = main", "async def handler(): 0", "`handler` is offered, and has no docstring")],
    docstrings_begin_with_a_sentence: [
        ("How many are there?", "how many?", f'line @: "how many?" {SMALL}'),
        ("How many are there?", "(How many?):", f'line @: "(How many?):" {SMALL}'),
        ("How many are there?", "How many", f'line @: "How many" {BREAKS}'),
        ("How many are there?", "How many\n        there are.", f'line @: "How many" {BREAKS}'),
        ("How many are there?", "\n        How, many,\n", f'line @: "How, many," {BREAKS}'),
        ("How many are there?", "`How` many", f'line @: "`How` many" {BREAKS}'),
        ("How many are there?", "and.", f'line @: "and." {SMALL}'),
        (
            "How many are there?",
            "how many",
            f'line @: "how many" {SMALL}',
            f'line @: "how many" {BREAKS}',
        ),
        ("How many are there?", "", f'line @: "" {SMALL}', f'line @: "" {BREAKS}'),
        ("Count what lies on a shelf, and say so.", "Count", f'line @: "Count" {BREAKS}'),
        ("A thing on a shelf.", "A thing", f'line @: "A thing" {BREAKS}'),
        ("2 words at most!", "2 words", f'line @: "2 words" {BREAKS}'),
        ("Make a function that runs once.", "Make", f'line @: "Make" {BREAKS}'),
        (
            "global COUNT\n        COUNT = 1",
            '"""One."""',
            'line @: "One." begins with the subject of a clause: "One"',
        ),
        ("handler = main", 'async def f(): "F"', f'line @: "F" {BREAKS}'),
    ]
    + [
        (
            "How many are there?",
            f"{word} there is.",
            f'line @: "{word} there is." begins with the subject of a clause: "{word}"',
        )
        for word in ("Which", "It", "One", "Who", "Else", "What", "Whose", "That")
    ],
    trailing_comments_are_no_clauses: [
        ("# things that fit", comment, f'line @: the comment begins with "{word}"')
        for comment, word in [
            ("# which fit", "which"),
            ("#It fits", "it"),
            ("# One: or so", "one"),
            ("# who fits", "who"),
            ("#  else 3", "else"),
            ("# whose size", "whose"),
            ("# THAT FIT", "that"),
            ("# that's it", "that"),
        ]
    ],
}

# Changes that break no rule.
FINE = [
    (GOOD, GOOD),
    # The map
    ("    shelf      ", "\n    Other things.\n\n    shelf      "),
    ("Shelf.board", "Shelf.board,\n                  Shelf.sleep,"),
    ("it\n                  looks twice", "it"),
    # A door that only annotations use
    ("def count(self) -> Number", "def count(self, at: Number)"),
    (GOOD, GOOD.replace("-> Number:", "-> int:").replace("    return 0", "    at: Number")),
    # What is everyone's
    (GOOD, GOOD.replace("SEEN =", "import json\nSEEN =").replace("return 0", "return json")),
    ("    return 0", "    return __version__"),
    # What is not evaluated, and what belongs to the last section
    ("number: Number = None", "number: Shelf = None"),
    ("def once(function)", "def once(function: Shelf, *a: Shelf, b: Shelf = 0) -> Shelf"),
    ("handler = main", "handler: Basket = main"),
    ("handler = main", "handler = main\nif TYPE_CHECKING:\n    Basket(0).sleep"),
    ("handler = main", "handler = main\nif typing.TYPE_CHECKING:\n    Basket"),
    ("SEEN = [", 'if __name__ == "__main__":\n    COUNT, Shelf\n\nSEEN = ['),
    ("return found", "return early(found)"),
    # Members of other classes, and of none
    ("    return 0", "    return shelf.number, shelf.other, shelf.__init__"),
    ("return other._find(key)", "return lambda: other.x._find(key)"),
    ("return other._find(key)", "class Inner:\n            x = other._find(0)"),
    ("    return 0", "    shelf.board.sleep_well = 0"),
    ("class Basket:", "class Basket(sys.Bag[int]):"),
    (
        GOOD,
        GOOD.replace("self.sleep =", "self._sleep =").replace("self.text.strip()", "self._sleep"),
    ),
    # What hides nothing
    ("import ninth", "from boards import Board"),
    ("return found", "_, __version__, annotations = found"),
    ("handler = main", "handler = main\n_ = 0"),
    ("early: int = 0", "SEEN: int = 0\n    early = SEEN\n    def main(self): 0"),
    # Words
    ('"""2 words at most!"""', '"""\n        2 words at most!\n\n        which is so\n        """'),
    ("    @property", '    @property\n    def text(self):\n        "That"[0]\n\n    @property'),
    *(
        ("How many are there?", first)
        for first in ("`a`", "`a` and `b`", "`a`, `a and b`.", "One-way.", "Items:\n", "Ähm.")
    ),
    *(
        ("# things that fit", comment)
        for comment in ("# noqa: it", "# type: that", "# ones that fit", "# one-off", "#", "# ")
    ),
    ('"abc"', '"abc  # which"'),
    ("    return 0", "    return that"),
]


def test_a_small_script_keeps_all_rules() -> None:
    assert {name: rule(GOOD) for name, rule in RULES.items()} == {name: [] for name in RULES}


@pytest.mark.parametrize(
    ("rule", "old", "new", "problems"),
    [
        pytest.param(rule, old, new, problems, id=f"{rule.__name__}-{number}")
        for rule, changes in BROKEN.items()
        for number, (old, new, *problems) in enumerate(changes)
    ],
)
def test_a_rule_that_is_broken_is_named(
    rule: Rule, old: str, new: str, problems: list[str]
) -> None:
    assert GOOD.count(old) == 1
    above = GOOD[: GOOD.index(old)]
    line = above.count("\n") + 1
    assert rule(GOOD.replace(old, new)) == [
        problem.replace("@", str(line), 1) for problem in problems
    ]


@pytest.mark.parametrize(("old", "new"), FINE)
def test_what_breaks_no_rule_is_no_problem(old: str, new: str) -> None:
    assert GOOD.count(old) == 1
    text = GOOD.replace(old, new)
    assert [problem for rule in RULES.values() for problem in rule(text)] == []


def test_each_rule_is_broken_above() -> None:
    assert [*BROKEN] == [*RULES.values()]


def test_as_a_program_it_prints_all_problems(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "shelf.py"
    path.write_text(GOOD, encoding="utf-8")
    assert print_problems(path) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "0 problems"
    path.write_text(
        GOOD.replace("# things that", "# that").replace("2 words", "words"), encoding="utf-8"
    )
    assert print_problems(path) == 2
    out = capsys.readouterr().out
    assert "docstrings begin with a sentence: 1\n    line" in out
    assert out.endswith('the comment begins with "that"\n2 problems\n')


# --- the script --------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_the_script_keeps_the_rule(rule: str) -> None:
    problems = RULES[rule](SCRIPT.read_text(encoding="utf-8"))
    assert not problems, "\n".join([f"{len(problems)} problems", *problems])


def test_the_index_of_the_map_names_what_is_there() -> None:
    """The lines under `Where to look`: each name stands in the section in front of it."""
    text = SCRIPT.read_text(encoding="utf-8")
    _, _, index = text.partition("Where to look:")
    index, _, _ = index.partition("A seventh check")
    rooms = re.split(r"^# === (.+?) =+$", text, flags=re.MULTILINE)
    inside = dict(zip(rooms[1::2], rooms[2::2], strict=True))
    entries = re.findall(r"^    \S.*?  +(.+(?:\n {6,}.+)*)", index, re.MULTILINE)
    assert len(entries) >= 30
    for part in (part for entry in entries for part in " ".join(entry.split()).split("; ")):
        room, _, names = part.partition(": ")
        for name in names.split(", "):
            *_, last = name.split(".")
            there = rf"(def|class) {last}\b|^{last}\b"
            assert re.search(there, inside[room], re.MULTILINE), (room, name)


def test_the_examples_in_docstrings_are_true() -> None:
    import security_check

    result = doctest.testmod(security_check)
    assert result.attempted > 0
    assert result.failed == 0


def print_problems(path: Path) -> int:
    """Print all problems of a script, below the rules that they break; return their number."""
    text = path.read_text(encoding="utf-8")
    total = 0
    for name, rule in RULES.items():
        problems = rule(text)
        total += len(problems)
        print(f"{name.replace('_', ' ')}: {len(problems) or 'kept'}")
        for problem in problems:
            print(f"    {problem}")
    print(f"{total} problems")
    return total


if __name__ == "__main__":
    sys.exit(bool(print_problems(Path(sys.argv[1]) if sys.argv[1:] else SCRIPT)))
