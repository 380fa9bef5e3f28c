"""Encoders: timm backbones, stems for small images, projection heads, weights, and gradient caching for large batches."""
