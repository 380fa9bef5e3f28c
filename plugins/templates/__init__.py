"""What `reptk plugin new` writes: one part of each kind and its test, with `my_loss` and `MyLoss` in place of the new names.

They are ordinary plugins, which use public names alone. Nothing imports them from here.
"""
