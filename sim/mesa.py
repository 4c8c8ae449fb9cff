"""Mesa's software renderer (lavapipe) from Debian's backports, unpacked into a folder of our own.

SAPIEN finds no device in the lavapipe of Debian 12. The newer one is fetched by the system's own apt, from the servers
that it is set up with, with package lists and cache in that folder: nothing of the system changes, and no rights are needed.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from vla_rl.sim.base import SimError

_PACKAGE = "mesa-vulkan-drivers"
_OF_THE_SYSTEM = ("libc6_", "libgcc-s1_", "libstdc++6_", "gcc-", "libcrypt1_", "zlib1g_", "libexpat1_", "libffi8_")
"""Packages that every process has loaded or finds already; a second copy beside the first would only do harm."""
_HELP = "a Vulkan driver is needed: a GPU's own, or Mesa 25 or newer (`apt-get install mesa-vulkan-drivers` on Debian 13)"


def unpack_mesa(folder: Path, run: Callable[[list[str], str], None]) -> dict[str, str]:
    """Fetch and unpack the driver; returns the environment variables that make a process use it.

    `run(words, what)` runs a command. Raises `SimError` on systems that are not Debian 12.
    """
    if _release() != ("debian", "12") or not shutil.which("apt-get"):
        raise SimError(f"the simulator cannot draw on this machine; {_HELP}")
    options = _apt_options(folder)
    run(["apt-get", *options, "update"], "reading Debian's package lists")
    target = ["-t", "bookworm-backports", "install", "--download-only", "-y", "--no-install-recommends", _PACKAGE]
    run(["apt-get", *options, *target], "fetching Mesa")
    root = folder / "root"
    for package in sorted((folder / "cache" / "archives").glob("*.deb")):
        if not package.name.startswith(_OF_THE_SYSTEM):
            run(["dpkg-deb", "-x", str(package), str(root)], "unpacking Mesa")
    shutil.rmtree(folder / "cache")
    return _use(folder, root)


def _use(folder: Path, root: Path) -> dict[str, str]:
    machine = platform.machine()
    found = sorted(root.glob("usr/share/vulkan/icd.d/lvp_icd*.json"))
    if not found:
        raise SimError(f"the packages that were fetched hold no lavapipe for {machine}; {_HELP}")
    record = json.loads(found[0].read_text(encoding="utf-8"))
    libraries = sorted(
        {str(path.parent) for path in root.glob("**/*.so.*")} | {str(path.parent) for path in root.glob("**/*.so")}
    )
    driver = next(root.glob(f"**/{Path(record['ICD']['library_path']).name}"))
    record["ICD"]["library_path"] = str(driver)
    named = folder / "lavapipe.json"
    named.write_text(json.dumps(record), encoding="utf-8")
    return {"VK_DRIVER_FILES": str(named), "VK_ICD_FILENAMES": str(named), "LD_LIBRARY_PATH": ":".join(libraries)}


def _apt_options(folder: Path) -> list[str]:
    """Options under which apt takes Debian 12 and its backports from the configured servers, and writes to `folder` alone."""
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()  # no package counts as installed, so that all needed ones are fetched
    sources = folder / "sources.list"
    lines = [
        f"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {server} {suite} main"
        for server in _servers()
        for suite in ("bookworm", "bookworm-backports")
    ]
    sources.write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": folder / "lists",
        "Dir::State::Status": folder / "status",
        "Dir::Cache": folder / "cache",
        "Debug::NoLocking": "1",
        "APT::Sandbox::User": "root",
    }
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def _servers() -> list[str]:
    """Where the machine's apt takes Debian 12 from."""
    words = ["apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    found = dict.fromkeys(line.split(" ", 1)[1] for line in done.stdout.splitlines() if line.startswith("bookworm "))
    if not found:
        raise SimError(f"apt knows no server of Debian 12 (bookworm) to fetch Mesa from; {_HELP}")
    return list(found)


def _release() -> tuple[str, str]:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return "", ""
    return release.get("ID", ""), release.get("VERSION_ID", "")
