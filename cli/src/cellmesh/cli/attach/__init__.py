"""A command in a container, attached to this terminal or pipe."""
