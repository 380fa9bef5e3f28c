"""Images in files, decoded when they are fetched, and the cache of decoded pixels."""
