# SPDX-License-Identifier: GPL-2.0-or-later
"""softseam's sources: no circles among them, and the parts that run in a process do so correctly."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from images.kernel.flavours import HERE

SOURCES = HERE / "softseam"
UNITS = Path(__file__).parent / "softseam"

_COMMENT_OR_STRING = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"', re.DOTALL)
_DEFINITION = re.compile(
    r"^(?!static\b|extern\b|typedef\b)[a-z_][\w\s*]*?[\s*](\w+)\s*(?:\([^;{]*\)\s*\{|\[[^;{]*(?:=|;)|=|;)",
    re.MULTILINE,
)
_ASM_DEFINITION = re.compile(r"^SYM_FUNC_START\((\w+)\)", re.MULTILINE)
_LOCAL_INCLUDE = re.compile(r'^#include "([^"]+)"', re.MULTILINE)
_SYSTEM_INCLUDE = re.compile(r"^#include <([^>]+)>", re.MULTILINE)

_OF_THE_C_LIBRARY = {"linux/errno.h", "linux/limits.h"}
"""Headers that the C library's own include."""

Graph = Mapping[str, set[str]]


def circles(graph: Graph) -> list[list[str]]:
    """The groups of nodes that reach each other."""
    reached = {node: set(targets) for node, targets in graph.items()}
    for middle in graph:
        for targets in reached.values():
            if middle in targets:
                targets |= reached[middle]
    groups = {
        frozenset(other for other in graph if other in reached[node] and node in reached[other])
        for node in graph
    }
    return sorted(sorted(group) for group in groups if group)


def uses(folder: Path) -> Graph:
    """Maps each C or assembler file to those that define a function or variable it uses."""
    text = {path.name: path.read_text() for path in folder.glob("*.[cS]")}
    code = {name: _COMMENT_OR_STRING.sub(" ", content) for name, content in text.items()}
    defined = {
        symbol: name
        for name, content in code.items()
        for symbol in (*_DEFINITION.findall(content), *_ASM_DEFINITION.findall(content))
    }
    words = {name: set(re.findall(r"\w+", content)) for name, content in code.items()}
    return {
        name: {defined[word] for word in used if word in defined and defined[word] != name}
        for name, used in words.items()
    }


def test_no_circle_among_the_sources() -> None:
    graph = uses(SOURCES)
    assert graph["enter.c"] >= {"vp.c", "guest.c", "vmrun.S", "vapic.c"}
    assert graph["sys.c"] >= {"kot.c", "package.c", "pamt.c", "params.c"}
    assert circles(graph) == []


def test_no_circle_among_the_headers() -> None:
    headers = {path.name: path.read_text() for path in SOURCES.glob("*.h")}
    assert circles({name: set(_LOCAL_INCLUDE.findall(text)) for name, text in headers.items()}) == []


def test_circles_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.c").write_text("int a_level = 3;\nint a(void)\n{\n\treturn b() /* c() */;\n}\n")
    (tmp_path / "b.c").write_text("int b(void)\n{\n\treturn a_level;\n}\n")
    (tmp_path / "c.c").write_text('int c(void)\n{\n\tputs("d");\n\treturn a();\n}\n')
    (tmp_path / "d.S").write_text("SYM_FUNC_START(d)\n\tcall c\n")
    assert circles(uses(tmp_path)) == [["a.c", "b.c"]]


def cases(unit: str) -> Iterable[str]:
    return re.findall(r'^\t\{ "(\w+)", ', (UNITS / f"{unit}_unit.c").read_text(), re.MULTILINE)


@pytest.fixture(scope="session")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the kernel's headers that softseam includes are empty."""
    folder = tmp_path_factory.mktemp("stubs")
    for source in SOURCES.glob("*.[ch]"):
        for header in set(_SYSTEM_INCLUDE.findall(source.read_text())) - _OF_THE_C_LIBRARY:
            (folder / header).parent.mkdir(parents=True, exist_ok=True)
            (folder / header).touch()
    return folder


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
@pytest.mark.parametrize(
    ("unit", "case"), [(unit, case) for unit in ("debugfs", "kot", "trap") for case in cases(unit)]
)
def test_unit(unit: str, case: str, stubs: Path, tmp_path: Path) -> None:
    compile_unit = f"""
        gcc -std=gnu11 -O1 -g -Wall -Werror -fsanitize=address,undefined -fno-sanitize-recover=all
        -iquote {UNITS} -iquote {SOURCES} -I {stubs} -o {tmp_path / unit} {UNITS / unit}_unit.c
        """
    built = subprocess.run(compile_unit.split(), capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([tmp_path / unit, case], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
