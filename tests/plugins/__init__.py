"""Methods as a user would write them, against docs/methods.md alone: no file of udl_dist is edited.

`install` puts them beside ours as an installed package does, by entry points.
"""

from pathlib import Path

NAMES = ("codebook_vae", "labelled_vae", "feature_gan", "late_refiner")


def install(folder: Path) -> Path:
    """A folder for sys.path in which the methods are an installed distribution."""
    about = folder / "four_methods-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: four_methods\nVersion: 1.0\n")
    entries = [f"{name} = tests.plugins.{name}" for name in NAMES]
    (about / "entry_points.txt").write_text("\n".join(["[udl_dist.methods]", *entries, ""]))
    return folder
