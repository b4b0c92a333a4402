"""scikit-learn estimators: kernel regression with infinitely wide networks."""

from widelimit.estimators.classifier import NTKClassifier
from widelimit.estimators.gaussian import NTK
from widelimit.estimators.influence import Influence
from widelimit.estimators.metric import KernelMetric
from widelimit.estimators.regressor import NTKRegressor
from widelimit.estimators.saved import load_model, save_model
from widelimit.estimators.scaling import ChannelStandardiser, ImageNormaliser
from widelimit.estimators.whitening import ZCA

__all__ = [
    "NTK",
    "ZCA",
    "ChannelStandardiser",
    "ImageNormaliser",
    "Influence",
    "KernelMetric",
    "NTKClassifier",
    "NTKRegressor",
    "load_model",
    "save_model",
]
