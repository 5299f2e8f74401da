"""Both directions of the talk with a VM's agent: what it is asked, and what it says. It is taken to be hostile."""
