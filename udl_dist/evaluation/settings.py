"""The settings of what is looked at while a run goes on."""

from __future__ import annotations

from dataclasses import dataclass

from udl_dist.settings import setting


@dataclass(frozen=True)
class EvaluateSettings:
    every_images: int = setting(0, "images between validations and pictures; 0: ten times a run", low=0)
    at_images: tuple[int, ...] = setting((), "images after which there is a validation too, with a checkpoint", low=1)
    pictures: bool = setting(True, "write PNG grids into the run folder at each validation")
    columns: int = setting(10, "images in a row of a picture", low=1, high=100)
