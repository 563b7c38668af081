"""Where checkpoints lie and what is in them, without torch: for plans and checks as well as for the engine."""

from __future__ import annotations

import json
from pathlib import Path

from lightningrun.errors import UsageError
from lightningrun.files import MANIFEST, digest, file_digest

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")
_DECISIVE = ("config.json", "generation_config.json", *TOKENIZER_FILES)


def find(name: str, where: str = "") -> Path:
    """The folder of a checkpoint: a path, or the id of a hub model that is on disk already. Raises UsageError."""
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return folder.resolve()
    if folder.is_dir():
        raise UsageError(f"{name} holds no checkpoint: config.json is not in it", where=where)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(name, local_files_only=True))
        except Exception:  # its errors have no common class; each means that the model is not here
            pass
    raise UsageError(
        f"there is no checkpoint {name!r} on this machine",
        where=where,
        hint="name a folder with config.json and model.safetensors, download a hub model first (`hf download ...`), "
        "or name the output of a stage that makes one, as in sft.model",
    )


def is_output(name: str) -> bool:
    """Whether a model's name means what a stage makes, ``<stage>.model``, and not a checkpoint on disk."""
    return name.endswith(".model") and "/" not in name and not Path(name).exists()


def content_digest(folder: Path) -> str:
    """Hex digest (16) of what decides a checkpoint's answers: its weights, configuration and tokenizer.

    Files of the hub's cache are named by their content, and those of a folder saved here stand in its manifest: large
    files are read only where neither tells.
    """
    names = [path.name for path in folder.iterdir() if path.suffix == ".safetensors"]
    names += [name for name in _DECISIVE if (folder / name).is_file()]
    listed = _listed(folder)
    return digest({name: listed.get(name) or _file_digest(folder / name) for name in names})[:16]


def _listed(folder: Path) -> dict[str, str]:
    try:
        files = json.loads((folder / MANIFEST).read_text("utf-8"))["files"]
        return {str(name): str(sha) for name, sha in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _file_digest(path: Path) -> str:
    blob = path.resolve()
    return blob.name if path.is_symlink() and len(blob.name) == 64 else file_digest(path)
