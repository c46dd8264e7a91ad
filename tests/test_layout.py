"""The layout: imports go downward only, without circles, and private names stay in their file."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "clip2sam"

ROOMS = (  # bottom to top; the files of one line are one room
    ("errors",),
    ("data",),
    ("coco",),
    ("export",),
    ("kernels",),
    ("clip",),
    ("config",),
    ("types",),
    ("similarity", "points", "instances", "candidates", "scoring", "proposals", "joins"),
    ("sam",),
    ("visualize",),
    ("result",),
    ("tiles",),
    ("features",),
    ("locate",),
    ("regions", "trained"),
    ("pipeline",),
    ("recognition", "dense"),
    ("tiny",),
    ("models",),
    ("labelling",),
    ("review",),
    ("cluster",),
    ("analysis",),
    ("serve",),
    ("cvat",),
    ("fiftyone",),
    ("app",),
    ("cli",),
)
LEVELS = {name: level for level, names in enumerate(ROOMS) for name in names}

WITHOUT_TORCH = (
    "errors",
    "data",
    "coco",
    "export",
    "clip.methods",
    "config",
    "models.locators",
    "labelling.lock",
    "labelling.manifest",
    "labelling.journal",
    "labelling.decide",
    "labelling.outputs",
    "labelling.summary",
    "labelling.export",
    "labelling.merge",
    "review",
)
HEAVY = ("torch", "torchvision", "open_clip", "segment_anything", "matplotlib")

FOREIGN = {  # private names of other libraries, or names that only look private
    "_asdict": "NamedTuple's public method",
    "_replace": "NamedTuple's public method",
    "_fields": "NamedTuple's public attribute",
    "_exit": "os._exit",
    "_is_mkldnn_bf16_supported": "torch.ops.mkldnn: whether the CPU has bf16 products",
    "_version": "torch: a tensor's count of changes in place; there is no public one",
    "_reorder_linear_weight": "torch.ops.mkldnn: packed weights; there is no public one",
    "_linear_pointwise": "torch.ops.mkldnn: packed weights; there is no public one",
    "_convolution_pointwise": "torch.ops.mkldnn: a GELU in the same pass; there is no public one",
    "_esm": "anywidget: the name that it reads",
    "_css": "anywidget: the name that it reads",
    "_repr_jpeg_": "IPython: the name that it reads",
    "_repr_html_": "IPython: the name that it reads",
    "_repr_mimebundle_": "IPython: the name that it reads",
}


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    """Of a file below ROOT: clip2sam.clip.text, or clip2sam.clip for its __init__."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in python_files(PACKAGE)}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def room(module: str) -> str:
    """The part below the package; "" for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def imported(tree: ast.Module, module: str, is_package: bool) -> Iterator[tuple[int, str, str]]:
    """(line, module, name or "") of every import from the package, wherever it stands in the file:
    also inside functions, under TYPE_CHECKING, and by `import_module` with a written name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: None if is_package else -1]
            above = above[: len(above) - node.level + 1] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                yield node.lineno, origin, alias.name
        elif isinstance(node, ast.Call) and called(node) == "import_module":
            written = [n.value for n in ast.walk(node.args[0]) if isinstance(n, ast.Constant)]
            if written and isinstance(written[0], str):
                yield node.lineno, written[0].rstrip("."), ""


def called(node: ast.Call) -> str:
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def of_package(name: str) -> bool:
    return name == PACKAGE or name.startswith(f"{PACKAGE}.")


def targets(module: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, module of the package) for every import of `module`."""
    is_package = MODULES.get(module, Path()).name == "__init__.py"
    for line, origin, name in imported(tree, module, is_package):
        if of_package(origin):
            inner = f"{origin}.{name}"
            yield line, inner if inner in MODULES else origin


def upward_imports(module: str, tree: ast.Module) -> list[str]:
    """What `module` imports from rooms above its own, and what it takes from the package itself
    (whose names are those of all rooms) beside its version."""
    if room(module) == "":
        return []
    wrong = []
    for line, target in targets(module, tree):
        if room(target) and LEVELS[room(target)] > LEVELS[room(module)]:
            wrong.append(f"{module}:{line} imports {target}, which is above it")
    for line, origin, name in imported(tree, module, False):
        if origin == PACKAGE and name and is_facade(name):
            wrong.append(f"{module}:{line} imports {name} from the package, not from its room")
    for node in ast.walk(tree):
        is_of_package = isinstance(node, ast.Attribute) and receiver(node) == PACKAGE
        if is_of_package and is_facade(node.attr):
            wrong.append(f"{module}:{node.lineno} uses {PACKAGE}.{node.attr}")
    return wrong


def is_facade(name: str) -> bool:
    """Whether `clip2sam.NAME` is neither a room nor the version."""
    return f"{PACKAGE}.{name}" not in MODULES and name != "__version__"


def receiver(node: ast.Attribute) -> str:
    """The `a` of `a.b`; "" if that is no plain name."""
    return node.value.id if isinstance(node.value, ast.Name) else ""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def own_names(tree: ast.Module) -> set[str]:
    """Private names that this file gives: functions, classes, variables, attributes of its own."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node, ast.Name):
                names.add(node.id)
            elif receiver(node) in ("self", "cls"):
                names.add(node.attr)
    return {name for name in names if is_private(name)}


def private_uses(tree: ast.Module, place: str) -> list[str]:
    """Uses of private names that another file gives: imported, by attribute, or by getattr."""
    own, wrong = own_names(tree), []
    for line, origin, name in imported(tree, place, False):
        parts = [*origin.split("."), name]
        if of_package(origin) and any(is_private(part) for part in parts):
            wrong.append(f"{place}:{line} imports {origin}.{name}")
    for node in ast.walk(tree):
        name = ""
        if isinstance(node, ast.Attribute):
            name = "" if receiver(node) in ("self", "cls") else node.attr
        elif isinstance(node, ast.Call) and called(node) in ("getattr", "setattr", "hasattr"):
            second = node.args[1] if len(node.args) > 1 else None
            name = second.value if isinstance(second, ast.Constant) else ""
        if is_private(name) and name not in own and name not in FOREIGN:
            wrong.append(f"{place}:{node.lineno} uses {name}")
    return wrong


def report(faults: list[str]) -> str:
    return "\n".join(["", *dict.fromkeys(faults)])


def test_every_file_has_a_room():
    strangers = {room(name) for name in MODULES} - {*LEVELS, ""}
    assert not strangers, f"no line of ROOMS names {strangers}"
    gone = {name for name in LEVELS if f"{PACKAGE}.{name}" not in MODULES}
    assert not gone, f"ROOMS names {gone}, which are not there"


def test_imports_go_downward_only():
    faults = [fault for name, tree in TREES.items() for fault in upward_imports(name, tree)]
    assert not faults, report(faults)


def test_no_file_imports_itself_through_others():
    graph = {
        name: {target for _, target in targets(name, tree)} - {name} for name, tree in TREES.items()
    }
    graph.pop(PACKAGE)  # it names all, lazily
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]), pytrace=False)


def test_private_names_stay_in_their_file():
    paths = python_files(PACKAGE, "benchmarks", "scripts")
    places = {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in paths}
    faults = [fault for place, tree in places.items() for fault in private_uses(tree, place)]
    assert not faults, report(faults)


@pytest.mark.parametrize("room_name", WITHOUT_TORCH)
def test_no_torch(room_name):
    """What reads and writes data starts fast: neither PyTorch nor the models are imported."""
    start = f"{PACKAGE}.{room_name}"
    names = [n for n in MODULES if n == start or n.startswith(f"{start}.")]
    assert names
    code = "import sys\n" + "".join(f"import {name}\n" for name in names)
    code += f"print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ("from clip2sam.pipeline import Segmenter", True),
        ("import clip2sam.pipeline", True),
        ("from clip2sam import pipeline", True),
        ("from clip2sam import Segmenter", True),
        ("from .. import pipeline", True),
        ("from ..pipeline import Segmenter", True),
        ("def f():\n    from clip2sam.pipeline import Segmenter", True),
        ("if TYPE_CHECKING:\n    from clip2sam.pipeline import Segmenter", True),
        ("import_module(f'clip2sam.models.{name}')", True),
        ("import clip2sam\nclip2sam.load()", True),
        ("from clip2sam.data.labels import LabelSet", False),
        ("from clip2sam.coco.document import coco_document", False),
        ("from clip2sam import __version__", False),
        ("from .document import coco_document", False),
        ("from torch import Tensor", False),
    ],
)
def test_the_check_of_imports_sees(line, seen):
    assert bool(upward_imports("clip2sam.coco.rle", ast.parse(line))) == seen


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ("from clip2sam.data.labels import _names", True),
        ("from clip2sam.data._labels import names", True),
        ("labels._names(3)", True),
        ("self.clip._cache", True),
        ("getattr(clip, '_cache')", True),
        ("self._cache", False),
        ("class A:\n    def __init__(self, b):\n        self._x = b._x", False),
        ("tensor._version", False),
        ("type(x).__name__", False),
        ("import _thread", False),
    ],
)
def test_the_check_of_private_names_sees(line, seen):
    assert bool(private_uses(ast.parse(line), "clip2sam.coco.rle")) == seen
