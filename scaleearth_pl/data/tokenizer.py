"""Tokenizers: Qwen's own from a folder or a hub name, or a tiny one trained on the corpus in a second.

The tiny tokenizer is byte-level BPE with Qwen's pre-tokenisation pattern and its special tokens, saved as an ordinary
Hugging Face folder, so that nothing downstream knows the difference. Training is deterministic: the texts are sorted,
ties in BPE are broken by the library's own order. It is trained on every split that is not held out (stage 1 and
stage 2 of one corpus must speak the same ids) plus the texts and digits of the GSD prompt, so that baseline B3 is not
spelt byte by byte.

`cached_tiny_tokenizer` keeps it by the hash of what decides it: the folder is written beside its final place and
renamed when the disk has it, so several ranks may race.
"""

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from scaleearth_pl.core.errors import ConfigError, SampleError
from scaleearth_pl.core.files import flush

# Texts are encoded one by one; without this every forked loader worker warns that it will do so.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""What the prompt template needs; every tokenizer must hold each as one id."""

_TEMPLATE_TEXTS = ("user\n", "assistant\n", "\nOptions:", " |")
"""Words of the prompt template: they come with every question, so they are worth a token each."""

_QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tiny_tokenizer(texts: Iterable[str], out_dir: Path, *, vocab_size: int = 1024) -> Path:
    """Trains byte-level BPE on `texts` and saves it as a Hugging Face folder; returns `out_dir`.

    Args:
        texts: any order, repeats allowed; they are sorted and made unique first.
        out_dir: new or existing folder.
        vocab_size: ids in all, the 256 bytes and the special tokens included.

    Raises:
        ConfigError: `vocab_size` leaves no room beside bytes and special tokens.
    """
    if vocab_size < 256 + len(SPECIAL_TOKENS):
        raise ConfigError(
            "vocabulary cannot hold the bytes and the special tokens",
            field="vocab_size",
            value=vocab_size,
            remedy=f"at least {256 + len(SPECIAL_TOKENS)}",
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    unique = sorted(set(texts))
    tokenizer.train_from_iterator([*unique, *_TEMPLATE_TEXTS * max(1, len(unique))], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=[token for token in SPECIAL_TOKENS if token not in ("<|im_end|>", "<|endoftext|>")],
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(str(out_dir))
    return Path(out_dir)


def cached_tiny_tokenizer(cache: Path, key: str, texts: Callable[[], Iterable[str]], *, vocab_size: int = 1024) -> Path:
    """The tiny tokenizer of these texts, trained once: `cache/tokenizer-<hash>/`.

    Args:
        cache: folder for derived files of the corpus.
        key: identifies the texts without reading them (index hash and splits).
        texts: called only where the folder does not exist yet.
        vocab_size: ids in all.
    """
    digest = hashlib.sha256(
        f"{key}|{vocab_size}|{SPECIAL_TOKENS}|{_TEMPLATE_TEXTS}|{_QWEN_PATTERN}".encode()
    ).hexdigest()[:16]
    final = cache / f"tokenizer-{digest}"
    if final.is_dir():
        return final
    cache.mkdir(parents=True, exist_ok=True)
    temporary = cache / f".tokenizer-{digest}.{secrets.token_hex(8)}"
    try:
        train_tiny_tokenizer(texts(), temporary, vocab_size=vocab_size)
        for path in (*temporary.rglob("*"), temporary):
            flush(path)
        temporary.rename(final)
    except OSError:
        if not final.is_dir():  # else another process was first; its bytes are the same
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def load_tokenizer(path_or_name: Path | str) -> PreTrainedTokenizerBase:
    """A fast tokenizer from a local folder or a hub name; never runs remote code.

    Raises:
        ConfigError: it cannot be loaded, or lacks one of `SPECIAL_TOKENS`.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path_or_name), use_fast=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"tokenizer cannot be loaded: {str(error).splitlines()[0]}",
            field="tokenizer",
            value=str(path_or_name),
            remedy="give 'tiny', a folder that holds tokenizer.json, or a hub name with network access",
        ) from error
    missing = [token for token in SPECIAL_TOKENS if token not in tokenizer.get_added_vocab()]
    if missing or not tokenizer.is_fast:
        raise ConfigError(
            "tokenizer is not one of Qwen's family",
            field="tokenizer",
            value=missing or "slow",
            remedy=f"it needs a tokenizer.json with {', '.join(SPECIAL_TOKENS)}",
        )
    return tokenizer


MAX_KEPT_CHARS = 256
"""Of a text whose ids are kept: questions and answers repeat by the thousand, longer texts hardly ever."""


class TextEncoder:
    """Plain text to ids, fast and safe: special tokens come from the template only.

    The ids of short texts are kept, up to `max_kept_ids` of all together (some 150 MB at worst): in `serve` the texts are
    strangers', who must not decide how much memory they take.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_kept_ids: int = 1_000_000) -> None:
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._special = re.compile("|".join(re.escape(token) for token in sorted(tokenizer.get_added_vocab())))
        self._cache: dict[str, tuple[int, ...]] = {}
        self._n_kept, self._max_kept_ids = 0, max_kept_ids
        self.hash = hashlib.sha256(self._backend.to_str().encode()).hexdigest()

    def id_of(self, token: str) -> int:
        """Id of a special token."""
        id_: int | None = self._backend.token_to_id(token)
        assert id_ is not None, token  # load_tokenizer has checked it
        return id_

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of `text`; `SampleError` where it spells a special token, which would forge the template."""
        ids = self._cache.get(text)
        if ids is None:
            found = self._special.search(text)
            if found:
                raise SampleError("text spells a special token", field="text", value=found[0])
            ids = tuple(self._backend.encode(text, add_special_tokens=False).ids)
            self._keep(text, ids)
        return ids

    def _keep(self, text: str, ids: tuple[int, ...]) -> None:
        if len(text) <= MAX_KEPT_CHARS and self._n_kept + len(ids) <= self._max_kept_ids:
            self._n_kept += len(ids)
            self._cache[text] = ids
