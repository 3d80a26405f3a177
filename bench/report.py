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

    def waited(rows: list[dict[str, Any]]) -> str:
        shares = ", ".join(f"{r['wait_share']:.1%} (K {r['k']})" for r in rows)
        starts = [r["epoch_start_seconds"] for r in rows if r.get("epoch_start_seconds") is not None]
        return shares + (f"; start of an epoch {max(starts):.2f} s" if starts else "")

    errors = [row["grad_rel_error"] for row in results.get("rows", []) if row["trainer"] in ("T3", "ours")]
    return [
        f"{ours[100]['ratio_to_t2']:.1f}x" if 100 in ours else "not run",
        f"{ours[16]['ratio_to_t2']:.1f}x" if 16 in ours else "not run",
        f"{max(errors):.1e}" if errors else "not run",
        of("gate", lambda rows: ", ".join(f"{r['time_ratio']:.3f} (r {r['rank']}, K {r['k']})" for r in rows)),
        of("waiting", waited),
        of("loader", lambda x: f"{x['ratio_to_webdataset']:.2f}x"),
        of("memory", growth),
        of(
            "evaluation",
            lambda x: (
                f"{x['ratio']:.1f}x, {x['identical_answers']:.0%} of answers identical ({x['distinct_answers']} distinct texts)"
            ),
        ),
    ]


def bars_table(results: dict[str, Any]) -> str:
    """Claims against bars as Markdown."""
    lines = ["| claim | must | aim | measured |", "|---|---|---|---|"]
    lines += [
        f"| {claim} | {must} | {aim} | {found} |"
        for (claim, must, aim), found in zip(BARS, figures(results), strict=True)
    ]
    return "\n".join(lines)


def held_out_table(results: dict[str, Any]) -> str:
    """Held-out loss by K as Markdown; empty where it was not run."""
    found = results.get("held_out")
    if not found:
        return ""
    head = (
        "| K | questions a tree, mean | steps | loss after the same questions "
        "| loss after the same time | questions in that time |"
    )
    lines = [
        f"| {p['k']} | {p['mean_k']:.1f} | {p['steps']} | {p['loss_at_equal_questions']:.4f} "
        f"| {p['loss_at_equal_time']:.4f} | {p['questions_at_equal_time']:,} |"
        for p in found["points"]
    ]
    return "\n".join([head, "|---|---|---|---|---|---|", *lines])


def markdown(results: dict[str, Any]) -> str:
    """The tables under one line that says where they come from."""
    origin = f"{results['hardware']}, {results['threads']} thread(s), {results['clock']}, commit {results['commit']}."
    parts = [origin, ladder_table(results) if results.get("rows") else "", bars_table(results)]
    parts.append(held_out_table(results))
    return "\n\n".join(part for part in parts if part)


def draw(results: dict[str, Any], path: Path) -> None:
    """Ladder, K, visual tokens and question length side by side; a panel whose section was not run says so."""
    figure, (ladder_ax, k_ax, visual_ax, length_ax) = new_figure(4, panel_size=(4.2, 3.7))
    _bars(ladder_ax, results)
    panels = (
        (k_ax, "over_k", "k", "ratio_to_k1", "K, questions per image", "times the rate of K = 1"),
        (visual_ax, "over_visual_tokens", "visual_tokens", "ratio_to_t2", "visual tokens", "times the rate of T2"),
        (length_ax, "over_length", "branch_tokens", "ratio_to_t2", "tokens per question", "times the rate of T2"),
    )
    for ax, section, x, y, x_label, y_label in panels:
        ax.set_xlabel(x_label)
        ax.set_ylabel(y_label)
        _lines(ax, results.get(section, []), x, y)
    k_ax.set_title("one model, trees of K", fontsize=10)
    for ax in (visual_ax, length_ax):
        ax.set_title("K = 100 against TRL tuned", fontsize=10)
    figure.savefig(path)


def _bars(ax: Any, results: dict[str, Any]) -> None:
    rows = results.get("rows", [])
    if not rows:
        _not_run(ax)
        return
    names = {"T0": "HF", "T1": "TRL", "T2": "TRL\ntuned", "T3": "ours\nK=1"}
    labels = [names.get(row["trainer"], f"ours\nK={row['k']}") for row in rows]
    peers = ("T0", "T1", "T2")
    ax.bar(
        labels, [row["qas_per_second"] for row in rows], color=[GREY if r["trainer"] in peers else BLUE for r in rows]
    )
    for place, row in enumerate(rows):
        ax.annotate(f"{row['ratio_to_t2']:.1f}x", (place, row["qas_per_second"]), ha="center", va="bottom", fontsize=9)
    ax.grid(visible=False, axis="x")
    ax.tick_params(axis="x", labelsize=8)
    ax.margins(y=0.1)
    ax.set_ylabel("questions per second, forward + backward")
    tokens = f"{results['visual_tokens']} visual tokens, {results['branch_tokens']:.0f} text tokens a question"
    ax.set_title(tokens, fontsize=10)


def _lines(ax: Any, points: list[dict[str, float]], x: str, y: str) -> None:
    if not points:
        _not_run(ax)
        return
    xs, ticks = [p[x] for p in points], [0.5, 1, 2, 5, 10, 20, 50, 100]
    ax.plot(xs, [p[y] for p in points], "o-", color=VERMILION, label="measured")
    ax.plot(xs, [p["token_ratio"] for p in points], "--", color=GREEN, label="ratio of tokens computed")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xticks(xs, [f"{v:.0f}" for v in xs])
    ax.set_xticks([], minor=True)
    low, high = ax.get_ylim()
    ax.set_yticks([t for t in ticks if low <= t <= high], [f"{t:g}" for t in ticks if low <= t <= high])
    ax.set_yticks([], minor=True)
    ax.legend(frameon=False, fontsize=9)


def _not_run(ax: Any) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    ax.text(0.5, 0.5, "not run", ha="center", va="center", color=GREY, transform=ax.transAxes)


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
