"""Rewrites CUDA source so that a host compiler accepts it.

It rewrites only what a header cannot express: launches, shared memory, runtime calls that take a
kernel, and questions such as "is this tensor on the GPU?". Everything else (``__global__``,
``threadIdx``, atomics, shuffles, the runtime API) is ordinary C++ in ``runtime/include``. Line
breaks stay where they are, so that a compiler error names the source's own line.
"""

from __future__ import annotations

import re

from harness.worker.cuda_on_cpu.tokens import (
    Token,
    angle_back,
    blank,
    matching,
    next_solid,
    postfix_start,
    previous_solid,
    split_arguments,
    text_of,
    tokenize,
)

_ALIGN = {"alignas", "__align__"}
_STORAGE = {"extern", "static", "__shared__"}


def rewrite_cuda(source: str) -> str:
    """Return host C++ for CUDA source (kernels and their host code)."""
    tokens = tokenize(source)
    _shared_memory(tokens)
    _device_questions(tokens)
    _kernel_calls(tokens)
    _launches(tokens)
    _memory_functions(tokens)
    return text_of(tokens)


def rewrite_host(source: str) -> str:
    """Return C++ source without kernels in which our calls answer questions for CUDA tensors."""
    tokens = tokenize(source)
    _device_questions(tokens)
    return text_of(tokens)


def has_definitions(source: str) -> bool:
    """Return whether C++ source holds more than declarations and preprocessor lines."""
    return any(t.kind == "punctuation" and t.text == "{" for t in tokenize(source))


# ------------------------------------------------------------------------------- launches


def _launches(tokens: list[Token]) -> None:
    i = 0
    while i < len(tokens):
        if tokens[i].kind == "punctuation" and tokens[i].text == "<<<":
            _launch(tokens, i)
        i += 1


def _launch(tokens: list[Token], opening: int) -> None:
    closing = _closing_chevrons(tokens, opening)
    if closing < 0:
        return
    left = next_solid(tokens, closing + 1)
    right = matching(tokens, left)
    start = _kernel_start(tokens, opening)
    if right < 0 or start < 0:
        return
    kernel = text_of(tokens[start:opening]).strip()
    inside = tokens[left + 1 : right]
    for part in split_arguments(inside):
        solid = [t for t in part if not t.blank]
        if len(solid) == 1 and solid[0].text == "NULL":
            solid[0].text = "nullptr"
    name = " ".join(_without_comments(tokens[start:opening]).split())
    call = _without_comments(tokens[start:opening])
    breaks = "\n" * kernel.count("\n")
    tokens[start].text = f"::emu::launch(::emu::config({_quoted(name)}, __FILE__, __LINE__, "
    blank(tokens[start + 1 : opening + 1])
    tokens[closing].text = f"), [&](auto... emu_p) {{ {' '.join(call.split())}(emu_p...); }}"
    for t in tokens[closing + 1 : left]:
        t.text = "\n" * t.text.count("\n") if t.kind == "comment" else t.text
    tokens[left].text = ", " if any(not t.blank for t in inside) else " "
    tokens[right].text = ")" + breaks


def _closing_chevrons(tokens: list[Token], opening: int) -> int:
    depth = 0
    for i in range(opening + 1, len(tokens)):
        token = tokens[i]
        if token.kind != "punctuation":
            continue
        if token.text in ("(", "[", "{"):
            depth += 1
        elif token.text in (")", "]", "}"):
            depth -= 1
        elif token.text == ">>>" and depth == 0:
            after = next_solid(tokens, i + 1)
            if after < len(tokens) and tokens[after].text == "(":
                return i
        if depth < 0:
            return -1
    return -1


def _kernel_start(tokens: list[Token], opening: int) -> int:
    """Return where the kernel's name starts; -1 if a ``>`` before it is a comparison."""
    last = previous_solid(tokens, opening - 1)
    if last >= 0 and tokens[last].text in (">", ">>") and angle_back(tokens, last) < 0:
        return -1
    return postfix_start(tokens, opening - 1)


def _without_comments(tokens: list[Token]) -> str:
    return "".join(" " if t.kind == "comment" else t.text.replace("\\\n", " ") for t in tokens)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


# -------------------------------------------------------------------------- shared memory


def _shared_memory(tokens: list[Token]) -> None:
    i = 0
    while i < len(tokens):
        if tokens[i].kind == "name" and tokens[i].text == "__shared__":
            i = _shared_declaration(tokens, i)
        i += 1


def _shared_declaration(tokens: list[Token], index: int) -> int:
    start = _statement_start(tokens, index)
    end = _statement_end(tokens, index)
    if end < 0:
        return index
    statement = tokens[start:end]
    extern = any(t.kind == "name" and t.text == "extern" for t in statement)
    align = _drop_alignment(statement)
    blank([t for t in statement if t.kind == "name" and t.text in _STORAGE])
    names = _declared_names(statement)
    if not names:
        return index
    breaks = "\n" * text_of(statement).count("\n")
    if extern:
        base = _without_comments(statement[: names[0]]).split()
        name = statement[names[0]].text
        rest = _without_comments(statement[names[0] + 1 :])
        dims = re.findall(r"\[[^\]]*\]", rest)
        kind = " ".join(base)
        if not _in_function(tokens, start):
            text = f"static ::emu::DynamicShared<{kind}> {name}"
        elif len(dims) > 1:
            inner = "".join(dims[1:])
            text = (
                f"{kind} (*{name}){inner} = "
                f"reinterpret_cast<{kind} (*){inner}>(emu_dynamic_shared())"
            )
        elif not dims:
            text = f"{kind}& {name} = *reinterpret_cast<{kind}*>(emu_dynamic_shared())"
        else:
            text = f"{kind}* {name} = reinterpret_cast<{kind}*>(emu_dynamic_shared())"
        text += breaks
    else:
        declared = [statement[n].text for n in names]
        for n in names:
            statement[n].text += "_emu_type"
        kinds = _initialisers_dropped(statement)
        parts = [f"typedef {kinds}"]
        for name in declared:
            aligned = f", {align}" if align else ""
            parts.append(f"static EmuSharedSlot {name}_emu_slot{{}}")
            parts.append(
                f"{name}_emu_type& {name} = ::emu::shared<{name}_emu_type{aligned}>"
                f"(&{name}_emu_slot, {_quoted(name)})"
            )
        text = "; ".join(parts)
    statement[0].text = text
    statement[0].kind = "punctuation"
    blank(statement[1:])
    return end


def _initialisers_dropped(statement: list[Token]) -> str:
    """Return the declaration's text without ``= value``: shared memory has no initialisers."""
    parts = split_arguments(statement)
    kept = []
    for part in parts:
        cut = next((i for i, t in enumerate(part) if t.text == "="), len(part))
        kept.append("".join(" " if t.kind == "comment" else t.text for t in part[:cut]))
    return ",".join(kept)


def _statement_start(tokens: list[Token], index: int) -> int:
    i = index
    while i > 0:
        before = tokens[i - 1]
        if before.kind == "punctuation" and before.text in (";", "{", "}", ":"):
            break
        if before.kind == "space" and "\n" in before.text and _in_directive(tokens, i - 1):
            break
        if before.kind == "punctuation" and before.text == ")":
            opening = i - 1
            while opening > 0 and tokens[opening].text != "(":
                opening -= 1
            name = previous_solid(tokens, opening - 1)
            if name < 0 or tokens[name].text not in _ALIGN | {"__attribute__"}:
                break
        i -= 1
    return next_solid(tokens, i)


def _in_directive(tokens: list[Token], newline: int) -> bool:
    """Return whether the line that ends at ``newline`` is a preprocessor line."""
    i = newline - 1
    while i >= 0 and not (
        tokens[i].kind == "space" and re.search(r"(?<!\\)\n", tokens[i].text.replace("\r", ""))
    ):
        i -= 1
    first = next_solid(tokens, i + 1)
    return first < len(tokens) and tokens[first].text == "#"


def _statement_end(tokens: list[Token], index: int) -> int:
    depth = 0
    for i in range(index, len(tokens)):
        text = tokens[i].text if tokens[i].kind == "punctuation" else ""
        if text in ("(", "[", "{"):
            depth += 1
        elif text in (")", "]", "}"):
            depth -= 1
        elif text == ";" and depth == 0:
            return i
        if depth < 0:
            return -1
    return -1


def _drop_alignment(statement: list[Token]) -> str:
    """Remove alignment specifiers, which a typedef cannot have; return the last value."""
    value = ""
    for i, token in enumerate(statement):
        if token.kind != "name" or token.text not in _ALIGN:
            continue
        left = next_solid(statement, i + 1)
        right = matching(statement, left) if left < len(statement) else -1
        if right < 0:
            continue
        value = text_of(statement[left + 1 : right]).strip()
        blank(statement[i : right + 1])
    return value


def _declared_names(statement: list[Token]) -> list[int]:
    """Return the indices of the names that a declaration declares."""
    names: list[int] = []
    i = 0
    last_name = -1
    done = False
    while i < len(statement):
        token = statement[i]
        if token.kind == "name" and not done:
            last_name = i
        elif token.kind == "punctuation":
            if token.text == "<" and not done and not names:
                depth = 0
                while i < len(statement):
                    text = statement[i].text
                    if text == "<":
                        depth += 1
                    elif text in (">", ">>", ">>>"):
                        depth -= len(text)
                        if depth <= 0:
                            break
                    i += 1
            elif token.text in ("[", "(", "{", "="):
                if token.text in ("[", "=") and not done and last_name >= 0:
                    names.append(last_name)
                    done = True
                if token.text != "=":
                    closing = matching(statement, i)
                    if closing < 0:
                        return names
                    i = closing
            elif token.text == ",":
                if not done and last_name >= 0:
                    names.append(last_name)
                done = False
                last_name = -1
        i += 1
    if not done and last_name >= 0:
        names.append(last_name)
    return names


def _in_function(tokens: list[Token], index: int) -> bool:
    """Return whether ``index`` lies inside braces other than those of namespaces."""
    braces: list[bool] = []
    for i in range(index):
        token = tokens[i]
        if token.kind != "punctuation":
            continue
        if token.text == "{":
            j = previous_solid(tokens, i - 1)
            words = []
            while j >= 0 and (tokens[j].kind in ("name", "string") or tokens[j].text == "::"):
                words.append(tokens[j].text)
                j = previous_solid(tokens, j - 1)
            braces.append(not ("namespace" in words or words == ['"C"', "extern"]))
        elif token.text == "}" and braces:
            braces.pop()
    return any(braces)


# ---------------------------------------------------------------- questions for the device


_QUESTIONS = {"is_cuda", "is_cpu", "device", "get_device"}


def _device_questions(tokens: list[Token]) -> None:
    asked: dict[int, str] = {}
    switches = any(t.text in ("DeviceType", "kCUDA", "kCPU") for t in tokens if t.kind == "name")
    # From the right: of x.device().is_cuda() the last question comes first in the text.
    for i in range(len(tokens) - 1, -1, -1):
        token = tokens[i]
        if token.kind == "name" and token.text in _QUESTIONS:
            _question(tokens, i, asked)
        elif token.kind == "name" and token.text == "switch" and switches:
            _switch(tokens, i)
        elif token.kind == "name" and token.text in ("kCUDA", "kCPU"):
            _constant(tokens, i, token.text == "kCUDA")
        elif token.kind == "name" and token.text in ("CUDA", "CPU"):
            scope = previous_solid(tokens, i - 1)
            owner = previous_solid(tokens, scope - 1)
            scoped = scope > 0 and tokens[scope].text == "::"
            if scoped and tokens[owner].text == "DeviceType":
                _constant(tokens, i, token.text == "CUDA")
            elif scoped and tokens[owner].text == "DispatchKey":
                _dispatch_key(tokens, i, asked)
        elif token.kind == "string" and re.fullmatch(r'"cuda(:\d+)?"', token.text):
            left = previous_solid(tokens, i - 1)
            owner = previous_solid(tokens, left - 1)
            if left > 0 and tokens[left].text in ("(", "{") and tokens[owner].text == "Device":
                token.text = "::emu::cuda_name()"
    for start, prefix in asked.items():
        tokens[start].text = prefix + tokens[start].text


def _question(tokens: list[Token], index: int, asked: dict[int, str]) -> None:
    """Turn ``x.name()`` into ``::emu::name((x))``; what comes before x is left in ``asked``."""
    dot = previous_solid(tokens, index - 1)
    if dot < 0 or tokens[dot].text not in (".", "->"):
        return
    left = next_solid(tokens, index + 1)
    if left >= len(tokens) or tokens[left].text != "(":
        return
    right = next_solid(tokens, left + 1)
    start = postfix_start(tokens, dot - 1)
    if right >= len(tokens) or tokens[right].text != ")" or start < 0:
        return
    star = "*" if tokens[dot].text == "->" else ""
    asked[start] = asked.get(start, "") + f"::emu::{tokens[index].text}({star}("
    for t in (tokens[dot], tokens[index], tokens[left]):
        t.text, t.kind = "", "space"
    tokens[right].text = "))"


def _dispatch_key(tokens: list[Token], index: int, asked: dict[int, str]) -> None:
    start = postfix_start(tokens, index)
    before = previous_solid(tokens, start - 1)
    if before >= 0 and tokens[before].text not in ("case", "<"):  # these take constants only
        asked[start] = asked.get(start, "") + "::emu::registered("
        tokens[index].text += ")"


def _switch(tokens: list[Token], index: int) -> None:
    """Let ``switch`` over a device type meet the labels as they stand."""
    left = next_solid(tokens, index + 1)
    right = matching(tokens, left) if left < len(tokens) and tokens[left].text == "(" else -1
    if right < 0:
        return
    before = [i for i in range(left, right) if tokens[i].text == ";"]
    opening = before[-1] if before else left
    tokens[opening].text += "::emu::switched("
    tokens[right].text = "))"


def _constant(tokens: list[Token], index: int, cuda: bool) -> None:
    start = postfix_start(tokens, index)
    before = previous_solid(tokens, start - 1)
    after = next_solid(tokens, index + 1)
    if before >= 0 and tokens[before].text == "case":
        return
    compared = (before >= 0 and tokens[before].text in ("==", "!=")) or (
        after < len(tokens) and tokens[after].text in ("==", "!=")
    )
    if not cuda and not compared:
        return
    blank(tokens[start : index + 1])
    tokens[index].text = "::emu::cuda_type()" if cuda else "::emu::cpu_type_compared()"
    tokens[index].kind = "name"


# -------------------------------------------------- runtime calls that take a kernel, memory

_TAKES_KERNEL = {
    "cudaFuncSetAttribute": "::emu::set_attribute(",
    "cudaLaunchCooperativeKernel": "::emu::launch_by_array(",
    "cudaLaunchKernel": "::emu::launch_by_array(",
}
_CAST = re.compile(
    r"^\s*(?:\(\s*(?:const\s+)?void\s*(?:const\s*)?\*\s*\)|"
    r"(?:reinterpret_cast|static_cast)\s*<\s*(?:const\s+)?void\s*(?:const\s*)?\*\s*>)\s*"
)


def _kernel_calls(tokens: list[Token]) -> None:
    for i, token in enumerate(tokens):
        if token.kind != "name" or token.text not in _TAKES_KERNEL:
            continue
        left = next_solid(tokens, i + 1)
        if left >= len(tokens) or tokens[left].text != "(":
            continue
        right = matching(tokens, left)
        if right < 0:
            continue
        first = split_arguments(tokens[left + 1 : right])[0]
        kernel = _CAST.sub("", _without_comments(first)).strip()
        base = re.sub(r"\s*<.*", "", kernel.strip("&() \n\t"), flags=re.DOTALL).rsplit("::", 1)[-1]
        where = ""
        if token.text != "cudaFuncSetAttribute":
            cooperative = int("Cooperative" in token.text)
            where = f"__FILE__, __LINE__, {cooperative}, "
        breaks = "\n" * text_of(first).count("\n")
        token.text = _TAKES_KERNEL[token.text] + f"{_quoted(base)}, {where}{kernel}" + breaks
        blank([tokens[left], *first])


def _memory_functions(tokens: list[Token]) -> None:
    for i, token in enumerate(tokens):
        if token.kind != "name" or token.text not in ("memcpy", "memset"):
            continue
        before = previous_solid(tokens, i - 1)
        after = next_solid(tokens, i + 1)
        called = after < len(tokens) and tokens[after].text == "("
        if called and (before < 0 or tokens[before].text not in ("::", ".", "->")):
            token.text = f"::emu::checked_{token.text}"
