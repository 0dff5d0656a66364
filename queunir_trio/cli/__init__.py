"""How one asks, by command."""
