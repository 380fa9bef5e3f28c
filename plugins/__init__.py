"""Contributed parts. They use reptk's public names only, as any plugin does, and nothing in reptk imports them."""
