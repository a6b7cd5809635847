"""Writes small torch headers for one extension, so that nvcc and g++ parse less.

``torch/extension.h`` declares all of PyTorch; nvcc needs about a minute of one core to parse it. An
extension uses a few names of it. This module writes a folder that goes in front of torch's own
include folders. Its ``torch/extension.h`` includes the tensor class, the operators that the source
names, and the Python bindings where the source has bindings. The source itself stays unchanged.

A source might compile with both kinds of headers and behave differently: the compiler chooses
another overload, a macro is missing, a name of the solution is no longer ambiguous. These rules
prevent that:

- An operator is included when its name occurs anywhere in the source, as a function, a method or a
  name of the solution's own. One operator header holds all overloads.
- ``torch::zeros`` and the other factories are not ``at::zeros``: their text is copied from torch's
  installed header. So are the C++-only overloads such as ``at::std(x, dim)``.
- The names that left-out headers declare outside classes and functions, and their macros, are read
  from torch's installed headers. A source that contains such a name gets the real headers, unless
  the name stands there as a member only (``x.name``) and is no macro.
- A source that builds names with ``##``, that depends on ``__COUNTER__`` or ``__has_include``, or
  that opens torch's namespaces gets the real headers.
- ``<math.h>``, ``<stdlib.h>`` and ``<complex>`` are always included: without them ``abs(x)`` is the
  one for integers. So are ``ATen/core/Tensor.h`` and the operators on tensors.

Everything else that is missing is a compile error or an undefined symbol. The caller then builds
with the real headers, and the message is theirs.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

FACTORIES = "torch/csrc/autograd/generated/variable_factories.h"
FUNCTIONS = "ATen/Functions.h"
TYPES = "torch/csrc/api/include/torch/types.h"

_REPLACED = ("torch/extension.h", "torch/all.h", "torch/torch.h", "torch/types.h", "ATen/ATen.h")
_CORE = (
    "ATen/core/Tensor.h",
    "ATen/core/LegacyTypeDispatch.h",
    "ATen/TensorOperators.h",
    "ATen/core/Formatting.h",
    "ATen/DeviceGuard.h",
    "ATen/TracerMode.h",
    "ATen/core/Reduction.h",
    "c10/util/Exception.h",
    "c10/util/OptionalArrayRef.h",
    "c10/util/irange.h",
)
_STANDARD = ("cmath", "complex", "math.h", "stdlib.h", "functional", "optional", "string", "vector")
# Headers that are included if one of their names occurs.
_WHEN_NAMED = (
    (r"AT_DISPATCH\w*|AT_PRIVATE\w*", ("ATen/Dispatch.h",)),
    (r"indexing|TensorIndex|Slice|Ellipsis|index|index_|index_put_?", ("ATen/TensorIndexing.h",)),
    (r"tensor", ("torch/csrc/api/include/torch/detail/TensorDataContainer.h",)),
    (r"\w*Guard|InferenceMode|GradMode", ("ATen/core/grad_mode.h", "c10/core/InferenceMode.h")),
    (r"expand_\w+|infer_size\w*|sum_to\w*", ("ATen/ExpandUtils.h",)),
    (r"Generator|getDefaultCPUGenerator|globalContext", ("ATen/Context.h",)),
    (r"autograd|\w*requires_grad\w*|make_variable", ("torch/csrc/autograd/variable.h",)),
    (r"cout|cerr|endl|clog", ("iostream",)),
    (r"stringstream|ostringstream|istringstream", ("sstream",)),
    (r"setw|setprecision", ("iomanip",)),
    (r"map|multimap", ("map",)),
    (r"set|multiset", ("set",)),
    (r"unordered_set", ("unordered_set",)),
    (r"chrono", ("chrono",)),
    (r"thread", ("thread",)),
    (r"list", ("list",)),
    (r"mutex|lock_guard|unique_lock", ("mutex",)),
    (r"iota|accumulate|inner_product", ("numeric",)),
)
_PYTHON = ("torch/csrc/utils/pybind.h", "torch/csrc/Exceptions.h")
# What Python.h and pybind11 declare outside a namespace.
_PYTHON_NAME = re.compile(
    r"_?Py\w*|PY\w*|py|pybind11|PYBIND11\w*|THP\w*|wrap_pybind\w*|getter|setter|destructor|inquiry"
    r"|\w+func|\w+proc"
)
_FORBIDDEN = (
    (r"##|%:", "it builds names with ##"),
    (
        (
            r"\b(__COUNTER__|__has_include|__INCLUDE_LEVEL__|TORCH_STABLE_ONLY|TORCH_TARGET_VERSION"
            r"|TORCH_INDUCTOR_CPP_WRAPPER|AT_PER_OPERATOR_HEADERS)\b"
        ),
        "its text depends on headers",
    ),
    (r"\bnamespace\s+(?:\w+\s*=\s*)?(?:::\s*)?(?:torch|at|c10)\b", "it opens a namespace of torch"),
)
_COMMENT_OR_STRING = re.compile(
    r'R"(?P<mark>[^()\s\\]{0,16})\(.*?\)(?P=mark)"'
    r'|"(?:\\.|[^"\\\n])*"'
    r"|(?:(?<!\w)|(?<=\b[LuU])|(?<=\bu8))'(?:\\.|[^'\\\n])+'"
    r"|//(?:\\\n|[^\n])*"
    r"|/\*.*?\*/",
    re.DOTALL,
)
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
# A name that is no member (x.name, x->name): declarations outside classes concern only those.
_FREE = re.compile(r"(?<![\w.])(?<!->)[A-Za-z_]\w*")
# The namespace in torch::namespace::name.
_QUALIFIER = re.compile(r"\btorch\s*::\s*(\w+)\s*::")
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"\n]+)[>"]', re.MULTILINE)
_ANY_INCLUDE = re.compile(r"^[ \t]*#[ \t]*include\b", re.MULTILINE)
_DEFINE = re.compile(r"^[ \t]*#[ \t]*define[ \t]+(\w+)", re.MULTILINE)
# Torch's headers are formatted: text in the first column is outside of classes and functions.
_DECLARED = re.compile(
    r"^(?:[A-Za-z_][^\n(;{=]*?[\s*&])?(\w+)\s*\([^\n]*$"
    r"|^(?:typedef|using|class|struct|enum|union|constexpr|static|inline|const|extern|TORCH_API"
    r"|C10_API)\b[^\n(]*?(\w+)\s*(?:final\b\s*)?(?:[={;]|:(?!:))[^\n]*$",
    re.MULTILINE,
)
_NAMESPACE = re.compile(r"^(?:inline )?namespace ([\w:]+)", re.MULTILINE)
_OURS = ("ATen/", "c10/", "torch/")
_WORDS = """
alignas auto bool break case catch char class const constexpr continue decltype default delete do
double else enum explicit extern false float for friend if inline int long mutable namespace new
noexcept nullptr operator private protected public return short signed sizeof static static_assert
static_cast struct switch template this throw true try typedef typename union unsigned using virtual
void volatile while
"""
_KEYWORDS = frozenset(_WORDS.split())
_TOOLKIT = ("cuda.h", "cuda_runtime.h", "cuda_fp16.h", "cublas_v2.h")
API = "torch/csrc/api/include/"
# A name in torch::nn and the like is reachable only through the name of that namespace.
_NESTED = re.compile(r"^namespace torch::\w", re.MULTILINE)
_OUTER = re.compile(r"^namespace (?:torch|at|c10)\s*\{", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One compilation unit's text, and whether nvcc compiles it."""

    text: str
    cuda: bool


class NotFast(Exception):
    """Says why a source needs torch's own headers."""


def version() -> str:
    """Return a digest of the rules. It is part of the key of a build with them."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]


def write(
    folder: Path,
    sources: Sequence[Source],
    *,
    torch_include: Path,
    include_paths: Sequence[Path] = (),
    flags: Sequence[str] = (),
) -> None:
    """Write the headers for one extension's sources into a folder.

    Args:
        folder: created; goes in front of torch's include folders as ``-I``.
        sources: all compilation units of the extension.
        torch_include: torch's include folder.
        include_paths: folders of the solution's own headers.
        flags: compiler flags of the solution.

    Raises:
        NotFast: these sources need torch's own headers.
        OSError: a header of torch cannot be read, or the folder cannot be written.
    """
    if any(re.match(r"-{1,2}(include|imacros|pre-include)", flag) for flag in flags):
        raise NotFast("its flags include a header")
    tree = _Tree(torch_include)
    units = [_Unit.read(source, include_paths, tree) for source in sources]
    names = {name for flag in flags for name in re.findall(r"[A-Za-z_]\w*", flag)}
    names |= {name for unit in units for name in unit.names}
    headers = _headers(tree, names, units)
    _refuse_left_out(tree, units, names, headers)
    for name, text in headers.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


def identifiers(text: str) -> set[str]:
    """Return the identifiers of a C++ text outside comments, literals and include lines."""
    return set(re.findall(r"\b[A-Za-z_]\w*", _code(text)))


def _code(text: str) -> str:
    return _COMMENT_OR_STRING.sub(" ", _INCLUDE.sub("", text.replace("\\\n", "")))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unit:
    """The names in one compilation unit, those in its own headers included."""

    cuda: bool
    names: set[str]
    free: set[str]
    qualifiers: set[str]
    torch_headers: list[str]

    @classmethod
    def read(cls, source: Source, folders: Sequence[Path], tree: _Tree) -> _Unit:
        names, free, qualifiers = set[str](), set[str](), set[str]()
        torch_headers: list[str] = []
        texts: list[tuple[str, list[Path]]] = [(source.text, [])]
        seen: set[Path] = set()
        while texts:
            text, beside = texts.pop()
            code = _code(text)
            for pattern, why in _FORBIDDEN:
                if re.search(pattern, code):
                    raise NotFast(why)
            if _ANY_INCLUDE.search(code):
                raise NotFast("it includes a header that a macro names")
            names |= identifiers(text)
            free |= set(_FREE.findall(code))
            qualifiers |= set(_QUALIFIER.findall(code))
            for quote, header in _INCLUDE.findall(text):
                places = [*beside, *folders]
                own = next((p / header for p in places if (p / header).is_file()), None)
                if own is not None:
                    if header in _REPLACED:
                        raise NotFast(f"it has a {header} of its own")
                    if own not in seen:
                        seen.add(own)
                        texts.append((own.read_text(errors="replace"), [own.parent]))
                elif header in _REPLACED:
                    continue
                elif tree.find(header, None) is not None:
                    torch_headers.append(header)
                elif quote == '"' and header not in _TOOLKIT:
                    raise NotFast(f"its header {header!r} was not found")
        return cls(
            cuda=source.cuda,
            names=names,
            free=free,
            qualifiers=qualifiers,
            torch_headers=torch_headers,
        )


@dataclass(frozen=True, slots=True)
class _Tree:
    """torch's installed headers."""

    root: Path
    operators: set[str] = field(default_factory=set)
    _texts: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        files = (self.root / "ATen" / "ops").glob("*.h")
        inner = ("_ops", "_native", "_dispatch")
        self.operators.update(p.stem for p in files if not p.stem.endswith(inner))

    def find(self, header: str, beside: str | None) -> str | None:
        """Return a header's path below the root; None for one that is not torch's."""
        places = ["", API] if beside is None else ["", API, beside.rpartition("/")[0] + "/"]
        return next((p + header for p in places if (self.root / (p + header)).is_file()), None)

    def text(self, header: str) -> str:
        """Return a header's text; ``header`` is its path below the root."""
        if header not in self._texts:
            self._texts[header] = (self.root / header).read_text(errors="replace")
        return self._texts[header]

    def reached(self, starts: Iterable[str], replaced: Mapping[str, str]) -> set[str]:
        """Return the headers that some headers include, operators aside.

        Conditions are ignored: an include under any condition counts.
        """
        seen: set[str] = set()
        ahead = list(starts)
        while ahead:
            name = ahead.pop()
            if name in seen:
                continue
            seen.add(name)
            text = replaced[name] if name in replaced else self.text(name)
            for _, header in _INCLUDE.findall(text):
                if header.startswith("ATen/ops/"):
                    continue
                found = header if header in replaced else self.find(header, name)
                if found is not None and found not in seen:
                    ahead.append(found)
        return seen

    def operator(self, name: str) -> str | None:
        """Return the operator that declares a function or method name."""
        stems = [name, name.rstrip("_")]
        stems += [stem.removesuffix(end) for stem in stems for end in ("_out", "_outf", "_symint")]
        return next((stem for stem in stems if stem in self.operators), None)


def _headers(tree: _Tree, names: set[str], units: Sequence[_Unit]) -> dict[str, str]:
    """Return the text of each header to write by its path in the folder."""
    wanted = [
        header
        for pattern, headers in _WHEN_NAMED
        if any(re.fullmatch(pattern, name) for name in names)
        for header in headers
    ]
    include = "#include <{}>".format
    operators = {found for name in names if (found := tree.operator(name))}
    core = [*_STANDARD, *_CORE, *wanted]
    skeleton = {FUNCTIONS: "", "ATen/NativeFunctions.h": ""}
    starts = [found for h in [*core, *_PYTHON] if (found := tree.find(h, None))]
    starts += [found for unit in units for h in unit.torch_headers if (found := tree.find(h, None))]
    for header in tree.reached(starts, skeleton):
        # Headers of torch list the operators that they call, for builds with a header per operator.
        text = skeleton[header] if header in skeleton else tree.text(header)
        operators |= set(re.findall(r"#include <ATen/ops/(\w+)\.h>", text)) & tree.operators
    functions = [
        "#include <ATen/core/Tensor.h>",
        *(f"#include <ATen/ops/{name}.h>" for name in sorted(operators)),
        "namespace at {",
        *_picked(tree.text(FUNCTIONS), names),
        "}",
    ]
    real_variable = "torch/csrc/autograd/variable.h" in wanted
    factories = "\n".join(_picked(tree.text(FACTORIES), names))
    if not real_variable:
        factories = factories.replace("autograd::make_variable(", "fast_headers::make_variable(")
    types = tree.text(TYPES)
    start = types.index("namespace torch {")
    end = types.index("} // namespace torch", start)
    python = {
        cuda: any(_PYTHON_NAME.fullmatch(name) for u in units if u.cuda == cuda for name in u.names)
        for cuda in (False, True)
    }
    bindings = "\n".join(map(include, _PYTHON))
    extension = ["#include <torch/types.h>"]
    extension += ["#ifdef __CUDACC__", bindings if python[True] else ""]
    extension += ["#else", bindings if python[False] else "", "#endif"]
    texts = {
        FUNCTIONS: "\n".join(functions),
        "ATen/NativeFunctions.h": "#include <ATen/Functions.h>",
        "ATen/ATen.h": "\n".join([*map(include, core), include(FUNCTIONS)]),
        "torch/types.h": "\n".join(
            [
                "#include <ATen/ATen.h>",
                "" if real_variable else _MAKE_VARIABLE,
                "namespace torch {",
                "using Deleter = std::function<void(void*)>;",
                "using at::MemoryFormat;",
                factories,
                "}",
                types[start:end] + "}",
            ]
        ),
        "torch/all.h": "#include <torch/types.h>",
        "torch/torch.h": "#include <torch/types.h>",
        "torch/extension.h": "\n".join(extension),
    }
    return {name: f"#pragma once\n{text}\n" for name, text in texts.items()}


_MAKE_VARIABLE = """namespace torch::fast_headers {
// As torch::autograd::make_variable for a new tensor. A source that can ask for a gradient
// includes the real one.
inline at::Tensor make_variable(at::Tensor data, bool requires_grad) {
  TORCH_INTERNAL_ASSERT(!requires_grad);
  return data;
}
}"""


def _picked(text: str, names: set[str]) -> list[str]:
    """Return the text of those inline functions of a header that have one of the names."""
    found = re.findall(
        r"^(inline [^\n;]*?\b(\w+)\([^\n]*\n(?:.*?\n)??\})$", text, re.MULTILINE | re.DOTALL
    )
    return [block for block, name in found if name in names]


def _refuse_left_out(
    tree: _Tree, units: Sequence[_Unit], names: set[str], headers: Mapping[str, str]
) -> None:
    """Raise NotFast if a header that is left out declares a name of the source."""
    extra = [found for u in units for h in u.torch_headers if (found := tree.find(h, None))]
    kept = tree.reached([*headers, *extra], headers)
    left_out = tree.reached(["torch/extension.h"], {}) - kept - {FACTORIES, FUNCTIONS, TYPES}
    known = _Declared()
    for header in kept:
        known.add(headers[header] if header in headers else tree.text(header))
    free = set[str]().union(*(u.free for u in units)) - _KEYWORDS
    qualifiers = set[str]().union(*(u.qualifiers for u in units))
    for header in sorted(left_out):
        text = tree.text(header)
        here = _Declared()
        here.add(text)
        hits = names & (here.macros - known.macros)
        if header.startswith(_OURS):
            nested = _NESTED.search(text) and not _OUTER.search(text)
            hits |= qualifiers & here.namespaces
            # A further function of a known name is another overload, or hides that of at in torch.
            hits |= set() if nested else free & (here.functions | here.names - known.names)
        if hits:
            raise NotFast(f"{min(hits)!r} is declared in {header}")


@dataclass(slots=True)
class _Declared:
    """The names that some headers declare outside of classes and functions.

    Attributes:
        macros: their names.
        functions: functions and function templates.
        names: types, variables and aliases.
        namespaces: those below ``torch``.
    """

    macros: set[str] = field(default_factory=set)
    functions: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    namespaces: set[str] = field(default_factory=set)

    def add(self, text: str) -> None:
        """Read one more header."""
        self.macros.update(_DEFINE.findall(text))
        plain = _COMMENT.sub("", text)
        for function, other in _DECLARED.findall(plain):
            (self.functions if function else self.names).add(function or other)
        paths = [path.split("::") for path in _NAMESPACE.findall(plain)]
        if any(path[0] == "torch" for path in paths):
            self.namespaces.update(part for path in paths for part in path if part != "torch")
