"""The verbs: one file each. They compose the rooms below and are all that the command line calls."""
