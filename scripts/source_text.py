"""Reads sources as text: comments, sentences, and the outline of C++ without a compiler."""

import dataclasses
import re
from collections.abc import Iterator

TOKEN = re.compile(r'''(?P<number>\b[0-9](?:'?[\w.])*)
                     | (?P<raw>R"(?P<mark>[^(\s]*)\(.*?\)(?P=mark)")
                     | (?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])+')
                     | (?P<comment>//[^\n]*|/\*.*?\*/)''', re.VERBOSE | re.DOTALL)


def blank(text: str) -> str:
    return re.sub(r"[^\n]", " ", text)


def code_only(text: str) -> str:
    """The text with comments, literals and preprocessor lines blanked; lines keep their place."""
    text = TOKEN.sub(lambda token: token[0] if token["number"] else blank(token[0]), text)
    return re.sub(r"^[ \t]*#(?:\\\n|[^\n])*", lambda line: blank(line[0]), text, flags=re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Line:
    number: int
    text: str  # what follows the comment mark
    column: int = 0
    trailing: bool = False  # code precedes it


def cpp_comments(text: str) -> Iterator[Line]:
    for token in TOKEN.finditer(text):
        if token["comment"] is None:
            continue
        begin = text.rfind("\n", 0, token.start()) + 1
        first = text.count("\n", 0, token.start()) + 1
        trailing = text[begin:token.start()].strip() != ""
        for number, line in enumerate(token[0].splitlines(), first):
            yield Line(number, re.sub(r"^\s*(?:///?|/?\*+/?)", "", line).removesuffix("*/"),
                       token.start() - begin, trailing)


def hash_comments(text: str) -> Iterator[Line]:
    for number, line in enumerate(text.splitlines(), 1):
        if comment := re.search(r"(?:^|\s)#(?!!)(?:\s|$)(.*)", line):
            yield Line(number, comment[1])


def comment_paragraphs(lines: Iterator[Line]) -> Iterator[tuple[int, str]]:
    """(line, text). Tables and diagrams are left out, as .clang-format leaves them alone."""
    at, text, before, in_item = 0, "", None, False
    for line in lines:
        words = line.text.strip()
        item = re.match(r"(?:[-*]|\d+\.) ", words) is not None
        drawn = re.search(r"\S {3,}\S", line.text) or re.match(r" {3,}", line.text) and not in_item
        follows = (before is not None and line.number == before.number + 1 and
                   line.column == before.column and not line.trailing)
        if not follows or item or not words or drawn:
            if text:
                yield at, text
            at, text, in_item = line.number, "", item
        if words and not drawn:
            text = f"{text} {words}" if text else re.sub(r"^(?:[-*]|\d+\.) ", "", words)
        before = line
    if text:
        yield at, text


def markdown_lines(text: str) -> Iterator[Line]:
    """The lines outside of fenced and indented blocks; those inside are empty."""
    fence = in_item = False
    for number, line in enumerate(text.splitlines(), 1):
        mark = line.strip().startswith("```")
        fence ^= mark
        in_item = bool(re.match(r"\s*(?:[-*]|\d+\.) ", line)) or in_item and line[:1] in (" ", "")
        indented = line.startswith("    ") and not in_item
        yield Line(number, "" if fence or mark or indented else re.sub(r"`[^`]*`", "`x`", line))


def markdown_paragraphs(text: str) -> Iterator[tuple[int, str]]:
    at, paragraph = 0, ""
    for line in markdown_lines(text):
        words = line.text.strip()
        item = re.match(r"(?:[-*]|\d+\.) ", words)
        if not words or item or words.startswith(("|", "#", "<!--")):
            if paragraph:
                yield at, paragraph
            paragraph, at = "", line.number
            words = words[item.end():] if item else ""
        paragraph = f"{paragraph} {words}".strip()
    if paragraph:
        yield at, paragraph


def sentences(path: str, text: str) -> Iterator[tuple[int, str]]:
    """(line, sentence) of Markdown, or of the comments of C++."""
    paragraphs = (markdown_paragraphs(text) if path.endswith(".md")
                  else comment_paragraphs(cpp_comments(text)))
    for line, paragraph in paragraphs:
        for sentence in re.split(r"(?<=[.?!])\*{0,2}\s+(?=[A-Z0-9`\"(\[*])", paragraph):
            yield line, sentence.lstrip("*")


TYPE = re.compile(r"\b(?:class|struct|union|enum(?:\s+(?:class|struct))?)\s+"
                  r"(?:\[\[[^]]*\]\]\s*|[A-Z]\w*_[A-Z_]+(?:\([^)]*\))?\s+|alignas\([^)]*\)\s*)*"
                  r"(?:\w+::)*(\w+)\s*(?:final\s*)?(?::[^;{}()]*)?\{")


def types(text: str) -> Iterator[tuple[int, str]]:
    """(line, simple name) of every class, struct, union and enumeration that is defined."""
    code = code_only(text)
    for match in TYPE.finditer(code):
        yield code.count("\n", 0, match.start()) + 1, match[1]


BODY_FOLLOWS = re.compile(r"(?:\s|const\b|noexcept\b|override\b|final\b|mutable\b|try\b|&)*"
                          r"(?:(?:->|requires\b)[^;]*)?$")
SCOPE = re.compile(r"(?:template\s*<[^{}]*>\s*)?(?:typedef\s+|inline\s+|static\s+|const\s+)*"
                   r"(?:(?:class|struct|union|enum|namespace)\b|extern\s*$)")


def closing_brace(code: str, opening: int) -> int:
    depth = 0
    for brace in re.compile(r"[{}]").finditer(code, opening):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.start()
    return len(code) - 1


def functions(text: str) -> Iterator[tuple[int, int]]:
    """(first line of the signature, line of the closing brace) of every function."""
    code = code_only(text)
    mark, begin, at = re.compile(r"[{};]"), 0, 0  # what is being read began at `begin`
    while found := mark.search(code, at):
        at = found.end()
        head = re.sub(r"^(\s|(public|private|protected)\s*:)*", "", code[begin:found.start()])
        if found[0] == ";" and head.count("(") > head.count(")"):
            continue
        if found[0] == "{" and "(" in head and not SCOPE.match(head):
            end = closing_brace(code, found.start())
            at = end + 1
            tail = head[head.rfind(")") + 1:].rstrip()
            if not BODY_FOLLOWS.match(tail) and not tail.endswith("}"):
                continue  # the braces of an initialiser, within the signature
            first = code.count("\n", 0, found.start() - len(head)) + 1
            yield first, code.count("\n", 0, end) + 1
        begin = at
