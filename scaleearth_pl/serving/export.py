"""`scaleearth export RUN --grid 0.1:30:0.08dex --out DIR`: a gated adapter as ordinary LoRA folders, one a scale.

    scaleearth export RUN --gsd-m 0.5 --out DIR              one folder: DIR/gsd-0p5m
    scaleearth export RUN --grid 0.1:30:0.08dex --out DIR    a bank over GSDs, sigma = 0
    scaleearth export RUN --grid ... --sigma 0 0.3 --out DIR the same, with a sigma axis for predicted GSDs
    scaleearth export RUN --native --out DIR [--push-to ORG/NAME]     not folded: the native format with a model card

Each folder is bare PEFT: `adapter_config.json` and `adapter_model.safetensors`, a sorted list of projections, no
`modules_to_save`, keys with `language_model`. Each is loaded back *through PEFT* on the dequantised base, compared with
the gated model, and refused if it differs, or if it equals the base (`verify.py`). Scales at which a fold would not be
the model that was evaluated are refused before (`foldable.py`). `bank.json` says what a nearest neighbour costs;
docs/serving.md how to serve it. GSDs are metres per pixel *seen by the model*.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from rich.progress import track

from scaleearth_pl.core.console import command, console
from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.files import lines_of, replacing_folder, write_json
from scaleearth_pl.core.gsd import log10_gsd
from scaleearth_pl.core.run_files import SSE_U
from scaleearth_pl.loading.model import LoadedModel
from scaleearth_pl.model.adapter_files import read_json, write_tensors
from scaleearth_pl.model.adapter_io import PEFT_CONFIG, PEFT_WEIGHTS
from scaleearth_pl.model.backbone import silence_loading
from scaleearth_pl.serving.bank import BANK, Bank, BankEntry, PolicyError
from scaleearth_pl.serving.dequantise import dequantise
from scaleearth_pl.serving.engine import Assistant
from scaleearth_pl.serving.fold import FoldErrors, FoldScale, UpdateMetric, cell, cell_errors, fold, parse_grid
from scaleearth_pl.serving.foldable import check_foldable, hears_sigma, pinned_gsd_m
from scaleearth_pl.serving.native import check_replaceable, check_repository, push, save_pretrained
from scaleearth_pl.serving.options import add_run_options, run_of
from scaleearth_pl.serving.verify import Difference, Verifier, check, check_keys, tolerance_of

Dtype = Literal["float32", "bfloat16"]

METADATA_SIGMAS = {"metadata, exact": 0.01, "metadata, nominal": 0.05}
"""Sigmas that the gate is told under policy "metadata", in decades (docs/contracts.md)."""

EVERY_GSD_M = (1e-30, 1e30)
"""The cell of a folder that serves every image, because its gate was trained at one GSD whatever the image's."""


@command
def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit status."""
    args = _parser().parse_args(argv)
    screen = console(highlight=False)
    silence_loading()
    _check_together(args)
    loaded = run_of(args)
    if args.native:
        save_pretrained(loaded, args.out, base_name=args.base_name, with_base=args.with_base, repo_id=args.push_to)
        where = str(args.out) if args.push_to is None else push(args.out, args.push_to, private=not args.public)
        screen.print(f"native adapter with model card: {where}", soft_wrap=True)
        return 0
    grid, sigmas = args.gsd_m or parse_grid(args.grid), sorted(set(args.sigma or (0.0,)))
    bank = export_bank(
        loaded,
        [FoldScale(gsd_m=gsd_m, sigma_log10=sigma) for sigma in sigmas for gsd_m in sorted(set(grid))],
        args.out,
        base_name=args.base_name,
        dtype=args.dtype or "float32",
        verify=args.verify,
    )
    screen.print(summary(bank, args.out), soft_wrap=True)
    return 0


def _check_together(args: argparse.Namespace) -> None:
    """What needs no model to be refused."""
    if not args.native and (args.push_to or args.with_base):
        raise ConfigError("--push-to and --with-base go with --native", remedy="folded folders are uploaded by hand")
    if args.native and (args.sigma or args.dtype or not args.verify):
        raise ConfigError(
            "--sigma, --dtype and --no-verify say how to fold, and --native folds nothing",
            field="native",
            value={"sigma": args.sigma, "dtype": args.dtype, "verify": args.verify},
            remedy="leave them out, or give --gsd-m or --grid",
        )
    if args.public and args.push_to is None:
        raise ConfigError("--public says who may see what --push-to uploads", remedy="give --push-to ORGANISATION/NAME")
    if args.push_to is not None:
        check_repository(args.push_to)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scaleearth export", description="Folds a gated adapter for PEFT and servers."
    )
    add_run_options(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--gsd-m", type=float, nargs="+", metavar="M", help="metres per pixel seen by the model")
    what.add_argument("--grid", metavar="LOW:HIGH:STEPdex", help="such as 0.1:30:0.08dex")
    what.add_argument("--native", action="store_true", help="not folded: all of the adapter, with a model card")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--sigma", type=float, nargs="+", metavar="DECADES", help="sigma axis; default: 0")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the folded matrices; default: float32")
    parser.add_argument("--no-verify", dest="verify", action="store_false", help="do not load back through PEFT")
    parser.add_argument("--base-name", help="what to record as base: a hub name, or the folder export-base wrote")
    parser.add_argument("--with-base", action="store_true", help="with --native: copy the base into the folder")
    parser.add_argument("--push-to", metavar="ORG/NAME", help="with --native: upload to the hub")
    parser.add_argument("--public", action="store_true", help="with --push-to: a new repository is public")
    return parser


def export_bank(
    loaded: LoadedModel,
    scales: Sequence[FoldScale],
    out: Path,
    *,
    base_name: str | None = None,
    dtype: Dtype = "float32",
    verify: bool = True,
) -> Bank:
    """Folds at every scale, checks every folder, writes `bank.json`; `out` appears whole or not at all.

    Args:
        loaded: from `load_model`; its 4-bit layers are dequantised, in place.
        scales: sorted by GSD inside each sigma.
        out: replaced if it is a bank.
        base_name: recorded as the folders' base; None keeps what the adapter names.
        dtype: of the folded matrices.
        verify: load every folder back through PEFT and compare.

    Raises:
        ConfigError: `out` holds something else, two scales of one name, PEFT is absent, or no fold at these scales is
            the model that was evaluated.
        CheckpointError: a folder is not the gated model, or is the base.
    """
    started = time.perf_counter()
    check_foldable(loaded, scales)
    _check_target(out, scales)
    was_four_bit = dequantise(loaded.model.backbone) > 0
    metric, adapters = UpdateMetric(loaded.model.adapters), loaded.model.adapters
    config = read_json(loaded.adapter.path / PEFT_CONFIG)
    config["base_model_name_or_path"] = base_name or config["base_model_name_or_path"]
    verifier, run = Verifier(Assistant(loaded)) if verify else None, loaded.adapter.path.parent
    tolerance = tolerance_of(dtype, loaded.adapter.meta.extra.get("dtype", "float32"))
    n_bytes = sum(t.nbytes for t in fold(adapters, scales[0], dtype=getattr(torch, dtype)).values())
    entries = []
    with replacing_folder(out, n_bytes * len(scales)) as new:
        for scale in track(scales, description="folding", console=console(stderr=True), disable=len(scales) < 2):
            folder = new / scale.name
            _write_fold(folder, fold(adapters, scale, dtype=getattr(torch, dtype)), config)
            found = None
            if verifier is not None:
                (found,) = verifier.compare([folder], [scale])
                check(found, folder, tolerance=tolerance)
            cell_m, errors = _cell(loaded, scale, scales, metric)
            entries.append(_entry(scale, cell_m, errors, folder, found))
        bank = Bank(
            base=config["base_model_name_or_path"],
            adapter=str(loaded.adapter.path),
            processor={"min_pixels": loaded.settings.min_pixels, "max_pixels": loaded.settings.max_pixels},
            dtype=dtype,
            tolerance=tolerance if verify else None,
            entries=tuple(entries),
            policy_errors=tuple(policy_errors(metric, scales, run)) if hears_sigma(loaded) else (),
            seconds=round(time.perf_counter() - started, 2),
            notes=_notes(was_four_bit, base_name, pinned_gsd_m(loaded)),
        )
        bank.write(new)
    return bank


def _write_fold(folder: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> None:
    """One fold as PEFT reads it."""
    folder.mkdir()
    check_keys(folder, list(tensors))
    write_json(folder / PEFT_CONFIG, config)
    write_tensors(folder / PEFT_WEIGHTS, tensors)


def _check_target(out: Path, scales: Sequence[FoldScale]) -> None:
    names = [scale.name for scale in scales]
    if len(set(names)) < len(names):
        raise ConfigError("two scales of one name", field="gsd_m", value=sorted(names), remedy="widen the step")
    check_replaceable(out, BANK)


def _cell(
    loaded: LoadedModel, scale: FoldScale, scales: Sequence[FoldScale], metric: UpdateMetric
) -> tuple[tuple[float, float], FoldErrors]:
    """(low, high) in metres of the cell of a fold among the scales of its sigma, and the worst errors there."""
    if pinned_gsd_m(loaded) is not None:
        return EVERY_GSD_M, FoldErrors(gate=0.0, update=0.0)
    row = [log10_gsd(s.gsd_m) for s in scales if s.sigma_log10 == scale.sigma_log10]
    low, high = cell(row, row.index(log10_gsd(scale.gsd_m)))
    return (10**low, 10**high), cell_errors(metric, scale, (low, high))


def _entry(
    scale: FoldScale, cell_m: tuple[float, float], errors: FoldErrors, folder: Path, found: Difference | None
) -> BankEntry:
    """The entry of one folder."""
    return BankEntry(
        name=scale.name,
        gsd_m=scale.gsd_m,
        sigma_log10=scale.sigma_log10,
        low_m=cell_m[0],
        high_m=cell_m[1],
        gate_error=errors.gate,
        update_error=errors.update,
        n_bytes=sum(file.stat().st_size for file in folder.iterdir()),
        difference_to_gated=None if found is None else found.to_gated,
        difference_to_base=None if found is None else found.to_base,
        difference_absolute=None if found is None else found.to_gated_absolute,
    )


def policy_errors(metric: UpdateMetric, scales: Sequence[FoldScale], run: Path) -> list[PolicyError]:
    """What choosing by GSD alone costs where the gate would know a sigma; worst over the bank's own GSDs.

    SSE-U's sigma is the median over the run's test images, and beside it that of the least sure twentieth, because the
    images that show no scale have several times the sigma of the others. Without `sse_u.jsonl` a table stands in.
    """
    sharp = [scale for scale in scales if scale.sigma_log10 == 0]
    sigmas = dict(METADATA_SIGMAS)
    file = run / SSE_U
    if file.is_file():
        rows = [json.loads(line) for line in lines_of(file.read_text(encoding="utf-8"))]
        every = sorted(row["sigma"] for row in rows)
        sse_u = statistics.median(every)
        sigmas |= {"predicted, median sigma": sse_u, "predicted, 95th percentile": every[int(0.95 * len(every))]}
        sigmas |= {f"fused, {name}": sigma * sse_u / (sigma**2 + sse_u**2) ** 0.5 for name, sigma in _short().items()}
    else:
        sigmas |= {f"predicted, sigma {sigma:g}": sigma for sigma in (0.1, 0.3, 0.5)}
    found = []
    for policy, sigma in sigmas.items():
        worst = [metric.errors(s, torch.tensor([log10_gsd(s.gsd_m)]), torch.tensor([sigma])) for s in sharp]
        if worst:
            gate, update = max(e.gate for e in worst), max(e.update for e in worst)
            found.append(PolicyError(policy=policy, sigma_log10=sigma, gate_error=gate, update_error=update))
    return found


def _short() -> dict[str, float]:
    return {name.removeprefix("metadata, "): sigma for name, sigma in METADATA_SIGMAS.items()}


def _notes(was_four_bit: bool, base_name: str | None, pinned_m: float | None) -> tuple[str, ...]:
    notes = ["GSDs are metres per pixel seen by the model, after its resizing"]
    if pinned_m is not None:
        notes.append(f"the gate was trained at {pinned_m:g} m alone: the folder serves images of every GSD")
    if was_four_bit:
        notes.append("trained on a 4-bit base: serve on what `scaleearth export-base` writes, not on the original")
    if was_four_bit and base_name is None:
        notes.append("the recorded base is the one before quantisation; give --base-name")
    return tuple(notes)


def summary(bank: Bank, out: Path) -> str:
    """What was written, and what it costs, in lines."""
    entries: Sequence[Any] = bank.entries
    size = sum(entry.n_bytes for entry in entries)
    lines = [
        f"{len(entries)} folded adapter(s) in {out}: {size / 2**20:.1f} MiB, {bank.seconds:.1f} s",
        f"nearest neighbour: no gate off by more than {max(e.gate_error for e in entries):.3f}, "
        f"the update by {max(e.update_error for e in entries):.1%}",
    ]
    if bank.tolerance is not None:
        worst, least = max(e.difference_to_gated for e in entries), min(e.difference_to_base for e in entries)
        logit = max(e.difference_absolute for e in entries)
        lines.append(
            f"read back through PEFT: {worst:.1e} of the largest logit from the gated model ({logit:.1e} absolute), "
            f"{least:.2g} or more from the base"
        )
    lines += [
        f"without a sigma axis, {e.policy} ({e.sigma_log10:.2g}): gates {e.gate_error:.3f}, update {e.update_error:.1%}"
        for e in bank.policy_errors
    ]
    return "\n".join([*lines, *(f"note: {note}" for note in bank.notes)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
