"""The control plane of one node: the life of its VMs and of the containers inside them."""
