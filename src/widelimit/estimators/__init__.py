"""scikit-learn estimators: kernel regression with infinitely wide networks."""

from widelimit.estimators.base import Influence
from widelimit.estimators.classifier import NTKClassifier
from widelimit.estimators.regressor import NTKRegressor

__all__ = ["Influence", "NTKClassifier", "NTKRegressor"]
