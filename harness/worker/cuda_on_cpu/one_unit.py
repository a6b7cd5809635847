"""Says when declarations and bindings can follow the CUDA source in its own unit.

load_inline's C++ and CUDA sources are two units. A second unit costs as much as the first, since
the compiler instantiates torch's templates in each. Plain declarations mean the same in one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from harness.worker.cuda_on_cpu.tokens import Token, next_solid, previous_solid, tokenize

# Types that torch and the standard library declare: a name of the CUDA source's own is not
# visible to the C++ source on the real tool chain.
_KNOWN = re.compile(
    r"torch|at|c10|std|py|Tensor(?:List)?|IntArrayRef|ArrayRef|Scalar(?:Type)?|optional|vector|tuple"
    r"|pair|string|void|bool|char|short|int|long|unsigned|signed|float|double|const|size_t"
    r"|u?int(?:8|16|32|64)_t|object"
)
_ALIAS = re.compile(r"\busing\s+(\w+)\s*=\s*([^;={}]*);")
_TORCH_INCLUDE = re.compile(r"^[ \t]*#[ \t]*include[ \t]*<(?:torch|ATen|c10)/[^>]*>", re.MULTILINE)


def one_unit_will_do(cpp: Sequence[str], cuda: Sequence[str], flags: Sequence[str]) -> bool:
    """Return whether C++ sources hold only declarations that mean the same after the CUDA sources.

    Args:
        cpp: the C++ sources.
        cuda: the CUDA sources.
        flags: the C++ unit's own, split into words.
    """
    if any(f.startswith(("-D", "-U", "-I", "-i")) for f in flags):
        return False
    declared: list[str] = []
    for source in cpp:
        source = _TORCH_INCLUDE.sub("", source)
        aliases = {name for name, _ in _ALIAS.findall(source)}
        tokens = tokenize(_ALIAS.sub(r"\2;", source))
        for i, token in enumerate(tokens):
            if token.blank or (token.kind == "punctuation" and token.text in "();,:::&*<>>"):
                continue
            if token.kind != "name":
                return False
            after = next_solid(tokens, i + 1)
            if after < len(tokens) and tokens[after].text == "(":
                declared.append(token.text)
            elif (
                token.text not in aliases
                and not _KNOWN.fullmatch(token.text)
                and not _is_parameter(tokens, i, after)
            ):
                return False
    # A function that the CUDA source keeps for itself is missing on the real tool chain.
    own = "|".join(map(re.escape, declared))
    kept = re.compile(
        rf"\b(?:static|inline|constexpr|template)\b[^;{{}}()#]*\b(?:{own})\b"
        rf"|#[ \t]*define[ \t]+(?:{own})\b"
    )
    return bool(declared) and not any(kept.search(source) for source in cuda)


def _is_parameter(tokens: list[Token], index: int, after: int) -> bool:
    before = previous_solid(tokens, index - 1)
    return (
        after < len(tokens)
        and tokens[after].text in (",", ")")
        and before >= 0
        and (tokens[before].text in ("&", "*", ">", ">>") or tokens[before].kind == "name")
        and tokens[before].text != "const"
    )
