"""Where the files of a policy lie: a local folder, or a repository of the Hugging Face hub that is downloaded first."""

from __future__ import annotations

import re
from pathlib import Path

from vla_rl.policies.base import PolicyError

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_WANTED = ("*.json", "*.safetensors", "*.pt", "tokenizer.model", "*.py")
"""Files of a checkpoint. The code among them is only looked at, to tell OpenVLA-OFT's from OpenVLA's; it is never run."""


def local_folder(path: str | Path) -> Path:
    """The folder that `path` names, after a download where it is `owner/name` and no local folder.

    Raises `PolicyError`, one line, where there is no such folder or repository, or the hub cannot be reached.
    """
    folder = Path(path)
    if folder.is_dir():
        return folder
    if folder.exists() or not _REPOSITORY.fullmatch(str(path)):
        raise PolicyError(f"there is no policy at {folder}: it is not a folder")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(path), allow_patterns=list(_WANTED)))
    except Exception as error:  # the client raises its own, its HTTP library's and the operating system's
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PolicyError(
            f"there is no policy at {path}: it is not a folder, and the Hugging Face hub gave no such repository ({reason}); "
            "download it where there is a network and give its folder"
        ) from None
