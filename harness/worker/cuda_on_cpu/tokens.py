"""Splits CUDA source into tokens, which the rewriter changes.

A regular expression over text would find ``<<<`` in a comment or a string. A search over tokens
does not. The joined tokens are the source, byte for byte, so that line numbers stay.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TOKEN = re.compile(
    r"""
    (?P<comment>//(?:[^\n\\]|\\.|\\\n)*|/\*.*?\*/)
  | (?P<raw>(?:u8|[uUL])?R"(?P<delimiter>[^()\\\s]{0,16})\(.*?\)(?P=delimiter)")
  | (?P<string>(?:u8|[uUL])?"(?:[^"\\\n]|\\.)*")
  | (?P<char>(?<![0-9A-Za-z_])(?:u8|[uUL])?'(?:[^'\\\n]|\\.)+')
  | (?P<number>\.?[0-9](?:[eEpP][+-]|'(?=[0-9A-Za-z])|[0-9A-Za-z_.])*)
  | (?P<name>[A-Za-z_]\w*)
  | (?P<space>(?:[ \t\r\f\v]|\\\r?\n|\n)+)
  | (?P<punctuation><<<|>>>|::|->\*?|<<=|>>=|<<|>>|<=|>=|==|!=|&&|\|\||\+\+|--
      |[-+*/%&|^]=|\.\.\.|\#\#|.)
    """,
    re.VERBOSE | re.DOTALL,
)

OPENING = {"(", "[", "{"}
CLOSING = {")", "]", "}"}


@dataclass(slots=True)
class Token:
    """One piece of source.

    Attributes:
        kind: comment, raw, string, char, number, name, space or punctuation.
        text: its characters; the rewriter may change them.
        line: 1-based line it starts on.
    """

    kind: str
    text: str
    line: int

    @property
    def blank(self) -> bool:
        """Return whether the compiler ignores it."""
        return self.kind in ("space", "comment")


def tokenize(source: str) -> list[Token]:
    """Return the tokens of C++ source; their texts joined are the source."""
    tokens: list[Token] = []
    line = 1
    for match in _TOKEN.finditer(source):
        text = match.group()
        tokens.append(Token(match.lastgroup or "punctuation", text, line))
        if tokens[-1].kind == "delimiter":
            tokens[-1].kind = "raw"
        line += text.count("\n")
    return tokens


def text_of(tokens: list[Token]) -> str:
    """Return the joined texts of tokens."""
    return "".join(t.text for t in tokens)


def next_solid(tokens: list[Token], index: int) -> int:
    """Return the index of the first token from ``index`` on that is not blank, or the length."""
    while index < len(tokens) and tokens[index].blank:
        index += 1
    return index


def previous_solid(tokens: list[Token], index: int) -> int:
    """Return the index of the last token up to ``index`` that is not blank, or -1."""
    while index >= 0 and tokens[index].blank:
        index -= 1
    return index


def blank(tokens: list[Token]) -> None:
    """Remove the text of tokens."""
    for token in tokens:
        token.text, token.kind = "", "space"


def matching(tokens: list[Token], index: int) -> int:
    """Return the index of the bracket that closes the one at ``index``, or -1."""
    return _balanced(tokens, range(index, len(tokens)))


def matching_back(tokens: list[Token], index: int) -> int:
    """Return the index of the bracket that opens the one at ``index``, or -1."""
    return _balanced(tokens, range(index, -1, -1))


def _balanced(tokens: list[Token], indices: range) -> int:
    """Return the first index at which all brackets since the first one are balanced, or -1."""
    inwards, outwards = (OPENING, CLOSING) if indices.step > 0 else (CLOSING, OPENING)
    depth = 0
    for i in indices:
        if tokens[i].kind != "punctuation":
            continue
        if tokens[i].text in inwards:
            depth += 1
        elif tokens[i].text in outwards:
            depth -= 1
            if depth == 0:
                return i
    return -1


def angle_back(tokens: list[Token], index: int) -> int:
    """Return the index of the ``<`` of the template arguments closed at ``index``, or -1."""
    depth = 0
    i = index
    while i >= 0:
        token = tokens[i]
        if token.kind == "punctuation":
            if token.text in (">", ">>", ">>>"):
                depth += len(token.text)
            elif token.text in ("<", "<<"):
                depth -= len(token.text)
                if depth <= 0:
                    return i
            elif token.text in CLOSING:
                i = matching_back(tokens, i)
                if i < 0:
                    return -1
            elif token.text in (";", "{", "}"):
                return -1
        i -= 1
    return -1


def postfix_start(tokens: list[Token], index: int) -> int:
    """Return where the postfix expression that ends at ``index`` starts.

    Covers names, ``ns::name``, template arguments, calls, subscripts, members and parentheses.
    """
    start = -1
    i = previous_solid(tokens, index)
    expect_operand = True
    while i >= 0:
        token = tokens[i]
        if expect_operand:
            if token.kind in ("name", "number", "string"):
                start = i
                expect_operand = False
            elif token.kind == "punctuation" and token.text in (")", "]"):
                i = matching_back(tokens, i)
                if i < 0:
                    return start
                start = i
                before = previous_solid(tokens, i - 1)
                callable_before = before >= 0 and (
                    (tokens[before].kind == "name" and tokens[before].text not in _NOT_CALLED)
                    or tokens[before].text in (")", "]", ">", ">>")
                )
                if not callable_before:
                    expect_operand = False
            elif token.kind == "punctuation" and token.text in (">", ">>", ">>>"):
                opening = angle_back(tokens, i)
                if opening < 0:
                    return start
                i = opening
                start = i
            else:
                return start
        elif token.kind == "punctuation" and token.text in ("::", ".", "->"):
            start = i
            expect_operand = True
            before = previous_solid(tokens, i - 1)
            if token.text == "::" and (
                before < 0
                or not (tokens[before].kind == "name" or tokens[before].text in (">", ">>"))
                or tokens[before].text in _NOT_CALLED
            ):
                return i
        elif token.kind == "name" and token.text == "template":
            start = i
        else:
            return start
        i = previous_solid(tokens, i - 1)
    return start


_NOT_CALLED = {
    "return", "if", "while", "for", "switch", "case", "else", "do", "throw", "not", "and", "or",
}  # fmt: skip


def split_arguments(tokens: list[Token]) -> list[list[Token]]:
    """Split tokens at the commas outside all brackets and template arguments.

    ``a<b, c>(d)`` is one argument: an angle bracket counts if a matching one follows, and the text
    between them looks like template arguments.
    """
    parts: list[list[Token]] = [[]]
    i = 0
    while i < len(tokens):
        token = tokens[i]
        if token.kind == "punctuation" and token.text in OPENING:
            end = matching(tokens, i)
            end = len(tokens) - 1 if end < 0 else end
            parts[-1].extend(tokens[i : end + 1])
            i = end + 1
            continue
        if token.kind == "punctuation" and token.text == "<":
            end = angle_forward(tokens, i)
            if end >= 0:
                parts[-1].extend(tokens[i : end + 1])
                i = end + 1
                continue
        if token.kind == "punctuation" and token.text == ",":
            parts.append([])
        else:
            parts[-1].append(token)
        i += 1
    return parts


def angle_forward(tokens: list[Token], index: int) -> int:
    """Return the index that closes the template arguments opened at ``index``, or -1 if none."""
    before = previous_solid(tokens, index - 1)
    if before < 0 or tokens[before].kind != "name":
        return -1
    depth = 0
    i = index
    while i < len(tokens):
        token = tokens[i]
        if token.kind == "punctuation":
            if token.text == "<":
                depth += 1
            elif token.text in (">", ">>", ">>>"):
                depth -= len(token.text)
                if depth <= 0:
                    return i
            elif token.text in ("(", "["):
                i = matching(tokens, i)
                if i < 0:
                    return -1
            elif token.text in (";", "{", "}", "&&", "||", "==", "="):
                return -1
        i += 1
    return -1
