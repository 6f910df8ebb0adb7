"""LIBERO's meshes and textures: where they are, and which of them are not the official ones."""

from __future__ import annotations

import hashlib
import os
import sys
from functools import cache
from pathlib import Path

from .libero_package import fetches_assets, package_folder

ASSETS_VARIABLE = "RSD_FAST_LIBERO_ASSETS"
HUB_ID = "lerobot/libero-assets"
WHAT_TO_DO = f"set {ASSETS_VARIABLE} to the assets folder of the LIBERO repository, or to a copy of {HUB_ID} on the hub"
DOWNLOADS = Path("~/.cache/libero/assets")  # where hf-libero downloads to
FOLDERS = ("articulated_objects", "scenes", "stable_hope_objects", "stable_scanned_objects", "turbosquid_objects")
FILE_TYPES = (".msh", ".obj", ".mtl", ".stl", ".png", ".jpg", ".xml")

# Plain meshes and textures in the place of large ones, in reduced sets of assets: path, start of its SHA-256.
STAND_INS = {
    "scenes/floor_lamp/visual/floor_lamp_vis.msh": "e8dc54570d0f0068f662ab227ba9756a",
    "scenes/kitchen_background/visual/kitchen_background_vis.msh": "e8dc54570d0f0068f662ab227ba9756a",
    "scenes/kitchen_background_pot/visual/kitchen_background_pot_vis.msh": "e8dc54570d0f0068f662ab227ba9756a",
    "scenes/kitchen_background_stove/visual/kitchen_background_stove_vis.msh": "e8dc54570d0f0068f662ab227ba9756a",
    "scenes/living_room/visual/living_room_vis.msh": "e8dc54570d0f0068f662ab227ba9756a",
    "scenes/wall_decoration/visual/wall_decoration_vis.msh": "30c873f6e13e19a721672219d0b964a3",
    "scenes/wall_decoration/wall_decoration_texture.png": "c94854ae446a571d2aac7dd183e52a13",
    "stable_scanned_objects/akita_black_bowl/texture.png": "d5dbcafacdeaebfc64c24b7d770b2396",
    "stable_scanned_objects/basket/texture.png": "c7ebe0f757a1a468c2d8e3ce9f3049c5",
    "stable_scanned_objects/basket/visual/basket_vis.msh": "29008c22923351cd57e9fa46be961602",
    "stable_scanned_objects/plate/texture.png": "39841e363aff3fcea5e252eceb92b2ee",
    "turbosquid_objects/desk_caddy/desk_caddy_texture.png": "12127bddbb3b8f781e8ce5bf32821a05",
    "turbosquid_objects/porcelain_mug/porcelain_mug_texture.png": "649ce8a99abdb97f6f3556f203f153cb",
    "turbosquid_objects/red_coffee_mug/red_coffee_mug_texture.png": "e000bc9f3390643b893933f20867396d",
    "turbosquid_objects/white_yellow_mug/white_yellow_mug_texture.png": "9019269619667fffb27aa77c6dd7fcc5",
}


def find_assets(download: bool = True) -> Path:
    """The folder that `RSD_FAST_LIBERO_ASSETS` names, else what libero has, else a download from the hub.

    Args:
        download: whether to do with hf-libero as it does by itself and download them; progress goes to stderr.

    Raises:
        ImportError: libero is not installed.
        FileNotFoundError: there are none, or not where the variable says; says what to do.
    """
    if named := os.environ.get(ASSETS_VARIABLE):
        folder = Path(named).expanduser().resolve()
        if missing := [name for name in FOLDERS if not (folder / name).is_dir()]:
            raise FileNotFoundError(f"got {ASSETS_VARIABLE}={named}, expected LIBERO's assets, but it has no {missing}")
        return folder
    own, downloads = package_folder() / "assets", DOWNLOADS.expanduser()
    for folder in (own, downloads):
        if has_assets(folder):
            return folder
    if download and fetches_assets():
        return download_assets(downloads)
    fetched = "; the first environment will download them" if fetches_assets() else ""
    raise FileNotFoundError(f"got no LIBERO assets in {own} or {downloads}{fetched}; {WHAT_TO_DO}")


def has_assets(folder: Path) -> bool:
    """Whether the assets are in `folder`, and no download into it was cut short."""
    unfinished = (folder / ".cache" / "huggingface" / "download").rglob("*.incomplete")
    return all((folder / name).is_dir() for name in FOLDERS) and not any(unfinished)


def download_assets(folder: Path) -> Path:
    """Downloads the assets from the hub, or what is missing of them.

    Raises:
        FileNotFoundError: that failed; says why, and what to do instead.
    """
    from huggingface_hub import snapshot_download

    print(f"LIBERO has no assets here yet: downloading {HUB_ID} to {folder}", file=sys.stderr)
    try:
        snapshot_download(HUB_ID, repo_type="dataset", local_dir=folder)
    except Exception as error:  # a dozen kinds, of the hub and of two HTTP libraries
        raise FileNotFoundError(
            f"got no LIBERO assets: the download of {HUB_ID} failed ({error}); {WHAT_TO_DO}"
        ) from error
    return folder


def stand_ins(assets: Path) -> list[str]:
    """Files of `assets` that are known stand-ins, as paths inside."""
    return [name for name, digest in STAND_INS.items() if _digest(assets / name) == digest]


@cache
def assets_notes(assets: Path) -> tuple[str, ...]:
    """What a report on episodes with these assets has to say."""
    known = len(stand_ins(assets))
    if not known:
        return ()
    total = sum(path.suffix in FILE_TYPES for path in assets.rglob("*"))
    return (
        f"{known} of {total} LIBERO asset files are visual stand-ins: physics, initial states and success predicates "
        "are exact, pictures are not the official ones; not comparable with published success rates",
    )


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:32] if file.is_file() else ""
