"""Randomness, ranks, files, images and messages, which every other package uses. Imports nothing of those packages."""
