"""A whole node on this machine, in the foreground."""
