"""Load, peers and the soak: what the gateway carries, beside others on the same machine in the same run."""
