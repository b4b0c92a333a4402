"""Data sets of labelled images: named ones, folders of images, ``.npz`` files; preprocessing."""

from widelimit.data.dataset import (
    Dataset,
    draw_training_sets,
    split_by_class,
    standardise,
    to_unit_interval,
)
from widelimit.data.load import load_dataset

__all__ = [
    "Dataset",
    "draw_training_sets",
    "load_dataset",
    "split_by_class",
    "standardise",
    "to_unit_interval",
]
