"""Plant known faults, one at a time, and show that the tests see them. Not part of CI.

    scripts/mutants [--only TEXT ...] [--jobs 2] [--check]

Every fault of `faults.py` is written into a copy of the project (the working tree stays as it is),
and the tests that concern it run there until the first one fails. Prints a Markdown table and the
share of killed faults; exit status 1 below 95 %, 2 if a fault can't be planted or the tests fail
without any fault.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from faults import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[1]
REQUIRED = 0.95
LIMIT = 300
"""Seconds for the tests of one fault; a fault that makes them hang counts as killed."""


@dataclass(frozen=True)
class Outcome:
    fault: Fault
    killed: bool
    by: str
    """The first test that failed."""
    seconds: float


class CannotRun(Exception):
    """Nothing can be said of the faults; the message says why."""


def planted(fault: Fault, root: Path) -> str:
    """The text of the fault's file with the fault in it."""
    path = root / fault.file
    if not path.is_file():
        raise CannotRun(f"{fault.name}: there is no {fault.file}")
    text = path.read_text()
    if text.count(fault.old) != 1:
        raise CannotRun(
            f"{fault.name}: {text.count(fault.old)} places (expected 1) in {fault.file} read\n"
            f"{fault.old}"
        )
    text = text.replace(fault.old, fault.new)
    try:
        compile(text, fault.file, "exec")
    except SyntaxError as error:
        raise CannotRun(f"{fault.name}: the planted fault is no Python: {error}") from error
    return text


def check(faults: Sequence[Fault]) -> None:
    """Raise CannotRun, naming all of them, if some faults don't fit the project as it is."""
    wrong = [f"{name}: {n} faults have this name" for name, n in count_names(faults) if n > 1]
    for fault in faults:
        try:
            planted(fault, ROOT)
        except CannotRun as error:
            wrong.append(str(error))
        wrong += [f"{fault.name}: there is no {t}" for t in fault.tests if not (ROOT / t).is_file()]
    if wrong:
        raise CannotRun("\n".join(wrong))


def count_names(faults: Sequence[Fault]) -> list[tuple[str, int]]:
    return list(Counter(fault.name for fault in faults).items())


def copy_project(target: Path) -> None:
    """The working tree's own files, tracked or not, without what git ignores."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file():  # a deleted file is still listed
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def run_tests(tests: Sequence[str], folder: Path, limit: float) -> tuple[int, str]:
    """Exit status and output of pytest in a copy; status -1 if it took longer than `limit`."""
    own = {
        "PYTHONPATH": str(folder),  # before the installed package, also for other processes
        "PYTHONDONTWRITEBYTECODE": "1",  # bytecode of the same second and size would be reused
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider"]
    process = subprocess.Popen(
        [*command, "--hypothesis-seed=0", *tests],
        cwd=folder,
        env=os.environ | own,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return -1, f"no end within {limit:g} s"
    return process.returncode, output


def try_fault(fault: Fault, folder: Path) -> Outcome:
    path, began = folder / fault.file, time.monotonic()
    original = path.read_text()
    path.write_text(planted(fault, folder))
    try:
        status, output = run_tests(fault.tests, folder, LIMIT)
    finally:
        path.write_text(original)
    if status not in (-1, 0, 1, 2):  # 2: the fault already breaks an import
        raise CannotRun(f"{fault.name}: pytest ended with {status}\n{output}")
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    by = failed[1].removeprefix("tests/") if failed else output if status < 0 else ""
    return Outcome(fault, status != 0, by, time.monotonic() - began)


def check_without_faults(faults: Sequence[Fault], folder: Path) -> None:
    tests = sorted({test for fault in faults for test in fault.tests})
    where = [sys.executable, "-c", "import clip2sam; print(clip2sam.__file__)"]
    own = os.environ | {"PYTHONPATH": str(folder)}
    used = subprocess.run(where, cwd=folder, env=own, capture_output=True, text=True, check=True)
    if not Path(used.stdout.strip()).is_relative_to(folder):
        raise CannotRun(f"the tests would run {used.stdout.strip()} and not the copy in {folder}")
    status, output = run_tests(tests, folder, 10 * LIMIT)
    if status != 0:
        raise CannotRun(f"the tests fail without any fault:\n{output}")


def try_all(faults: Sequence[Fault], jobs: int) -> list[Outcome]:
    """Each job has a copy of its own."""
    folders: SimpleQueue[Path] = SimpleQueue()

    def work(fault: Fault) -> Outcome:
        folder = folders.get()
        try:
            outcome = try_fault(fault, folder)
        finally:
            folders.put(folder)
        print("killed  " if outcome.killed else "SURVIVED", fault.name, file=sys.stderr)
        return outcome

    with tempfile.TemporaryDirectory(prefix="mutants-") as base:
        for job in range(jobs):
            copy_project(Path(base, str(job)))
            folders.put(Path(base, str(job)))
        check_without_faults(faults, Path(base, "0"))
        with ThreadPoolExecutor(jobs) as pool:
            return list(pool.map(work, faults))


def table(outcomes: Sequence[Outcome]) -> str:
    lines = [
        "| fault | file | result | first test that fails | s |",
        "| --- | --- | --- | --- | --- |",
    ]
    for o in outcomes:
        result = "killed" if o.killed else "**survived**"
        lines.append(f"| {o.fault.name} | {o.fault.file} | {result} | {o.by} | {o.seconds:.0f} |")
    killed = sum(o.killed for o in outcomes)
    lines.append(f"\n{killed} of {len(outcomes)} faults killed ({killed / len(outcomes):.1%}).")
    return "\n".join(lines)


def main() -> int:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", help="faults whose name or file has one of these texts"
    )
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (default: 2)")
    parser.add_argument("--check", action="store_true", help="only: does every fault fit the code?")
    options = parser.parse_args()
    only = options.only or [""]
    faults = [f for f in FAULTS if any(text in f"{f.name} {f.file}" for text in only)]
    try:
        if not faults:
            raise CannotRun(f"no fault is called like {only}")
        check(faults)
        if options.check:
            print(f"{len(faults)} faults fit")
            return 0
        outcomes = try_all(faults, options.jobs)
    except CannotRun as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(outcomes))
    return 0 if sum(o.killed for o in outcomes) >= REQUIRED * len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
