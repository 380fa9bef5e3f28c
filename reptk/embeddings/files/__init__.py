"""The files that embeddings are stored in: safetensors, Parquet, and folders of parts."""
