"""Draw the ratios of `speed.py` and `whole.py` as one figure, and print them as a table.

python benchmarks/draw.py benchmarks/results/*.json --output benchmarks/results/speed.png
"""

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def rows_of(files: list[Path]) -> list[dict[str, Any]]:
    """All rows with a ratio, each with what its file says of the machine."""
    rows = []
    for file in files:
        report = json.loads(file.read_text())
        about = {key: report[key] for key in ("commit", "device", "threads")}
        rows += [row | about for row in report["rows"] if "ratio" in row]
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line a row."""
    lines = [
        "| | published, s | ours, s | times faster (least, most) | agreement | commit |",
        "|" + " --- |" * 6,
    ]
    for row in rows:
        agreement = f"relative error {row['error']:.1e}" if "error" in row else ""
        if "identical" in row:
            agreement = f"{row['identical']:.0%} of RLEs identical"
        lines.append(
            f"| {row['name']} | {row['published, s']:.3g} | {row['ours, s']:.3g} | "
            f"**{row['ratio']:.3g}** ({row['ratio, least']:.3g}, {row['ratio, most']:.3g}) | "
            f"{agreement} | {row['commit']} |"
        )
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]]) -> Figure:
    """Bars on a logarithmic scale, with the least and the most ratio of a pair."""
    figure = Figure(figsize=(9, 0.6 + 0.34 * len(rows)), layout="constrained")
    ax = figure.subplots()
    ratios = [row["ratio"] for row in rows]
    spread = [
        [r["ratio"] - r["ratio, least"] for r in rows],
        [r["ratio, most"] - r["ratio"] for r in rows],
    ]
    ax.barh([row["name"] for row in rows], ratios, xerr=spread, color="#0072B2", ecolor="#444444")
    for i, row in enumerate(rows):
        ax.annotate(
            f"{row['ratio']:.3g}",
            (row["ratio, most"], i),
            (6, 0),
            textcoords="offset points",
            va="center",
        )
    ax.axvline(1, color="#D55E00", linestyle="--")
    ax.set(
        xscale="log", xlabel="times as fast as the published recipe", xlim=(0.8, 2.2 * max(ratios))
    )
    ax.invert_yaxis()
    ax.set_title(
        f"{rows[0]['device']}, {rows[0]['threads']} threads: median of pairs, side by side",
        fontsize=10,
    )
    return figure


def main() -> None:
    """Read, print, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    rows = rows_of(given.files)
    print(table(rows))
    draw(rows).savefig(given.output, dpi=90)


if __name__ == "__main__":
    main()
