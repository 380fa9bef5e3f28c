"""Which images have labels: lists, tables, and fractions."""
