"""The `cellmesh` command: one module per noun under `commands`, what they share beside them."""
