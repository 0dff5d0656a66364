"""What slices run in: one contract, and a module for each kind of home."""
