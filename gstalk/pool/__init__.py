"""The floor of pools: many connections kept alive, shared by puts or by handlers."""
