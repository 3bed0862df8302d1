"""One fact has one home: sizes, and what only one module may know; imports: test_package.py."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "camtrain"
MODULES = {path.relative_to(PACKAGE): path.read_text("utf-8") for path in PACKAGE.rglob("*.py")}


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path, text in MODULES.items():
        yield path, ast.parse(text)


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


def test_every_optional_parameter_is_set_by_some_call() -> None:
    """An argument of an internal function that no call in the package sets is a constant.

    Functions that are only handed over (entries of tables, hooks of Lightning) are not called by
    name here and therefore not judged; neither are those that users call.
    """
    calls = calls_by_name()
    unset = [
        f"{path}: {function.name}({name})"
        for path, function in internal_functions()
        for place, name in optional_parameters(function)
        if function.name in calls
        and not any(sets_parameter(call, place, name) for call in calls[function.name])
    ]
    assert unset == []


def calls_by_name() -> dict[str, list[ast.Call]]:
    calls: dict[str, list[ast.Call]] = {}
    for _, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
                calls.setdefault(name, []).append(node)
    return calls


def internal_functions() -> Iterator[tuple[Path, ast.FunctionDef]]:
    """Functions and methods that no package exports, methods that override a library's left out."""
    exported = {
        name
        for path, text in MODULES.items()
        if path.name == "__init__.py"
        for name in re.findall(r"\w+", text)
    }
    for path, tree in trees():
        for owner in [tree, *(n for n in ast.walk(tree) if isinstance(n, ast.ClassDef))]:
            inherits = isinstance(owner, ast.ClassDef) and owner.bases
            if inherits or getattr(owner, "name", "") in exported:
                continue
            for node in owner.body:
                if isinstance(node, ast.FunctionDef) and node.name not in exported:
                    yield path, node


def optional_parameters(function: ast.FunctionDef) -> Iterator[tuple[int | None, str]]:
    """Place among the positional arguments of a call (None: keyword only) and name."""
    positional = [a.arg for a in (*function.args.posonlyargs, *function.args.args)]
    first = 1 if positional[:1] in (["self"], ["cls"]) else 0
    for place in range(len(positional) - len(function.args.defaults), len(positional)):
        yield place - first, positional[place]
    for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
        if default is not None:
            yield None, argument.arg


def sets_parameter(call: ast.Call, place: int | None, name: str) -> bool:
    unpacks = any(isinstance(argument, ast.Starred) for argument in call.args)
    keywords = {keyword.arg for keyword in call.keywords}
    return (
        unpacks
        or None in keywords
        or name in keywords
        or (place is not None and len(call.args) > place)
    )


def test_no_identifier_is_a_pronoun_or_a_bare_participle() -> None:
    unclear = set(
        [
            "found",
            "kept",
            "said",
            "told",
            "seen",
            "wanted",
            "one",
            "some",
            "own",
            "others",
            "rest",
            "it",
        ]
    )
    names = {
        f"{path}: {name}"
        for path, tree in trees()
        for node in ast.walk(tree)
        for name in (getattr(node, "name", None), getattr(node, "arg", None), stored_name(node))
        if name is not None and name.strip("_") in unclear
    }
    assert names == set()


def stored_name(node: ast.AST) -> str | None:
    return node.id if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else None
