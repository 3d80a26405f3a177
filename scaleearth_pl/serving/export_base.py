"""`scaleearth export-base RUN --out DIR`: the dequantised base, once, for every folded adapter of that run.

The folder is an ordinary Hugging Face one (weights, tokenizer, image processor, and the chat template that the adapter
was trained with), for PEFT and for servers. `scaleearth_base.json` remembers the hash of the weights that were
quantised, by which `load_model` knows the folder as a base of this adapter. What 4-bit arithmetic differs from it by is
measured on a probe, at three GSDs, and reported: that gap is of the kernel, not of the fold.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from scaleearth_pl.loading.folders import BASE_ORIGIN
from scaleearth_pl.loading.model import LoadedModel
from scaleearth_pl.model.adapter_files import read_json, replacing, write_json
from scaleearth_pl.model.backbone import save_backbone, silence_loading
from scaleearth_pl.serving.dequantise import dequantise
from scaleearth_pl.serving.engine import Assistant
from scaleearth_pl.serving.fold import FoldScale
from scaleearth_pl.serving.native import check_replaceable
from scaleearth_pl.serving.options import add_run_options, run_of
from scaleearth_pl.serving.verify import Verifier, detached, difference

GAP_GSDS_M = (0.1, 1.0, 10.0)
"""Scales at which the 4-bit model is compared with the dequantised one."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}"
    "{% elif 'image' in part.type %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The prompt of `data/processor.py`, for servers; Qwen's own template gives the same text for a user's turn."""


@dataclass(frozen=True, kw_only=True)
class BaseReport:
    """What was written. `gap` is the largest difference of logits, 4-bit against dequantised, relative to the largest."""

    weights_hash: str
    source: str
    n_four_bit: int
    gap: float


def main(argv: Sequence[str]) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="scaleearth export-base", description="Writes the dequantised backbone.")
    add_run_options(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args(argv)
    silence_loading()
    report = export_base(run_of(args), args.out)
    screen = Console(highlight=False)
    screen.print(f"base in {args.out}: {report.n_four_bit} layers dequantised", soft_wrap=True)
    screen.print(f"4-bit arithmetic differs from it by {report.gap:.2e} of the largest logit", soft_wrap=True)
    return 0


def export_base(loaded: LoadedModel, out: Path) -> BaseReport:
    """Writes the base of a loaded model, dequantising it in place; `out` appears whole or not at all.

    Raises:
        ConfigError: `out` holds something else.
    """
    check_replaceable(out, BASE_ORIGIN)
    verifier = Verifier(Assistant(loaded))
    scales = [FoldScale(gsd_m=gsd_m) for gsd_m in GAP_GSDS_M]
    before = [verifier.gated(scale) for scale in scales]
    n_four_bit = dequantise(loaded.model.backbone)
    gap = max(difference(verifier.gated(s), logits) for s, logits in zip(scales, before, strict=True))
    meta = loaded.adapter.meta
    report = BaseReport(weights_hash=meta.base_hash, source=meta.base_path, n_four_bit=n_four_bit, gap=gap)
    with detached(loaded.model), replacing(out, sum(p.nbytes for p in loaded.model.backbone.parameters())) as new:
        save_backbone(loaded.model.backbone, new)
        loaded.processor.save(new)
        _add_template(new)
        write_json(new / BASE_ORIGIN, asdict(report))
    return report


def _add_template(folder: Path) -> None:
    """Servers build prompts from the tokenizer's chat template, which our tiny tokenizer has not."""
    file = folder / "tokenizer_config.json"
    row = read_json(file)
    if "chat_template" not in row and not (folder / "chat_template.jinja").is_file():
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
