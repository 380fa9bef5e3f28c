"""Galleries of images, and columns for programs that show them."""
