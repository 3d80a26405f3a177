"""The native format: `adapter/` of the contract, made portable, with a model card; and its way to the hub.

    adapter_config.json  adapter_model.safetensors  scaleearth.safetensors  scaleearth.json      as stage 2 writes them
    README.md      model card, from settings and figures
    base/          the backbone, where asked for: the folder then needs nothing else

Stage 2's own folder leans on the run around it (pixel limits in `config.yaml`, a base named by a path). Saved here, it
carries the processor's settings (`extra.processor`), so it can be moved, copied or pushed; the base is recorded as
given: a hub name for a folder that is pushed, `base` where it lies inside.
"""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

from httpx2 import HTTPError  # the client of huggingface_hub 2
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from scaleearth_pl.core.errors import CheckpointError, ConfigError
from scaleearth_pl.core.files import replacing_folder
from scaleearth_pl.loading.model import LoadedModel
from scaleearth_pl.model.adapter_io import OUR_CONFIG, AdapterMeta, save_adapter
from scaleearth_pl.serving.card import CARD, RunFacts, write_card

BASE = "base"


class HubApi(Protocol):
    """What of `huggingface_hub.HfApi` is used."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any:
        """Makes the repository."""
        ...

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> Any:
        """Uploads a folder in one commit."""
        ...


def save_pretrained(
    loaded: LoadedModel,
    folder: Path,
    *,
    base_name: str | None = None,
    with_base: bool = False,
    repo_id: str | None = None,
) -> Path:
    """Writes the native folder, whole or not at all; `load_model` reads it back to the same answers.

    Args:
        loaded: from `load_model`.
        folder: replaced whole.
        base_name: hub name or path to record for the backbone; None keeps the recorded one.
        with_base: copy the backbone's folder into `base/`.
        repo_id: where it will be pushed to, for the card's example.

    Raises:
        ConfigError: both a base name and a copied base, a base that is no local folder to copy, or a target that
            holds something else.
        CheckpointError: the folder is the one that the model was loaded from.
    """
    if with_base and (base_name is not None or not Path(loaded.base).is_dir()):
        raise ConfigError(
            "the base is copied from a local folder, and is then called 'base'",
            field="with_base, base_name",
            value=(loaded.base, base_name),
            remedy="give one of the two",
        )
    check_replaceable(folder, OUR_CONFIG)
    if folder.resolve() == loaded.adapter.path.resolve():
        raise CheckpointError("a folder cannot be saved over itself", file=folder, remedy="name another folder")
    run = RunFacts.read(loaded.adapter.path.parent)
    meta = _portable(loaded, BASE if with_base else base_name)
    head = loaded.model.gsd_head
    state = {} if head is None else head.state_dict()
    with replacing_folder(folder, _size(Path(loaded.base)) if with_base else 0) as new:
        save_adapter(new, adapters=loaded.model.adapters, gsd_head_state=state, meta=meta)
        if with_base:
            shutil.copytree(loaded.base, new / BASE)
        write_card(new, meta, run, repo_id=repo_id)
    return folder


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def check_replaceable(folder: Path, marker: str) -> None:
    """Raises `ConfigError` unless `folder` is absent, empty, or of our own making, by the file `marker` in it."""
    if folder.name in ("", ".."):
        raise ConfigError("the target needs a name", file=folder, field="out", remedy="name a new folder")
    if folder.exists() and not (folder.is_dir() and ((folder / marker).is_file() or not any(folder.iterdir()))):
        raise ConfigError("the target holds something else", file=folder, field="out", remedy="name a new folder")


def _portable(loaded: LoadedModel, base_name: str | None) -> AdapterMeta:
    meta = loaded.adapter.meta
    extra = {**meta.extra, "processor": asdict(loaded.settings)}
    return replace(meta, extra=extra, base_path=meta.base_path if base_name is None else base_name)


def push(folder: Path, repo_id: str, *, private: bool = True, api: HubApi | None = None) -> str:
    """Uploads a saved folder to the hub in one commit; returns the repository's address.

    Args:
        folder: from `save_pretrained`, card included.
        repo_id: `organisation/name`; made if absent.
        private: visibility of a repository that is made.
        api: stands in for `huggingface_hub.HfApi()`, which takes its token from the environment.

    Raises:
        ConfigError: not a repository's name, a base that nobody else has, or a hub that refuses or is out of reach.
    """
    check_repository(repo_id)
    _check_base_travels(folder)
    if not (folder / CARD).is_file():
        raise CheckpointError("folder has no model card", file=folder / CARD, remedy="write it with save_pretrained")
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="ScaleEarth adapter")
    except (HTTPError, OSError) as error:  # refused, no network; offline by HF_HUB_OFFLINE, no token
        raise ConfigError(
            f"the hub did not take it: {str(error).strip().splitlines()[0]}",
            field="push_to",
            value=repo_id,
            remedy=f"{folder} is complete: log in (HF_TOKEN), be online, and upload it again",
        ) from error
    return f"https://huggingface.co/{repo_id}"


def check_repository(repo_id: str) -> None:
    """Raises `ConfigError` for what the hub takes for no `organisation/name`."""
    if not _is_hub_name(repo_id):
        raise ConfigError("not a repository's name", field="push_to", value=repo_id, remedy="ORGANISATION/NAME")


def _is_hub_name(text: str) -> bool:
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return text.count("/") == 1


def _check_base_travels(folder: Path) -> None:
    """A pushed adapter whose base is a path of this machine is of no use to anyone."""
    recorded = json.loads((folder / OUR_CONFIG).read_text(encoding="utf-8"))["base_path"]
    inside = not Path(recorded).is_absolute() and (folder / recorded).is_dir()
    if not inside and (not _is_hub_name(recorded) or Path(recorded).exists()):
        raise ConfigError(
            "the recorded base is a path of this machine",
            file=folder,
            field="base_path",
            value=recorded,
            remedy="save with --base-name ORGANISATION/NAME, or with --with-base",
        )
