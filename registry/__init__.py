"""From a run to a version to an alias: the ground floor, which imports neither trainer nor serving."""

if __name__ != "loradock.registry":  # a module under two names is two modules, with two of each class
    raise ImportError("this package is loradock.registry; import it by that name")
