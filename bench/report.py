"""Results to a Markdown table and one figure. `python -m bench.report RESULTS.json [--figure PNG]` prints the table."""

import argparse
import json
from pathlib import Path
from typing import Any

from scaleearth_pl.core.figures import BLUE, GREEN, GREY, VERMILION, new_figure

NAMES = {
    "T0": "T0 HF Trainer + PEFT, defaults",
    "T1": "T1 TRL SFTTrainer, defaults",
    "T2": "T2 TRL tuned",
    "T3": "T3 ours, K = 1",
}

BARS = (
    ("K = 100 against T2", "10x", "18x"),
    ("K = 16 against T2", "6x", "9x"),
    ("relative gradient error", "1e-5", "2e-6"),
    ("gated over plain LoRA, time", "1.05", "1.02"),
    ("step waiting for data, 2 workers", "5 %", "1 %"),
    ("JPEG decoding against webdataset", "0.9x", "1.0x"),
    ("peak memory, 10 to 100 QAs an image", "+5 %", ""),
    ("evaluation against generate", "6x", "10x"),
)
"""Claim, must, aim, in the order of `figures`."""


def ladder_table(results: dict[str, Any]) -> str:
    """The ladder as Markdown."""
    head = (
        "| trainer | batch | QAs/s, step | against T2 | QAs/s, whole run | against T2 | gradient error | peak memory |"
    )
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for row in results["rows"]:
        name = NAMES.get(row["trainer"], f"**ours, K = {row['k']}**")
        lines.append(
            f"| {name} | {row['batch_size'] or 'trees'} | {row['qas_per_second']:.1f} | {row['ratio_to_t2']:.1f}x "
            f"| {row['whole_qas_per_second']:.1f} | {row['whole_ratio_to_t2']:.1f}x | {row['grad_rel_error']:.1e} "
            f"| {row['peak_bytes'] / 2**20:.0f} MiB |"
        )
    return "\n".join(lines)


def figures(results: dict[str, Any]) -> list[str]:
    """The figure behind each of `BARS`, as text; 'not run' where its section is missing."""
    ours = {row["k"]: row for row in results.get("rows", []) if row["trainer"] == "ours"}

    def of(key: str, text: Any) -> str:
        return text(results[key]) if key in results else "not run"

    def growth(points: list[dict[str, float]]) -> str:
        return f"{max(p['bytes_per_token'] for p in points[1:]) / points[0]['bytes_per_token'] - 1:+.1%}"

    errors = [row["grad_rel_error"] for row in results.get("rows", [])]
    return [
        f"{ours[100]['ratio_to_t2']:.1f}x" if 100 in ours else "not run",
        f"{ours[16]['ratio_to_t2']:.1f}x" if 16 in ours else "not run",
        f"{max(errors):.1e}" if errors else "not run",
        of("gate", lambda rows: ", ".join(f"{r['time_ratio']:.3f} (r {r['rank']}, K {r['k']})" for r in rows)),
        of("waiting", lambda rows: ", ".join(f"{r['wait_share']:.1%} (K {r['k']})" for r in rows)),
        of("loader", lambda x: f"{x['ratio_to_webdataset']:.2f}x"),
        of("memory", growth),
        of("evaluation", lambda x: f"{x['ratio']:.1f}x, {x['identical_answers']:.0%} identical"),
    ]


def bars_table(results: dict[str, Any]) -> str:
    """Claims against bars as Markdown."""
    lines = ["| claim | must | aim | measured |", "|---|---|---|---|"]
    lines += [
        f"| {claim} | {must} | {aim} | {found} |"
        for (claim, must, aim), found in zip(BARS, figures(results), strict=True)
    ]
    return "\n".join(lines)


def markdown(results: dict[str, Any]) -> str:
    """Both tables under one line that says where they come from."""
    origin = f"{results['hardware']}, {results['threads']} thread(s), {results['clock']}, commit {results['commit']}."
    parts = [origin, ladder_table(results) if results.get("rows") else "", bars_table(results)]
    return "\n\n".join(part for part in parts if part)


def draw(results: dict[str, Any], path: Path) -> None:
    """Ladder, K, visual tokens and question length side by side; panels of sections that were not run stay empty."""
    figure, (ladder_ax, k_ax, visual_ax, length_ax) = new_figure(4)
    rows = results.get("rows", [])
    labels = [row["trainer"] if row["trainer"] != "ours" else f"K={row['k']}" for row in rows]
    rates = [row["qas_per_second"] for row in rows]
    colours = [GREY if row["trainer"] in ("T0", "T1", "T2") else BLUE for row in rows]
    ladder_ax.bar(labels, rates, color=colours)
    for place, row in enumerate(rows):
        ladder_ax.annotate(f"{row['ratio_to_t2']:.1f}x", (place, row["qas_per_second"]), ha="center", va="bottom")
    ladder_ax.set_ylabel("questions per second, forward + backward")
    ladder_ax.set_title(
        f"{results['visual_tokens']} visual tokens, {results['branch_tokens']:.0f} text tokens a question"
    )
    points = results.get("over_k", [])
    _lines(k_ax, points, "k", "ratio_to_k1", "K, questions per image", "rate over K = 1")
    _lines(
        visual_ax,
        results.get("over_visual_tokens", []),
        "visual_tokens",
        "ratio_to_t2",
        "visual tokens",
        "rate over T2",
    )
    _lines(
        length_ax, results.get("over_length", []), "branch_tokens", "ratio_to_t2", "tokens per question", "rate over T2"
    )
    figure.savefig(path)


def _lines(ax: Any, points: list[dict[str, float]], x: str, y: str, x_label: str, y_label: str) -> None:
    xs = [p[x] for p in points]
    ax.plot(xs, [p[y] for p in points], "o-", color=VERMILION, label="measured")
    ax.plot(xs, [p["token_ratio"] for p in points], "--", color=GREEN, label="ratio of tokens")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xticks(xs, [f"{v:.0f}" for v in xs])
    ax.set_xticks([], minor=True)
    ax.set_xlabel(x_label)
    ax.set_ylabel(y_label)
    ax.legend(frameon=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text())
    print(markdown(results))
    if arguments.figure:
        draw(results, arguments.figure)


if __name__ == "__main__":
    main()
