"""One fact has one home: sizes, the direction of imports, and what only one module may know."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "camtrain"
MODULES = {path.relative_to(PACKAGE): path.read_text("utf-8") for path in PACKAGE.rglob("*.py")}

# A room imports rooms of lower floors and nothing above; `__init__` and `cli` only hand over.
FLOORS = (
    ("errors", "files", "lazy", "version"),
    ("labels", "preprocessing"),
    ("maps", "header"),
    ("localization", "visualize"),
    ("data", "model"),
    ("inference",),
    ("training",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path, text in MODULES.items():
        yield path, ast.parse(text)


def room_of(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def imported_rooms(tree: ast.Module) -> set[str]:
    """The rooms of camtrain that a module imports, also within functions."""
    names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names += [a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names]
    return {name.split(".")[1] for name in names if name.startswith("camtrain.")}


def test_every_room_has_a_floor() -> None:
    assert {room_of(path) for path in MODULES} == {*FLOOR_OF, "__init__", "cli"}


def test_imports_point_down() -> None:
    upward = [
        f"{path} imports {room}"
        for path, tree in trees()
        if room_of(path) in FLOOR_OF
        for room in imported_rooms(tree)
        if room != room_of(path) and FLOOR_OF[room] >= FLOOR_OF[room_of(path)]
    ]
    assert not upward


def test_files_and_classes_are_at_most_350_lines_long() -> None:
    long = {str(path): text.count("\n") for path, text in MODULES.items()}
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.end_lineno is not None:
                long[f"{path}: {node.name}"] = node.end_lineno - node.lineno + 1
    assert {name: lines for name, lines in long.items() if lines > 350} == {}


def test_no_class_name_is_used_twice() -> None:
    names = Counter(
        node.name
        for _, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, times in names.items() if times > 1] == []


@pytest.mark.parametrize(
    ("pattern", "home"),
    [
        (r"format_version\b", "header.py"),
        (r"os\.replace\(|\.replace\(path\)", "files.py"),
        (r"environ\W+(get\W+)?XDG_CACHE_HOME", "files.py"),
    ],
)
def test_one_module_knows(pattern: str, home: str) -> None:
    knowing = [str(path) for path, text in MODULES.items() if re.search(pattern, text)]
    assert knowing == [home]


def test_only_maps_divides_by_the_range_of_a_map() -> None:
    extreme = re.compile(r"\b(peak|reach|range_?|low|lowest|high|highest)\b|\.(a?max|a?min|ptp)\(")
    divisions = [
        f"{path}: {ast.unparse(node)}"
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div)
        if extreme.search(ast.unparse(node.right if isinstance(node, ast.BinOp) else node.value))
    ]
    assert sum(division.startswith("maps.py: ") for division in divisions) == 3
    # The distances of pixels to the background, in the box tool of the authors of CAM.
    elsewhere = ["localization/boxes.py: 255 / float(distance.max())"]
    assert [line for line in divisions if not line.startswith("maps.py: ")] == elsewhere
