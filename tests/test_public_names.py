"""The names of the package itself: `clip2sam.NAME`."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import clip2sam

SOURCE = ast.parse(Path(clip2sam.__file__).read_text(encoding="utf-8"))


def typed_names() -> dict[str, str]:
    """name -> module of what type checkers and editors see."""
    guard = next(node for node in SOURCE.body if isinstance(node, ast.If))
    return {
        alias.name: node.module
        for node in guard.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }


@pytest.mark.parametrize("name", clip2sam.__all__)
def test_every_name_is_what_type_checkers_see(name):
    module = typed_names()[name]
    assert getattr(clip2sam, name) is getattr(sys.modules[module], name)


def test_all_dir_and_type_checkers_agree():
    assert sorted(typed_names()) == clip2sam.__all__
    assert set(clip2sam.__all__) <= set(dir(clip2sam))


def test_no_name_is_also_a_module():
    """Importing a module gives the package an attribute of its name."""
    folder = Path(clip2sam.__file__).parent
    modules = {path.stem for path in folder.iterdir()}
    assert not modules & set(clip2sam.__all__)


def test_every_error_is_public():
    from clip2sam import errors

    found = {n for n, value in vars(errors).items() if isinstance(value, type)}
    assert {n for n in found if not n.startswith("_")} <= set(clip2sam.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'clip2sam' has no attribute 'nothing'"):
        _ = clip2sam.nothing


def test_the_import_alone_is_light():
    code = (
        "import sys, clip2sam; dir(clip2sam);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_package_says_that_it_is_typed():
    assert (Path(clip2sam.__file__).parent / "py.typed").is_file()
