"""Commands run in a container for a caller who may lose the connection and come back."""
