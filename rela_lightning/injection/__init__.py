"""Everything that touches somebody else's module, trainer or loader; reversible, one concern a file."""
