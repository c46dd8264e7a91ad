"""Run the notebooks from top to bottom and store them with their outputs.

    .venv/bin/python scripts/run_notebooks.py [notebooks/01_first_masks.ipynb ...]

Each runs in a new empty folder and with one thread.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
LARGEST = 1_500_000
"""Bytes of a stored notebook."""


class ThisPython(AsyncKernelManager):
    """A kernel of the Python that runs this, no matter which kernels are installed."""

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(
            argv=[
                sys.executable,
                "-m",
                "ipykernel_launcher",
                "-f",
                "{connection_file}",
                "--log-level=ERROR",
            ]
        )


def execute(notebook: nbformat.NotebookNode, seconds: int = 600) -> None:
    """Run a notebook anew. A cell that raises, or takes longer than `seconds`, raises here.

    Metadata that differs between runs or machines (times, kernels) is left out.
    """
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=seconds,
            startup_timeout=seconds,
            resources={"metadata": {"path": folder}},
            kernel_manager_class=ThisPython,
            record_timing=False,
            coalesce_streams=True,
        )
        # without ipywidgets, tqdm (loaded by open_clip) warns with its own path
        quiet = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore:IProgress not found"}
        client.execute(env={**os.environ, **quiet})
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="*", type=Path, help="all of them when left out")
    for path in parser.parse_args().notebooks or sorted(FOLDER.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        execute(notebook)
        text = nbformat.writes(notebook) + "\n"
        if len(text) > LARGEST:
            raise SystemExit(
                f"{path.name} would have {len(text)} bytes, {LARGEST} are allowed: "
                "show smaller images"
            )
        path.write_text(text)
        print(f"{path.name}: {len(text)} bytes")


if __name__ == "__main__":
    main()
