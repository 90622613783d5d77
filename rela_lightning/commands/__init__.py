"""The commands of `rela`, one file each; a command's signature and docstring are its options.

Nothing is imported here, so that `rela --help` is quick.
"""
