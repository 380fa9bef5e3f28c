"""Contributed parts. Each file uses only what any stranger's plugin may use; nothing in reptk imports them."""
