"""What an encoder is worth: kNN accuracy of its features, and of raw pixels as the baseline."""

from .knn import encode, knn_accuracy, pixel_features

__all__ = ["encode", "knn_accuracy", "pixel_features"]
