"""The command `attnsparse`."""
