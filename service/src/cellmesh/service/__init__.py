"""What every service of cellmesh is made of: its process, its store, its journal, its answers."""
