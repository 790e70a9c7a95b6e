"""Data that a user brings as an object: a dataset of images, a loader of views, a data module."""
