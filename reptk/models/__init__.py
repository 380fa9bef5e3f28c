"""Encoders: any timm backbone, a projection head, and gradient caching for large batches."""
