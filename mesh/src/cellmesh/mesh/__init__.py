"""What every host service shares; import the module that is wanted, nothing is re-exported here."""
