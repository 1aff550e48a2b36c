"""Train, export, verify and publish convolutional classifiers into a model repository."""
