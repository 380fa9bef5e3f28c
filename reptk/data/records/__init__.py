"""Encoded images with random access: Parquet files, tar shards, Lance tables, saved Hugging Face data sets."""
