"""Many small clusterings and their null draws at once: the numerics of psi_fast, without psi_fast."""
