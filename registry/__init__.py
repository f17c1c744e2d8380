"""From a run to a version to an alias: the ground floor, which imports neither trainer nor serving."""
