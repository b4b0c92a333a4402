"""Data sets of labelled images: named ones, folders of images, ``.npz`` files; preprocessing."""

from widelimit.data.dataset import Dataset, split_by_class, standardise, to_unit_interval
from widelimit.data.load import load_dataset

__all__ = ["Dataset", "load_dataset", "split_by_class", "standardise", "to_unit_interval"]
