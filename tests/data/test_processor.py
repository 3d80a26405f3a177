import math

import numpy as np
import pytest
from fakes.corpus import fake_sample
from PIL import Image
from transformers import Qwen2VLImageProcessorPil

from scaleearth_pl.core.errors import ConfigError, GsdError, SampleError
from scaleearth_pl.core.sample import Question
from scaleearth_pl.data.processor import GSD_TEXT_RESERVE, Processor, gsd_prompt
from scaleearth_pl.data.tokenizer import load_tokenizer, train_tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = [qa.question + qa.answer for n in range(20) for qa in fake_sample(n).qas]
    texts += [gsd_prompt(v, style) for v in np.geomspace(0.01, 100, 200) for style in ("metres", "log")]
    return load_tokenizer(train_tiny_tokenizer(texts, tmp_path_factory.mktemp("tok") / "t"))


@pytest.fixture(scope="module")
def processor(tokenizer):
    return Processor(tokenizer, min_pixels=64 * 64, max_pixels=256 * 256)


def picture(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_patches_are_those_of_hugging_face(processor):
    theirs = Qwen2VLImageProcessorPil(
        patch_size=16,
        merge_size=2,
        temporal_patch_size=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": 64 * 64, "longest_edge": 256 * 256},
    )
    for size in [(96, 128), (512, 512), (320, 640)]:
        ours, output = processor.image(picture(*size)), theirs.preprocess(picture(*size), return_tensors="pt")
        assert [list(ours.grid)] == output["image_grid_thw"].tolist()
        # Only the resizing differs (theirs goes through another bicubic), by less than two grey values.
        worst = (ours.pixel_values_PD - output["pixel_values"]).abs().max()
        assert worst == 0 if ours.seen_size == size else worst < 4 / 255


def test_the_limit_of_pixels_holds_where_the_minimum_is_near_it(tokenizer):
    # 64 x 64 and 96 x 64 tokens' worth of pixels: rounding down leaves less than the minimum at most proportions.
    for least, most in [(4096, 4096), (4096, 6000), (65_536, 65_536), (50_000, 65_536)]:
        near = Processor(tokenizer, min_pixels=least, max_pixels=most)
        for width, height in np.random.default_rng(0).integers(40, 2000, (300, 2)).tolist():
            seen = near.seen_size(width, height)
            if min(seen) > 32:  # a narrower side cannot be reduced further
                assert seen[0] * seen[1] <= most
            if width * height >= most and min(seen) > 32:
                assert seen[0] <= width
                assert seen[1] <= height


def test_sizes_are_multiples_never_enlarged_but_to_the_minimum(processor):
    rng = np.random.default_rng(0)
    for width, height in rng.integers(10, 2000, (500, 2)).tolist():
        seen = processor.seen_size(width, height)
        assert seen[0] % 32 == 0
        assert seen[1] % 32 == 0
        if seen[0] > width or seen[1] > height:
            rounded = max(32, width // 32 * 32) * max(32, height // 32 * 32)
            shrunk = min(1.0, math.sqrt(256 * 256 / (width * height)))
            assert min(width * shrunk, height * shrunk) < 32 or rounded < 64 * 64
        elif min(seen) > 32:
            assert seen[0] * seen[1] <= 256 * 256
        assert processor.n_image_tokens(width, height) == seen[0] * seen[1] // 1024


def test_an_enlarged_image_says_so(processor):
    small, large = processor.image(picture(40, 40)), processor.image(picture(100, 100))
    assert small.upsampled
    assert small.seen_size == (64, 64)
    assert not large.upsampled
    assert large.seen_size == (96, 96)


def test_absurd_proportions_are_refused(processor):
    with pytest.raises(SampleError, match="sides"):
        processor.seen_size(1, 5000)


def test_the_template_is_qwens(processor, tokenizer):
    qa = Question(id="q", type="t", family="f", question="How wide?", answer="9 m", options=("9 m", "3 m"))
    branch = processor.branch(qa)
    assert tokenizer.decode(processor.prefix([2], 0.3)) == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|image_pad|><|vision_end|>"
    )
    assert tokenizer.decode(branch.prompt) == ("How wide?\nOptions: 9 m | 3 m<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode(branch.answer) == "9 m<|im_end|>"
    assert len(processor.prefix([4], 0.3)) == processor.prefix_length(64, 64)


def test_earlier_turns_are_part_of_the_prompt(processor, tokenizer):
    ids = processor.prompt("And now?", turns=[("Water?", "yes")])
    assert tokenizer.decode(ids) == (
        "Water?<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n<|im_start|>user\n"
        "And now?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_gsd_text_keeps_three_digits_and_fits_the_reserve(tokenizer):
    assert gsd_prompt(0.3, "metres") == " GSD: 0.300 m per pixel.\n"
    assert gsd_prompt(0.3, "log") == " scale -0.523\n"
    assert gsd_prompt(None, "metres") == " GSD: unknown.\n"
    with pytest.raises(GsdError):
        gsd_prompt(0.0, "metres")
    for style in ("metres", "log"):
        told = Processor(tokenizer, min_pixels=1024, max_pixels=4096, gsd_text=style)
        for gsd_m in np.geomspace(0.02, 99, 50):
            text = gsd_prompt(gsd_m, style)
            read = float(text.split()[1]) if style == "metres" else 10 ** float(text.split()[1])
            assert read == pytest.approx(gsd_m, rel=0.006)
            assert len(told.prefix([1], gsd_m)) - told.prefix_length(32, 32) <= GSD_TEXT_RESERVE
            assert tokenizer.decode(told.prefix([1], gsd_m)).endswith(text)


def test_lengths_do_not_depend_on_the_gsd_text(tokenizer, processor):
    told = Processor(tokenizer, min_pixels=64 * 64, max_pixels=256 * 256, gsd_text="metres")
    other = Processor(tokenizer, min_pixels=64 * 64, max_pixels=128 * 128)
    assert told.lengths_key == processor.lengths_key != other.lengths_key


def test_impossible_sizes_are_refused(tokenizer):
    with pytest.raises(ConfigError, match="min_pixels"):
        Processor(tokenizer, min_pixels=4096, max_pixels=1024)


def test_saved_files_load_again(processor, tmp_path):
    processor.save(tmp_path)
    assert len(load_tokenizer(tmp_path)) == processor.token_ids.vocab_size
    saved = Qwen2VLImageProcessorPil.from_pretrained(tmp_path)
    assert saved.patch_size == 16
    assert saved.do_resize
    assert dict(saved.size)["longest_edge"] == 256 * 256
