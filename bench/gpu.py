"""The ladder at the shape of the 8B model: random weights, NF4, bfloat16; called by h200.sh, fits ten minutes.

Random weights are as fast as trained ones, so nothing is downloaded. The model is made on the device and its LLM blocks
are quantised in place (`from_pretrained` would need a 17 GB file first); what is measured is the very `Linear4bit` that
training uses. Printed: questions per second, ratio to T2, fraction of the arithmetic floor, peak memory, and how far
bfloat16 gradients are from a float32 reference, ours beside the baseline's own: packing must not add to that error.

Floor: 6 operations per weight and token less the gradient of frozen weights, 28.8 GFLOP a
token for 6.946 B linear weights and rank 64, at the device's dense bfloat16 peak as realised by large products.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn
from transformers import Qwen3VLForConditionalGeneration

from bench.__main__ import hardware
from bench.gradients import reference_gradients, relative_error
from bench.memory import peak_bytes
from bench.ours import Contender, LoraShape, forward_backward, gradients, randomise_b
from bench.peers import Peer, quiet
from bench.shapes import Bank, Shape, write_corpus
from bench.timing import interleave, rates, ratio, that_fit
from scaleearth_pl.core.commit import current_commit
from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.tokens import TokenIds
from scaleearth_pl.model.backbone import shape_config, tiny_config
from scaleearth_pl.model.gated_lora import AdapterConfig
from scaleearth_pl.model.scaleearth import ScaleEarth
from scaleearth_pl.model.shared_image import Attention, set_attention
from scaleearth_pl.model.surgery import keep_rotary_exact, replace_patch_embed_conv, skip_unread_rows

TERA_OPERATIONS = 790.0
"""Large bfloat16 products a second on H100 and H200, in 1e12 operations."""

MICRO_TOKENS = 9_000
T2_BATCH_SIZES = (8, 16, 32)


def random_nf4(size: str, ids: TokenIds, device: torch.device, dtype: torch.dtype, *, attention: Attention) -> Any:
    """A random Qwen3-VL of that shape with its LLM blocks in NF4 (double quantisation); equal seeds, equal weights."""
    shape = tiny_config(ids.vocab_size) if size == "tiny" else shape_config(size)  # type: ignore[arg-type]
    for name in ("image_pad", "video_pad", "vision_start", "vision_end"):
        setattr(shape, f"{name.removesuffix('_pad')}_token_id", getattr(ids, name))
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with device:
        model = Qwen3VLForConditionalGeneration(shape)
    torch.set_default_dtype(torch.float32)
    set_attention(model, attention)
    replace_patch_embed_conv(model)
    skip_unread_rows(model)
    keep_rotary_exact(model)
    for layer in model.model.language_model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, linear in list(parent.named_children()):
                if isinstance(linear, nn.Linear):
                    setattr(parent, name, _quantised(linear, device, dtype))
    model.is_loaded_in_4bit = True
    return model.to(dtype).requires_grad_(False)


def _quantised(linear: nn.Linear, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """uint8 storage, so that a cast of the model leaves the packed weights alone."""
    made = bnb.nn.Linear4bit(
        linear.in_features, linear.out_features, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta"
    )
    weight = linear.weight.detach().cpu() if device.type == "cpu" else linear.weight.detach()
    made.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True).to(device)
    made.weight.quant_state.dtype = dtype  # the backward writes the weight out in this, the forward in its input's
    return made


def ours(
    size: str, bank: Bank, lora: LoraShape, device: torch.device, dtype: torch.dtype, attention: Attention
) -> ScaleEarth:
    """ScaleEarth on such a backbone, adapters in float32."""
    backbone = random_nf4(size, bank.processor.token_ids, device, dtype, attention=attention)
    return ScaleEarth(backbone=backbone, adapters=AdapterConfig(rank=lora.rank, lora_alpha=lora.lora_alpha)).train()


def bf16_errors(size: str, bank: Bank, lora: LoraShape, device: torch.device) -> dict[str, float]:
    """Relative error of bfloat16 gradients against float32, plain sequences: ours packed, and the baseline's own."""
    numbers, found = range(8), {}
    passes: tuple[tuple[str, torch.dtype, Attention], ...] = (
        ("reference", torch.float32, "sdpa"),
        ("baseline", torch.bfloat16, "sdpa"),
        ("ours", torch.bfloat16, "tree"),
    )
    for name, dtype, attention in passes:
        model = ours(size, bank, lora, device, dtype, attention)
        randomise_b(model)
        if name == "ours":
            forward_backward(model, [bank.trees(numbers, k=len(numbers))])
            found[name] = gradients(model)
        else:
            found[name] = reference_gradients(model, bank, numbers)
        del model
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return {name: relative_error(found[name], found["reference"]) for name in ("baseline", "ours")}


def speed(
    size: str, bank: Bank, lora: LoraShape, device: torch.device, folder: Path, rounds: int
) -> list[dict[str, Any]]:
    """Rows of T2 at each batch size, T3, and ours at K = 16, 32, 100."""
    plain = random_nf4(size, bank.processor.token_ids, device, torch.bfloat16, attention="sdpa")
    peer = Peer("T2", bank, folder, lora=lora, model=plain, bf16=True)
    work: dict[str, Any] = {f"T2-{batch_size}": peer.turn(batch_size) for batch_size in T2_BATCH_SIZES}
    model = ours(size, bank, lora, device, torch.bfloat16, "tree")
    for k, numbers in turns_of(bank.shape.questions).items():
        contender = Contender(model, bank, numbers, k=k, micro_tokens=MICRO_TOKENS)
        work["T3" if k == 1 else f"ours-{k}"] = contender.work
    seconds = interleave(that_fit(work), rounds=rounds, warm_up=False)
    rate = rates(seconds)
    best = max((name for name in work if name.startswith("T2")), key=lambda name: rate[name])
    return [
        {
            "trainer": name.partition("-")[0],
            "k": 1 if name.startswith("T") else int(name.partition("-")[2]),
            "batch_size": int(name.partition("-")[2]) if name.startswith("T2") else 0,
            "visual_tokens": bank.shape.visual_tokens,
            "qas_per_second": rate[name],
            "ratio_to_t2": 1 / ratio(seconds, name, best),
            "fraction_of_floor": rate[name] / floor(bank, 1 if name.startswith("T") else int(name.partition("-")[2])),
            "peak_bytes": peak_bytes(work[name]),
        }
        for name in work
    ]


def turns_of(n_questions: int) -> dict[int, range]:
    """Which questions ours answers in a turn, by K: whole trees of images of `n_questions`.

    Raises:
        ConfigError: an image that fills no tree of 32.
    """
    if n_questions < 32:
        raise ConfigError("no tree of 32 is filled", field="--questions", value=n_questions, remedy="give 32 or more")
    whole = {k: range(n_questions // k * k) for k in (16, 32)}
    return {1: range(32)} | whole | {n_questions: range(3 * n_questions)}


def floor(bank: Bank, k: int) -> float:
    """Questions per second if every operation of the 8B model ran at the peak of large products."""
    tokens = bank.n_branch_tokens + (bank.shape.visual_tokens + 5) / k
    return TERA_OPERATIONS * 1e12 / (28.8e9 * tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="8b", choices=("tiny", "2b", "4b", "8b"))
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--questions", type=int, default=100, help="an image, at least 32; fewer for a dry run on a CPU"
    )
    parser.add_argument("--visual-tokens", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path("bench/results/gpu.json"))
    arguments = parser.parse_args()
    turns_of(arguments.questions)  # before minutes are spent
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lora = LoraShape(rank=arguments.rank)
    origin = {"hardware": hardware(), "commit": current_commit()}
    results: dict[str, Any] = {"schema": "scaleearth-bench-gpu/1"} | origin
    results |= {"size": arguments.size, "rank": arguments.rank}
    with tempfile.TemporaryDirectory() as scratch, quiet():
        shape = Shape(questions=arguments.questions, visual_tokens=arguments.visual_tokens)
        bank = Bank(write_corpus(Path(scratch) / "corpus", shape), shape, device=device)
        results["bf16_error"] = bf16_errors(arguments.size, bank, lora, device)
        print(results["bf16_error"], flush=True)
        results["rows"] = speed(arguments.size, bank, lora, device, Path(scratch), arguments.rounds)
        for row in results["rows"]:
            error = results["bf16_error"]["baseline" if row["trainer"] == "T2" else "ours"]
            row |= {"grad_rel_error": error} | origin
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    for row in results["rows"]:
        print(
            f"{row['trainer']:5} K={row['k']:<4} {row['qas_per_second']:8.1f} QAs/s {row['ratio_to_t2']:6.1f}x of T2 "
            f"{row['fraction_of_floor']:6.1%} of the floor {row['peak_bytes'] / 2**30:6.1f} GiB"
        )


if __name__ == "__main__":
    main()
