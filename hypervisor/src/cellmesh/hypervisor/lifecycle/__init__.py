"""What callers and agents may ask for, as changes of the store. The reconciler makes the world follow."""
